"""Several processes form one job: two with four devices each give the results of one with eight, and they end together."""

import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from resuming import measured

from stepreward import parallel, processes
from stepreward.config import save_config
from stepreward.errors import UserError
from stepreward.metrics import read_metrics

MESH = {"mesh.data": 4, "mesh.fsdp": 2, "train.chunk_rows": 64}
ISTAR = MESH | {"sft.updates": 16, "sft.log_every": 8, "prm.replay": 1, "prm.minibatch_groups": 4, "train.env_steps": 300,
                "eval.final_episodes": 16, "lora.rank": 2}  # fmt: skip
SPA = MESH | {"sft.updates": 16, "exploration.tasks": 5, "exploration.part_tasks": 3, "estimator.epochs": 1, "critic.minibatch_rows": 128,
              "policy.minibatch_rows": 128, "train.env_steps": 100, "eval.final_episodes": 0}  # fmt: skip

# Each process of a job: the runs that it is given one after the other, "NAME" to its end or "NAME@TICK" until it is interrupted.
DRIVER = """
import json, os, signal, sys
from stepreward import processes

folder, *runs = sys.argv[1:]
processes.initialize()
from stepreward.config import load_config
from stepreward.training.train import Runner

if processes.count() > 1:
    exec(open(f"{folder}/together.py").read())
exec(open(f"{folder}/play.py").read())
for run in runs:
    name, _, tick = run.partition("@")
    config, _, workdir = name.partition(":")
    last = processes.index() == processes.count() - 1
    act = (lambda: signal.raise_signal(signal.SIGTERM)) if tick != "kill" else (lambda: os.kill(os.getpid(), signal.SIGKILL))
    stop = 1 if tick == "kill" else int(tick or 0)
    runner = Runner(load_config(f"{folder}/{config}.json"), f"{folder}/{workdir or config}")
    runner.on_tick = lambda runner, _: last and runner.counters.tick == stop and act()
    try:
        runner.run()
    except KeyboardInterrupt:
        assert runner.counters.tick == stop
print("end", flush=True)
"""

# What the functions of `processes` do among two.
TOGETHER = """
import numpy as np
me = processes.index()
assert processes.count() == 2 and processes.is_writer() == (me == 0)
assert list(processes.share(5)) == [[0, 1, 2], [3, 4]][me] and list(processes.share(1)) == [[0], []][me]
assert processes.agree_max([me, 5 - me]).tolist() == [1, 5]
big = np.arange(2_000_000 + me)  # more than one piece
found = processes.gather_objects({"me": me, "big": big})
assert [f["me"] for f in found] == [0, 1] and all(np.array_equal(f["big"], np.arange(2_000_000 + i)) for i, f in enumerate(found))
assert processes.on_writer(lambda: f"from {me}") == "from 0"
assert processes.together(lambda: me) == me
assert processes.all_rows(np.array([1, 0]), 4).tolist() == [1, 0, 5, 4]

def raised(function):
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def fails_in(number, error):
    def function():
        if me == number:
            raise error
    return function

assert raised(lambda: processes.on_writer(fails_in(0, ValueError("no room")))) == "ValueError: no room"
assert raised(lambda: processes.on_writer(fails_in(1, ValueError("never")))) is None
assert raised(lambda: processes.together(fails_in(1, FileNotFoundError(2, "gone", "x")))).startswith("FileNotFoundError: [Errno 2] gone")
different = raised(lambda: processes.check_same({"seed": me, "other": 1}, "the config"))
assert different.startswith("UserError: the config differs between processes: seed = 0 in process 0, but 1 in process 1"), different

import jax
from stepreward import parallel
assert "a tensor group has devices of several processes" in raised(lambda: parallel.make_mesh(1, 1, 8))
assert "every process must have the same number" in raised(lambda: parallel.make_mesh(1, 6, 1))
mesh = parallel.make_mesh(2, 2, 2)
rows = np.arange(16, dtype=np.float32).reshape(8, 2)
placed = parallel.place({"a": rows}, parallel.row_sharding(mesh))["a"]
assert np.array_equal(processes.to_host(placed), rows) and np.array_equal(processes.local_rows(placed), rows[4 * me : 4 * me + 4])
again = processes.place_rows(rows[4 * me : 4 * me + 4], parallel.row_sharding(mesh))
assert np.array_equal(processes.to_host(parallel.place(again, parallel.replicated(mesh))), rows)
processes.barrier("all of it")
"""

