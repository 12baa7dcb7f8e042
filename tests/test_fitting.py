"""Fitting a published model's preset to the available devices: what is chosen, what is kept, and what is refused."""

import json
import math
import os
import subprocess
import sys

import pytest

from stepreward.config import TrackedConfig, leaves, load_config_file, override, parse_command_line
from stepreward.configs.common.base import FITS_MODEL, FITS_ROWS
from stepreward.errors import UserError
from stepreward.tpu.slices import CHIPS, GIB
from stepreward.training import fitting
from stepreward.training.fitting import Devices, Needs, fit, settle

CPU = Devices(1, math.inf, "cpu")


def slice_of(chip, count):
    return Devices(count, CHIPS[chip].hbm, f"{chip}, {count} chips")


@pytest.fixture(scope="module")
def preset(root):
    """`preset("istar_sokoban:qwen2.5-7b", "lora.rank=0", …)`: the config with flags as the command line sets them."""

    def load(spec, *flags):
        config = load_config_file(f"{root}/configs/{spec.replace(':', '.py:')}")
        for flag in flags:
            override(config, *flag.split("=", 1))
        return config

    return load


def chosen(config, devices):
    found, said = fit(config, devices)
    assert found.mesh.fit == () and found.is_locked == config.is_locked
    return leaves(found), said


# --- What is chosen ---

# Chip, devices, whether whole weights are trained; None: refused.
SLICES = [
    ("istar_sokoban:qwen2.5-0.5b", "v5e", 1, False),
    ("istar_sokoban:qwen2.5-0.5b", "v5e", 4, True),
    ("istar_sokoban:qwen2.5-0.5b", "v6e", 1, True),
    ("istar_sokoban:qwen2.5-1.5b", "v5e", 1, False),
    ("istar_sokoban:qwen2.5-1.5b", "v5e", 16, True),
    ("istar_sokoban:llama3.2-3b", "v5p", 1, False),
    ("istar_sokoban:llama3.2-3b", "v5e", 16, True),
    ("istar_sokoban:qwen2.5-7b", "v5e", 4, False),
    ("istar_sokoban:qwen2.5-7b", "v5e", 16, False),
    ("istar_sokoban:qwen2.5-7b", "v6e", 16, True),
    ("istar_sokoban:qwen2.5-7b", "v5p", 8, True),
    ("istar_webshop:llama3.1-8b", "v5e", 16, False),
    ("istar_visual_sokoban:qwen2.5-vl-7b", "v5e", 16, False),
    ("istar_visual_sokoban:qwen2.5-vl-7b", "v5p", 8, True),
]


@pytest.mark.parametrize("spec, chip, count, whole", SLICES)
def test_whole_weights_where_they_fit_and_adapters_where_they_do_not(preset, spec, chip, count, whole):
    devices = slice_of(chip, count)
    c, said = chosen(preset(spec), devices)
    assert (c["mesh.data"], c["mesh.fsdp"], c["mesh.tensor"]) == (1, count, 1)
    assert c["train.chunk_rows"] % count == c["rollout.max_rows"] % count == 0 < c["train.chunk_rows"] <= max(64, count)
    assert (c["lora.rank"], c["lora.sft"]) == ((0, False) if whole else (fitting.RANK, True))
    assert f"train.chunk_rows={c['train.chunk_rows']}" in said and "\n" not in said
    assert ("whole weights would need about" in said and "adapters of rank 16 are trained" in said) == (not whole)


@pytest.mark.parametrize("spec", ["istar_sokoban:qwen2.5-0.5b", "spa_sokoban:llama3.2-3b", "istar_visual_sokoban:qwen2.5-vl-7b"])
@pytest.mark.parametrize("count", [1, 8, 12])
def test_rows_and_mesh_fit_any_number_of_devices(preset, spec, count):
    config = preset(spec)
    c, _ = chosen(config, Devices(count, math.inf, "cpu"))
    assert c["mesh.data"] * c["mesh.fsdp"] == count and c["train.chunk_rows"] % count == c["rollout.max_rows"] % count == 0
    assert c["train.chunk_rows"] >= config.train.chunk_rows and c["rollout.max_rows"] >= config.rollout.max_rows
    assert (c["lora.rank"], c["lora.sft"]) == (config.lora.rank, False)  # no limit: as the preset has it


