"""A run that is killed after any of its writes resumes to the bit-identical end of an undisturbed run."""

import json
import os
import subprocess
import sys

import chex
import pytest
from resuming import measured

from stepreward.checkpoint import Checkpoints
from stepreward.config import save_config

SHORT = {"sft.episodes": 20, "sft.updates": 40, "sft.log_every": 40, "eval.episodes": 4, "eval.every": 1, "checkpoint.every": 1}
ISTAR = SHORT | {"train.env_steps": 160, "prm.replay": 1, "checkpoint.every": 3}
SPA = SHORT | {"exploration.tasks": 4, "exploration.part_tasks": 2, "estimator.epochs": 1, "estimator.refresh_every": 1,
               "train.env_steps": 100, "eval.final_episodes": 4}  # fmt: skip
AT_THE_SEAM = ("_clear sft", "facts.json", "begun.json", "MetricsWriter.write 1", "Checkpoints.save sft", "Checkpoints.save cut 1",
               "MetricsWriter.write 2")  # fmt: skip
EVERYWHERE = ("workdir.save_config", "make_codec", "write_demonstrations", "begin_recording", "write_part 1", "_clear estimator",
              "write_episodes", "evaluation.json", "Checkpoints.wait", "report.html")  # fmt: skip

# Runs a job again and again in processes of their own; each ends without warning after the first write that no earlier one came to.
DRIVER = """
import json, os, sys
import orbax.checkpoint, tensorflow_datasets
from stepreward import checkpoint, metrics
from stepreward.config import load_config
from stepreward.data import demonstrations
from stepreward.report import page
from stepreward.training import demonstrating, exploration, main_job, outputs, words, workdir

config, folder, *wanted = sys.argv[1:]
pipe, done = os.pipe(), []

def dies_after(place, name, told=lambda *a: ""):
    write = getattr(place, name)
    def writes(*arguments, **keywords):
        found = write(*arguments, **keywords)
        event = f"{place.__name__.split('.')[-1]}.{name} {told(*arguments)}"
        if event not in done and any(name in event for name in wanted):
            os.write(pipe[1], event.encode())
            os._exit(9)
        return found
    setattr(place, name, writes)

path = lambda path, *_: path.name
for place, name, told in (
    (workdir, "save_config", lambda *_: ""), (demonstrating, "write_demonstrations", lambda *_: ""), (words, "make_codec", lambda *_: ""),
    (exploration, "begin_recording", lambda *_: ""), (exploration, "write_part", lambda folder, index, *_: index),
    (outputs, "write_atomically", path), (outputs.StageOutput, "_clear", lambda self: self.stage),
    (workdir, "write_atomically", lambda path, text: path.name + text[-20:].strip() * (path.name == "begun.json")),
    (workdir, "write_episodes", lambda folder, tick, *_: tick), (page, "write_atomically", path),
    (metrics.MetricsWriter, "write", lambda self, record: record["tick"]),
    (checkpoint.Checkpoints, "save", lambda self, step, *_: f"{self._manager.directory.parent.name} {step}"),
    (checkpoint.Checkpoints, "wait", lambda self: max(self.steps(), default=0)),
):
    dies_after(place, name, told)
while True:
    child = os.fork()
    if not child:
        code = main_job.train(load_config(config), folder, quiet=True)
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not code:
        break
    assert code == 9, code
    done.append(os.read(pipe[0], 1000).decode())
print(json.dumps(done))
"""


def parameters(workdir):
    """Every array of the last checkpoint."""
    checkpoints = Checkpoints(workdir, read_only=True)
    found = checkpoints.arrays()
    checkpoints.close()
    return found


@pytest.mark.parametrize("kind", ["istar", "spa"])
def test_a_run_killed_after_each_of_its_writes_ends_as_if_nothing_had_happened(kind, micro_config, spa_config, root, tmp_path):
    from stepreward.training.train import Runner

    config = micro_config(ISTAR) if kind == "istar" else spa_config(SPA)
    save_config(config, tmp_path / "config.json")
    Runner(config, tmp_path / "whole").run()
    wanted = AT_THE_SEAM + (EVERYWHERE if kind == "spa" else ())
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "config.json"), str(tmp_path / "cut"), *wanted]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    events = json.loads(ended.stdout.splitlines()[-1])
    for name in wanted:
        assert any(name in event for event in events), (name, events)
    assert measured(tmp_path / "cut") == measured(tmp_path / "whole")
    chex.assert_trees_all_equal(parameters(tmp_path / "cut"), parameters(tmp_path / "whole"))
    left = {str(p.relative_to(tmp_path / "cut")) for p in (tmp_path / "cut").rglob(".*")} - {".lock"}
    assert not left, left  # nothing half-written stays
    read = lambda run: sorted(os.listdir(tmp_path / run / "episodes"))
    assert read("cut") == read("whole")