# Conversations that keep their cache, of 1 to 5 turns: the batch shrinks, the cache grows, and the first process is done first.
PLAY = """
import jax, numpy as np
from stepreward import parallel
from stepreward.models import decoder, presets, tokenizer
from stepreward.rollout.chat import Chat
from stepreward.rollout.play import Collector
from stepreward.rollout.engine import Engine
from stepreward.rollout.environments import EnvironmentPool
from stepreward.rollout.episode import Start, Task
from stepreward.rollout.sampling import Sampling

class Says:
    capabilities = frozenset({"replay"})

    def reset(self, *, seed, options):
        self.seed, self.turn = seed, 0
        return {"text": "say" * (1 + seed % 3)}, {"won": False, "executed": True, "state_key": "", "reference_answer": self.right()}

    def right(self):
        return "yes"[: 1 + self.seed % 3] if self.seed != 4 else None

    def step(self, action):
        self.turn += 1
        if self.seed == 13 and self.turn == 2:
            raise RuntimeError("lost the connection")
        ended = self.turn == 1 + self.seed // 3
        return {"text": "yes " * self.turn}, 1.0, ended, False, {
            "won": ended, "executed": True, "state_key": "", "reference_answer": self.right()
        }

    def close(self):
        pass

class Words:
    first = later = staticmethod(lambda observation: observation["text"])
    parse = staticmethod(lambda text: text)
    reference = staticmethod(lambda answer: ("a ", answer))

words = f"{folder}/words"
if processes.is_writer() and processes.count() > 1:
    tokenizer.train_symbol_tokenizer(["say yes"], ("up", "down"), words)
processes.barrier("words")
chat = Chat(tokenizer.load_tokenizer(words))
mesh = parallel.make_mesh(4, 2)
config = presets.decoder_config("tiny-micro", vocab_size=16)
graphdef, params = decoder.build(config, jax.random.key(3))
engine = Engine(graphdef, config, Sampling(chat.stop_ids, 3), max_length=120, buckets=(12, 24), pad_id=chat.codec.pad_id,
                sharding=parallel.row_sharding(mesh), rows_multiple=8)
sizes, grown, turn = [], [], engine._turn
engine._turn = lambda params, caches, *rest: (sizes.append(caches[0].key.shape[0]), grown.append(caches[0].key.shape[2]),
                                              turn(params, caches, *rest))[-1]
collector = Collector(engine, EnvironmentPool(Says), Words(), chat, "episode", 0, 9, 16)
tasks = [Task(seed, "train", seed) for seed in range(15)]
played = collector.play(parallel.place_parameters(params, mesh), [Start(t) for t in tasks], jax.random.key(7), score_answers=True)
assert [e.task for e in played] == tasks
assert [(len(e.steps), e.success) for e in played if e.task.seed != 13] == [(1 + s // 3, True) for s in range(15) if s != 13]
assert "lost the connection" in played[13].failure and len(played[13].steps) == 1
assert sizes[0] == 16 and sizes[-1] == 8 and len(set(grown)) > 1, (sizes, grown)
again = collector.play(parallel.place_parameters(params, mesh), [Start.before(e, len(e.steps) // 2) for e in played], jax.random.key(7))
assert [e.prefix for e in again] == [len(e.steps) // 2 for e in played]
for one, other in zip(played, again):  # the same key draws the same rest
    assert [s.action_tokens.tolist() for s in one.steps] == [s.action_tokens.tolist() for s in other.steps], one.task
    assert one.failure == other.failure
if processes.is_writer():
    steps = [step for e in played for step in e.steps]
    arrays = {name: np.concatenate([getattr(s, name) for s in steps]) for name in ("prompt_tokens", "action_tokens", "log_prob", "entropy")}
    arrays["answers"] = np.array([s.answer_log_prob for s in steps])
    np.savez(f"{folder}/played-{processes.count()}.npz", **arrays)
"""