def test_weights_are_split_as_far_as_their_width_divides(preset):
    c, _ = chosen(preset("istar_sokoban:qwen2.5-7b"), Devices(12, math.inf, "cpu"))  # 3,584 wide
    assert (c["mesh.data"], c["mesh.fsdp"]) == (3, 4)


def test_adapters_learn_at_rates_of_their_own(preset):
    config = preset("istar_sokoban:qwen2.5-7b")
    whole, adapters = chosen(config, slice_of("v6e", 16))[0], chosen(config, slice_of("v5e", 16))[0]
    for key in ("sft.learning_rate", "prm.learning_rate", "policy.learning_rate"):
        assert whole[key] == leaves(config)[key] and adapters[key] == pytest.approx(10 * whole[key])


def test_spa_s_adapters_keep_their_rate_and_the_warm_start_trains_adapters_where_the_whole_does_not_fit(preset):
    config = preset("spa_sokoban:llama3.2-3b")
    small, large = chosen(config, slice_of("v5e", 4))[0], chosen(config, slice_of("v5p", 4))[0]
    assert (small["lora.rank"], small["lora.sft"], large["lora.rank"], large["lora.sft"]) == (8, True, 8, False)
    assert small["policy.learning_rate"] == large["policy.learning_rate"] == config.policy.learning_rate
    assert small["sft.learning_rate"] == pytest.approx(10 * large["sft.learning_rate"])


def test_fewer_episodes_are_decoded_at_once_where_their_cache_does_not_fit(preset):
    config = preset("istar_sokoban:qwen2.5-1.5b")
    assert chosen(config, slice_of("v5e", 1))[0]["rollout.max_rows"] < chosen(config, slice_of("v6e", 1))[0]["rollout.max_rows"] == 128


def test_a_rollout_beside_the_updates_needs_its_own_parameters_and_rows(preset):
    """In bytes, per device: what the update needs, the parameters that are played with and two copies of them, and the rollout's rows."""
    waits, ahead = (Needs.of(preset("istar_sokoban:qwen2.5-0.5b", "mesh.fsdp=1", *flags)) for flags in ((), ("rollout.ahead=1",)))
    assert waits.beside is None and waits.most(2, 32) == max(waits.updating(2), waits.playing(32))
    assert ahead.beside == pytest.approx(494e6 * (4 + 2 * 2), rel=0.01)  # float32, and bfloat16 twice
    assert ahead.most(2, 32) == waits.updating(2) + ahead.beside + 32 * ahead.row_play


# --- What a user sets is kept ---


@pytest.mark.parametrize("flag", ["train.chunk_rows=32", "rollout.max_rows=64", "mesh.fsdp=8", "mesh.data=4", "mesh.tensor=2",
                                  "lora.rank=4", "policy.learning_rate=5e-7", "sft.learning_rate=3e-5"])  # fmt: skip
def test_a_flag_is_never_overridden(preset, flag):
    key, value = flag.split("=")
    c, _ = chosen(preset("istar_sokoban:qwen2.5-7b", flag), slice_of("v5e", 16))
    assert c[key] == float(value)


def test_a_value_set_in_python_is_kept(preset):
    config = preset("istar_sokoban:qwen2.5-7b")
    config.rollout.max_rows = 32
    assert chosen(config, slice_of("v5e", 16))[0]["rollout.max_rows"] == 32


def test_a_flag_takes_its_key_out_of_those_that_a_run_chooses(root):
    arguments = [f"--config={root}/configs/istar_sokoban.py:qwen2.5-7b", "--config.train.chunk_rows=8", "--config.lora.rank=0"]
    config, _ = parse_command_line(arguments)
    assert {key for key, _ in config.mesh.fit} == {*FITS_ROWS, *FITS_MODEL} - {"train.chunk_rows", "lora.rank"}


