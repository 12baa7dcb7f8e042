"""Which runs may start or resume in a folder, and what they leave there."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from stepreward.checkpoint import check_folder_name
from stepreward.config import leaves
from stepreward.errors import UserError
from stepreward.training import decisions, workdir
from stepreward.training.locks import LOCK_FILE


def claimed(config, folder):
    workdir.release(workdir.claim(config, folder))


def refused(config, folder):
    """The message of the one error that a claim ends with."""
    with pytest.raises((UserError, ValueError)) as caught:
        workdir.claim(config, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- Two at once ---

HOLD = (
    "import sys, time; from stepreward.training.locks import FolderLock; lock = FolderLock(sys.argv[1]); print(flush=True); time.sleep(600)"
)


def test_a_second_run_in_a_workdir_ends_with_2_and_one_line(micro_config, root, tmp_path):
    claimed(micro_config(), tmp_path / "run")
    before = (tmp_path / "run" / "config.json").stat().st_mtime_ns
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], cwd=root, stdout=subprocess.PIPE)
    holder.stdout.readline()
    try:
        command = [sys.executable, "launch/train.py", "--config=configs/istar_sokoban.py:micro", f"--workdir={tmp_path / 'run'}"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)})
    finally:
        holder.kill()
        holder.wait()
    assert done.returncode == 2 and f"is in use by process {holder.pid} on host" in done.stderr.splitlines()[-1]
    assert (tmp_path / "run" / "config.json").stat().st_mtime_ns == before and not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_that_fails_to_begin_frees_its_workdir(micro_config, tmp_path, monkeypatch):
    from stepreward.training import setup, train

    def broken(*_):
        raise ValueError("no such tokenizer")

    monkeypatch.setattr(setup, "build", broken)
    with pytest.raises(ValueError, match="no such tokenizer"):
        train.Runner(micro_config(), tmp_path / "run")
    locks = workdir.claim(micro_config(), tmp_path / "run")
    assert [lock._lock.lock_counter for lock in locks] == [1]
    workdir.release(locks)


def test_what_a_killed_process_was_writing_does_not_stand_in_the_way(micro_config, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / LOCK_FILE).write_text("")
    (run / ".identity").write_text("0123\n")
    (run / ".config.json.123").write_text("{")
    (run / ".tokenizer.123").mkdir()
    claimed(micro_config(), run)
    assert sorted(os.listdir(run)) == [".identity", LOCK_FILE, "config.json"]


def test_a_start_that_was_killed_while_it_took_its_checkpoint_folder_goes_on(micro_config, tmp_path):
    config = micro_config({"checkpoint.folder": str(tmp_path / "disk")})
    claimed(config, tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    claimed(config, tmp_path / "run")
    (tmp_path / "disk" / "run.json").write_text("")
    claimed(config, tmp_path / "run")


# --- checkpoint.folder ---


def test_two_new_workdirs_cannot_share_a_checkpoint_folder(micro_config, tmp_path):
    config = micro_config({"checkpoint.folder": str(tmp_path / "disk")})
    claimed(config, tmp_path / "a")
    assert f"belongs to the workdir {str(tmp_path / 'a')!r}" in refused(config, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_copied_workdir_cannot_share_the_checkpoint_folder_but_a_moved_one_keeps_it(micro_config, tmp_path):
    config = micro_config({"checkpoint.folder": str(tmp_path / "disk")})
    claimed(config, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert "two workdirs cannot share one" in refused(config, tmp_path / "copy")
    (tmp_path / "a").rename(tmp_path / "moved")
    claimed(config, tmp_path / "moved")
    assert json.loads((tmp_path / "disk" / "run.json").read_text())["workdir"] == str(tmp_path / "moved")


def test_a_workdir_that_has_not_begun_does_not_take_over_checkpoints(micro_config, tmp_path):
    claimed(micro_config(), tmp_path / "run")
    (tmp_path / "disk" / "7").mkdir(parents=True)
    message = refused(micro_config({"checkpoint.folder": str(tmp_path / "disk")}), tmp_path / "run")
    assert "contains checkpoints, but no run has begun in" in message


def test_another_workdir_s_own_checkpoints_are_not_a_checkpoint_folder(micro_config, tmp_path):
    claimed(micro_config(), tmp_path / "a")
    config = micro_config({"checkpoint.folder": str(tmp_path / "a" / "checkpoints")})
    assert "belongs to the workdir" in refused(config, tmp_path / "b") and not (tmp_path / "b").exists()


# --- What may change ---


def test_keys_that_decide_no_output_may_change_at_any_time(micro_config, tmp_path):
    claimed(micro_config(), tmp_path / "run")
    workdir.mark_begun(tmp_path / "run", decisions.STAGES)
    keys = leaves(micro_config())
    changed = {key: {bool: True, int: 7, float: 7.0, str: "inline"}[type(keys[key])] for key in decisions.FREE}
    claimed(micro_config(changed), tmp_path / "run")


@pytest.mark.parametrize("key, value", [("model.system", "Another."), ("model.thinking", True), ("environment.prompt", "istar"),
                                        ("seed", 1), ("environment.options.x", 1)])  # fmt: skip
def test_what_is_said_to_the_model_may_not_change_once_there_are_demonstrations(micro_config, tmp_path, key, value):
    claimed(micro_config(), tmp_path / "run")
    (tmp_path / "run" / "demonstrations").mkdir()
    config = micro_config()
    with config.unlocked():
        config.update_from_flattened_dict({key: value})
    message = refused(config, tmp_path / "run")
    assert "contains a run with another config" in message and key in message


def test_a_model_folder_may_move_since_its_content_is_what_counts(micro_config, tmp_path):
    claimed(micro_config({"model.path": "a/model"}), tmp_path / "run")
    workdir.mark_begun(tmp_path / "run", ["sft"])
    claimed(micro_config({"model.path": "b/model"}), tmp_path / "run")
    assert "model.path" in refused(micro_config(), tmp_path / "run")


@pytest.mark.parametrize("key, begun", [("stages.sft", "sft"), ("stages.exploration", "estimator"), ("stages.estimator", "train")])
def test_what_has_been_borrowed_may_not_be_exchanged(micro_config, tmp_path, key, begun):
    claimed(micro_config({key: "runs/a"}), tmp_path / "run")
    claimed(micro_config({key: "runs/b"}), tmp_path / "run")
    workdir.mark_begun(tmp_path / "run", [begun])
    assert f"{key}: 'runs/b' -> 'runs/a'" in refused(micro_config({key: "runs/a"}), tmp_path / "run")


def test_a_run_without_its_checkpoints_is_not_begun_again(micro_config, tmp_path):
    workdir.check_not_lost(tmp_path, micro_config(), {"sft"})  # what a kill can leave
    with pytest.raises(
        UserError, match="has begun the stages sft, train, but there is no checkpoint in .*put the checkpoints back, or give a new"
    ):
        workdir.check_not_lost(tmp_path, micro_config(), {"sft", "train"})


# --- Names of folders ---

FINE = ["a b", "'q'", '"q"', "$HOME", "50%", "%d", "{x}", "-dash", "ünï–日本 😀", "@2", "a@3", "a@", "a:b", "#1", "a;b&c|d", "<a>(b)",
        "`a`", ".hidden", "1", "a.json", "a=b,c", "cafe\u0301", " a ", "x" * 255, "a.array_record-00000-of-00001", "checkpoints"]  # fmt: skip
REFUSED = {"[1]": "a pattern of file names", "a*": "a pattern", "**": "a pattern", "what?": "a pattern", "a\\b": "a pattern",
           "a\nb": "a control character", "tab\t": "a control character", "bad\udcff": "not UTF-8", "gs:": "beginning of a URL",
           "a/s3:/b": "beginning of a URL", "x" * 256: "is too long", "/".join(["y" * 200] * 18): "is too long"}  # fmt: skip


@pytest.mark.parametrize("name", FINE)
def test_checkpoints_stages_and_datasets_are_stored_under_any_fine_name(micro_config, tmp_path, monkeypatch, name):
    import jax.numpy as jnp

    from stepreward.checkpoint import Checkpoints
    from stepreward.data.demonstrations import Demonstration, read_demonstrations, write_demonstrations
    from stepreward.data.recordings import begin_recording, read_recordings
    from stepreward.metrics import MetricsWriter
    from stepreward.report import write_report

    monkeypatch.chdir(tmp_path)
    run, records = tmp_path.__class__(name), [Demonstration("t", "train", ["o"], ["up"], True, 1.0)]
    claimed(micro_config({"checkpoint.folder": str(tmp_path / f"disk {name[:200]}")}), run)
    write_demonstrations(run / "demonstrations", records, {})
    assert read_demonstrations(run / "demonstrations")[0] == records
    assert begin_recording(run / "exploration", {}, 1) == 0
    with pytest.raises(ValueError, match="is unfinished"):
        read_recordings(run / "exploration")
    for folder in ("", str(tmp_path / f"disk {name[:200]}")):
        checkpoints = Checkpoints(run, folder=folder)
        checkpoints.save(1, {"a": jnp.ones(3)}, {})
        checkpoints.close()
        again = Checkpoints(run, read_only=True, folder=folder)
        assert again.arrays()["a"].tolist() == [1, 1, 1]
        again.close()
    with MetricsWriter(run) as metrics:
        metrics.write({"tick": 1, "a": 2.0})
    assert write_report(run).is_file()


@pytest.mark.parametrize("name", REFUSED, ids=lambda name: ascii(name)[:20])
def test_a_name_that_is_read_as_something_else_is_refused_before_anything_is_written(micro_config, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert REFUSED[name] in refused(micro_config(), tmp_path.__class__(name))
    if ":" not in name and "*" not in name[:1]:
        message = refused(micro_config({"checkpoint.folder": name}), tmp_path / "run")
        assert REFUSED[name] in message and "checkpoint.folder" in message
    assert not os.listdir(tmp_path)


def test_a_tilde_that_no_shell_replaced_is_refused(micro_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "the shell did not expand the ~" in refused(micro_config(), tmp_path.__class__("~/run"))
    assert "there is no user of that name" in refused(micro_config({"checkpoint.folder": "~nobody-there/x"}), tmp_path / "run")
    assert not os.listdir(tmp_path)


def test_a_link_to_a_name_that_cannot_be_used_is_refused_with_its_target(tmp_path):
    (tmp_path / "[1]").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "[1]")
    with pytest.raises(ValueError, match=r"link' is '.*\[1\]', which contains '\['"):
        check_folder_name(tmp_path / "link", "workdir")
    check_folder_name(tmp_path / "link", "workdir", read_only=True)


# --- Those who only read ---


def test_who_only_reads_makes_nothing_that_is_missing(micro_config, tmp_path):
    from stepreward.training.evaluate import _check_whole

    with pytest.raises(UserError, match="lacks the folder tokenizer and demonstrations: resume the run with train.py to make it again"):
        _check_whole(micro_config(), tmp_path)
    for name in ("tokenizer", "demonstrations"):
        (tmp_path / name).mkdir()
    _check_whole(micro_config(), tmp_path)
    _check_whole(micro_config({"model.path": "a/model", "sft.updates": 0}), tmp_path / "none")