def job(root, folder, *runs, count):
    """`(exit code, what it said)` of each process of a job on eight devices."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={8 // count}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    started = []
    for number in range(count):
        if count > 1:
            environment |= {"STEPREWARD_COORDINATOR": f"localhost:{port}", "STEPREWARD_PROCESSES": f"{count}"}
            environment |= {"STEPREWARD_PROCESS_ID": f"{number}"}
        started.append(subprocess.Popen([sys.executable, "-c", DRIVER, str(folder), *runs], cwd=root, env=environment,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))  # fmt: skip
    try:
        said = [process.communicate(timeout=600)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, said)]


@pytest.fixture(scope="module")
def folder(root, micro_config, spa_config, tmp_path_factory):
    """The workdirs of the same runs in two processes and in one; `half` was begun by two and finished by one."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "together.py").write_text(TOGETHER)
    (folder / "play.py").write_text(PLAY)
    save_config(micro_config(ISTAR), folder / "istar.json")
    save_config(spa_config(SPA | {"stages.sft": str(folder / "istar-2")}), folder / "spa.json")
    two = job(root, folder, "istar:istar-2", "spa:spa-2", "istar:half@3", "istar:killed@kill", count=2)
    said = "\n\n".join(text[-3000:] for _, text in two)
    assert [code for code, _ in two] == [two[0][0], -signal.SIGKILL] and two[0][0] != 0, said  # one is killed, the other notices
    (one,) = job(root, folder, "istar:istar-1", "spa:spa-1", "istar:half", count=1)
    assert one[0] == 0, one[1][-3000:]
    return folder


def assert_same(found, expected):
    """What was played is the same; what was computed differs by rounding alone."""
    assert [r["tick"] for r in found] == list(range(1, len(expected) + 1))
    for a, b in zip(expected, found, strict=True):
        assert set(a) == set(b)
        fresh = a.get("credit/step_reward_std", 1) < 1e-5  # a PRM that has not learnt yet gives nothing but rounding
        for name in a:
            where = f"{name} in tick {a['tick']} ({a['stage']})"
            if name in ("stage", "env_steps") or name.startswith(("rollout/", "eval/", "final/")) and "entropy" not in name:
                assert b[name] == a[name], where
            elif fresh and (name in ("prm/pair_accuracy", "prm/pair_margin") or name.startswith("credit/")):
                continue
            elif name == "prm/train_pair_accuracy":  # of a PRM that was just set to the policy: nothing but rounding
                continue
            elif name == "prm/train_pair_margin":  # the same, but never more than rounding
                assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-5), where
            elif name.startswith("credit/") and ("correlation" in name or "accuracy" in name):  # all but equal numbers change places
                assert b[name] == pytest.approx(a[name], abs=5e-2), where
            else:
                assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-6), where


def test_two_processes_play_as_one_does(folder):
    two, one = (np.load(folder / f"played-{count}.npz") for count in (2, 1))
    for name in ("prompt_tokens", "action_tokens"):
        np.testing.assert_array_equal(two[name], one[name])
    assert 0 < np.isnan(one["answers"]).sum() < len(one["answers"])  # one task has no reference answer
    for name in ("log_prob", "entropy", "answers"):
        np.testing.assert_allclose(two[name], one[name], atol=1e-5)


def test_two_processes_train_as_one_does(folder):
    found, expected = measured(folder / "istar-2"), measured(folder / "istar-1")
    assert [r["stage"] for r in expected] == ["sft", "sft", "train", "train", "train", "evaluate"]
    assert expected[-2]["credit/step_reward_std"] > 1e-4  # the PRM has learnt
    assert_same(found, expected)
    names = {path.name for path in (folder / "istar-1").iterdir()}
    assert names == {path.name for path in (folder / "istar-2").iterdir()} >= {"evaluation.json", "episodes", "stages"}


def test_two_processes_explore_and_train_estimator_and_critic_as_one_does(folder):
    found, expected = measured(folder / "spa-2"), measured(folder / "spa-1")
    assert [r["stage"] for r in expected] == ["start", "explore", "explore", "estimator", "train"]
    assert_same(found, expected)