def test_rows_that_do_not_divide_are_named_with_rows_that_do(preset):
    with pytest.raises(
        ValueError, match=r"train.chunk_rows=8 must be a multiple of mesh.data × mesh.fsdp = 16 .*: set it to 16, or leave it out"
    ):
        fit(preset("istar_sokoban:qwen2.5-7b", "train.chunk_rows=8"), slice_of("v5e", 16))


def test_whole_weights_that_do_not_fit_are_refused_with_what_would(preset):
    with pytest.raises(UserError) as error:
        fit(preset("istar_sokoban:qwen2.5-7b", "lora.rank=0"), slice_of("v5e", 16))
    assert "--config.lora.rank=16 --config.lora.sft=True" in str(error.value) and "32 such devices" in str(error.value)


def test_rows_that_do_not_fit_are_refused_with_what_would(preset):
    with pytest.raises(UserError, match="leave out rollout.max_rows"):
        fit(preset("istar_sokoban:qwen2.5-1.5b", "rollout.max_rows=128"), slice_of("v5e", 1))


def test_a_model_too_large_is_refused_with_a_smaller_one_and_a_larger_slice(preset):
    with pytest.raises(UserError) as error:
        fit(preset("istar_sokoban:qwen2.5-7b"), slice_of("v5e", 1))
    said = str(error.value)
    assert "qwen2.5-7b with adapters of rank 16 needs about" in said and "1 device (v5e, 1 chips, 15.75 GiB each)" in said
    assert "4 such devices would suffice" in said and "the preset qwen2.5-1.5b would fit here" in said and "\n" not in said


def test_the_papers_presets_train_what_the_paper_trains_or_refuse(preset):
    for spec, model in (("istar_sokoban:paper", (0, False)), ("spa_alfworld:paper", (8, False))):
        config = preset(spec)
        c, _ = chosen(config, slice_of("v5p", 16))
        assert (c["lora.rank"], c["lora.sft"]) == model and c["policy.learning_rate"] == config.policy.learning_rate
        with pytest.raises(UserError, match="such devices would suffice"):
            fit(config, slice_of("v5e", 4))


def test_other_configs_are_taken_as_they_are(preset, tmp_path):
    for config in (preset("istar_sokoban:micro"), preset("istar_sokoban:qwen2.5-7b", "mesh.fit=")):
        found, said = settle(config, tmp_path, slice_of("v5e", 16))
        assert found is config and said == ""


# --- The estimate, against what the TPU compiler reserved (docs/tpu.md) ---

# Flags; devices; rows of an update and GiB that it needs; rows of a rollout and GiB.
COMPILED = [
    ("istar_sokoban:qwen2.5-0.5b", ("model.moment_dtype=bfloat16",), 1, (2, 15.83), (32, 12.16)),
    ("istar_sokoban:qwen2.5-0.5b", ("model.moment_dtype=bfloat16", "model.param_dtype=bfloat16"), 1, (2, 11.65), None),
    ("istar_sokoban:qwen2.5-1.5b", ("model.moment_dtype=bfloat16",), 4, (2, 13.41), None),
    ("istar_sokoban:qwen2.5-7b", ("model.moment_dtype=bfloat16",), 16, (1, 16.60), None),
    ("istar_sokoban:qwen2.5-7b", ("model.moment_dtype=bfloat16", "model.param_dtype=bfloat16"), 16, (1, 12.26), None),
    ("istar_sokoban:qwen2.5-7b", ("model.moment_dtype=bfloat16",), 8, (2, 32.36), None),
    ("istar_sokoban:qwen2.5-7b", ("lora.rank=16", "lora.sft=True"), 16, (2, 2.62), (8, 4.44)),
    ("istar_sokoban:qwen2.5-7b", ("lora.rank=16", "lora.sft=True"), 8, (4, 6.02), None),
    ("istar_sokoban:paper", (), 8, (1, 36.70), None),
]


@pytest.mark.parametrize("spec, flags, count, update, play", COMPILED)
def test_the_estimate_is_near_what_was_compiled(preset, spec, flags, count, update, play):
    needs = Needs.of(preset(spec, *flags, f"mesh.fsdp={count}"))
    for estimate, measured in ((needs.updating, update), (needs.playing, play)):
        if measured is not None:
            rows, reserved = measured
            ratio = estimate(rows) / GIB / reserved
            assert 1 / 1.09 <= ratio <= 1.5, ratio  # what is short of it is in the share that the estimate leaves free