def test_a_run_that_two_processes_began_is_finished_by_one(folder):
    """One process was asked to stop: both saved that tick."""
    assert_same(measured(folder / "half"), measured(folder / "istar-1"))


def test_a_process_that_dies_ends_the_job_after_its_last_tick(folder):
    assert [r["tick"] for r in read_metrics(folder / "killed")] == [1]


# --- One process ---


def test_one_process_is_all_of_the_job():
    assert (processes.index(), processes.count(), processes.is_writer()) == (0, 1, True)
    assert processes.share(3) == range(3) and processes.share(0) == range(0)
    assert processes.agree_max(np.array([3, 1])).tolist() == [3, 1]
    value = object()
    assert processes.gather_objects(value)[0] is value
    assert processes.on_writer(lambda: value) is value and processes.together(lambda: value) is value
    processes.check_same({"a": 1}, "it")
    processes.barrier("nobody else")
    assert np.array_equal(processes.all_rows(np.array([2, 0]), 4), [2, 0])
    sharding = parallel.row_sharding(parallel.make_mesh())
    rows = np.arange(6.0).reshape(3, 2)
    for place in (processes.place, processes.place_rows):
        placed = place(rows, sharding)
        assert placed.sharding == sharding and np.array_equal(processes.to_host(placed), rows)
        assert np.array_equal(processes.local_rows(placed), rows)
    keys = jax.random.split(jax.random.key(1), 3)
    assert np.array_equal(jax.random.key_data(processes.place_rows(keys, sharding)), jax.random.key_data(keys))


BY_HAND = {"STEPREWARD_COORDINATOR": "host:1234", "STEPREWARD_PROCESSES": "4", "STEPREWARD_PROCESS_ID": "3"}


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, None),
        (BY_HAND, {"coordinator_address": "host:1234", "num_processes": 4, "process_id": 3, "cluster_detection_method": "deactivate"}),
        (BY_HAND | {"STEPREWARD_PROCESSES": "1", "STEPREWARD_PROCESS_ID": "0"}, None),
        ({"STEPREWARD_PROCESSES": "auto"}, {}),
        ({"SLURM_STEP_NUM_TASKS": "2"}, {}),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ],
)
def test_the_job_follows_from_the_environment(environment, expected):
    assert processes.job_of(environment) == expected


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"STEPREWARD_PROCESSES": "2"}, "not set: STEPREWARD_COORDINATOR, STEPREWARD_PROCESS_ID"),
        (BY_HAND | {"STEPREWARD_PROCESS_ID": "first"}, "STEPREWARD_PROCESS_ID='first' must be a whole number"),
        (BY_HAND | {"STEPREWARD_PROCESS_ID": "4"}, "STEPREWARD_PROCESS_ID=4 must be less than STEPREWARD_PROCESSES=4"),
    ],
)
def test_a_wrong_environment_is_named(environment, words):
    with pytest.raises(UserError, match=words):
        processes.job_of(environment)


def test_blocks_of_rows():
    owner = np.arange(8) // 2
    processes.check_blocks(owner.reshape(4, 2, 1), 4)
    processes.check_blocks(owner.reshape(2, 2, 2), 4)
    processes.check_blocks(np.zeros((2, 2, 2), int), 1)
    with pytest.raises(ValueError, match="2 × 1 × 4: a tensor group has devices of several processes"):
        processes.check_blocks(owner.reshape(2, 1, 4), 4)
    with pytest.raises(ValueError, match=r"uses \[2, 2, 2, 0\] devices of the 4 processes: every process must have the same number"):
        processes.check_blocks(owner[:6].reshape(6, 1, 1), 4)
    with pytest.raises(ValueError, match=r"uses \[2, 2, 1\] devices of the 3 processes"):
        processes.check_blocks(owner[:5].reshape(5, 1, 1), 3)
    with pytest.raises(ValueError, match="every process must have the same number"):
        processes.check_blocks(np.array([0, 1, 0, 1]).reshape(4, 1, 1), 2)