# --- Runs ---


def test_a_run_goes_on_with_the_values_that_it_began_with(preset, tmp_path):
    config = preset("istar_sokoban:qwen2.5-7b")
    first, _ = settle(config, tmp_path, slice_of("v5e", 16))
    from stepreward.config import save_config

    save_config(first, tmp_path / "config.json")
    again, said = settle(config, tmp_path, slice_of("v6e", 4))
    assert leaves(again) == leaves(first) and said == ""


def test_a_borrowed_warm_start_decides_how_it_was_trained(preset, tmp_path):
    from stepreward.config import save_config

    source, _ = fit(preset("istar_sokoban:qwen2.5-7b", "lora.rank=4", "lora.sft=True"), slice_of("v5e", 16))
    save_config(source, tmp_path / "a" / "config.json")
    config, _ = settle(preset("istar_sokoban:qwen2.5-7b", f"stages.sft={tmp_path / 'a'}"), tmp_path / "b", slice_of("v6e", 16))
    assert (config.lora.rank, config.lora.sft, config.sft.learning_rate) == (4, True, source.sft.learning_rate)


def test_a_tracked_config_stays_tracked(preset, tmp_path):
    config, _ = settle(TrackedConfig(preset("istar_sokoban:qwen2.5-0.5b")), tmp_path, CPU)
    assert isinstance(config, TrackedConfig) and config.mesh.fit == () and "mesh.fit" in config._read


def test_a_model_is_played_on_fewer_devices_than_it_was_trained_on(preset):
    config, _ = fit(preset("istar_sokoban:qwen2.5-7b"), slice_of("v5e", 16))
    here, said = fitting.on_fewer_devices(config)
    assert here.mesh.data * here.mesh.fsdp * here.mesh.tensor == 1 and "16 devices" in said
    assert fitting.on_fewer_devices(here) == (here, "")


SMALL = ["--config.model.preset=checkpoint", "--config.environment.prompt=compact", "--config.rollout.max_prompt_tokens=100",
         "--config.rollout.max_answer_tokens=6", "--config.rollout.max_row_tokens=106", "--config.sft.episodes=16",
         "--config.sft.updates=4", "--config.sft.rows=8", "--config.rollout.max_steps=4", "--config.eval.episodes=4",
         "--config.rollout.groups=2", "--config.rollout.group_size=2", "--config.rollout.history=0", "--config.train.env_steps=8",
         "--config.policy.minibatch_rows=16", "--config.prm.minibatch_groups=2", "--config.eval.every=10"]  # fmt: skip


def test_a_published_preset_trains_on_eight_devices_resumes_and_is_played_on_one(root, tmp_path):
    pytest.importorskip("torch")
    from test_pretrained_run import make_model

    folder, workdir = make_model(tmp_path / "Qwen2.5-tiny-Instruct"), tmp_path / "run"
    command = [sys.executable, "launch/train.py", "--config=configs/istar_sokoban.py:qwen2.5-0.5b", f"--config.model.path={folder}",
               f"--workdir={workdir}", *SMALL]  # fmt: skip

    def run(arguments, devices):
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "XLA_FLAGS": flags, "COLUMNS": "400"}
        done = subprocess.run(arguments, cwd=root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout + done.stderr

    assert "fitted to 8 devices (cpu): mesh.fsdp=8, rollout.max_rows=128, train.chunk_rows=8" in run(command, 8)
    saved = json.loads((workdir / "config.json").read_text())
    assert (saved["mesh"]["fsdp"], saved["train"]["chunk_rows"], saved["mesh"]["fit"]) == (8, 8, [])
    assert "This run is already finished" in run(command, 8)
    played = run([sys.executable, "launch/evaluate.py", f"--workdir={workdir}", "--episodes=4"], 1)
    assert "the run's mesh has 8 devices; this job uses 1" in played and "success" in played
