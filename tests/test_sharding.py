"""Eight devices on one CPU: sharded updates equal unsharded ones, and a run works on a mesh."""

import json
import os
import subprocess
import sys

import pytest

from stepreward import parallel

SCRIPT = """
import json, sys
sys.path.insert(0, "tests")
import jax, numpy as np, optax
from stepreward import credit, parallel
from stepreward.models import decoder
from stepreward.models.presets import decoder_config
from stepreward.training.policy import PolicyLoss, policy_step, sft_step
from stepreward.training.auxiliaries.update import LogProbs, auxiliary_step
from stepreward.training.state import create
import conftest

assert len(jax.devices()) == 8
graphdef, params = model = decoder.build(decoder_config("tiny-micro", vocab_size=conftest.VOCABULARY), jax.random.key(0))
batch = conftest.random_batch(model, noise=0.3)
advantage = np.random.default_rng(5).normal(size=batch.tokens.shape).astype(np.float32) * batch.action_mask
optimizer = optax.sgd(0.1, momentum=0.9)
common = dict(graphdef=graphdef, optimizer=optimizer, chunk_rows=8)
policy = dict(loss=PolicyLoss(entropy_coef=0.1), temperature=1.0, **common)
prm = dict(name="prm", outputs=LogProbs(1.0), method=credit.make("istar", beta=1.0), **common)
steps = {
    "policy": lambda state, place: policy_step(state, place(batch), place(advantage), **policy),
    "prm": lambda state, place: auxiliary_step(state, place(batch), **prm),
    "sft": lambda state, place: sft_step(state, place(batch), **common),
}
jitted = {"policy": policy_step, "prm": auxiliary_step, "sft": sft_step}

def placed(mesh):
    rows, whole = parallel.row_sharding(mesh), parallel.replicated(mesh)
    return lambda tree: jax.tree.map(
        lambda x: jax.device_put(x, rows if np.shape(x) == batch.tokens.shape else whole), tree
    )

found = {}
for name, step in steps.items():
    ends, metrics = [], []
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh = parallel.make_mesh(*shape)
        state = create(parallel.place_parameters(params, mesh), optimizer)
        for _ in range(3):
            state, out = step(state, placed(mesh))
            programs = jitted[name]._cache_size()
            ends.append(programs)
        metrics.append({k: float(v) for k, v in out.items()})
        leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(state))[0]
        values = {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}
        if shape == (1, 1, 1):
            expected = values
    specs = {jax.tree_util.keystr(p): [list(x.sharding.spec), x.addressable_shards[0].data.size / x.size]
             for p, x in jax.tree_util.tree_flatten_with_path(state)[0]}
    found[name] = {
        "difference": max(float(np.abs(values[k] - expected[k]).max()) for k in expected),
        "moved": max(float(np.abs(x).max()) for k, x in expected.items() if "trace" in k),
        "metrics": metrics, "specs": specs, "programs": ends,
    }
print(json.dumps(found))
"""

RUN = """
import json, sys
from stepreward.config import load_config_file
from stepreward.training.train import Runner

config = load_config_file("configs/istar_sokoban.py:micro")
config.update_from_flattened_dict({"mesh.data": -1, "mesh.fsdp": 2, "mesh.tensor": 2, "train.env_steps": 200})
runner = Runner(config, sys.argv[1])
runner.run()
assert dict(runner.mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
print(json.dumps(runner.history()))
"""


SPA = """
import json, sys
from stepreward.config import load_config_file
from stepreward.training.train import Runner

found = {}
for name, shape in (("one", (1, 1, 1)), ("eight", (2, 2, 2))):
    config = load_config_file("configs/spa_sokoban.py:micro")
    config.update_from_flattened_dict({"mesh.data": shape[0], "mesh.fsdp": shape[1], "mesh.tensor": shape[2], "sft.updates": 30,
        "exploration.tasks": 4, "exploration.part_tasks": 4, "train.env_steps": 200, "eval.final_episodes": 0})
    runner = Runner(config, f"{sys.argv[1]}/{name}")
    runner.run()
    assert tuple(runner.mesh.shape.values()) == shape
    found[name] = runner.history()
print(json.dumps(found))
"""


def on_eight_devices(root, script, *arguments):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=root, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_devices_of_one_cpu_have_threads_to_wait_in(root):
    """A collective blocks a thread: a pool of one thread a device, XLA's default, can run out of them."""
    script = """
import os
from stepreward import parallel
import jax
print([len(jax.devices()), int(os.environ["NPROC"])])
"""
    devices, threads = on_eight_devices(root, script)
    assert devices == 8 and threads >= 64


@pytest.fixture(scope="module")
def found(root):
    return on_eight_devices(root, SCRIPT)


@pytest.mark.parametrize("name", ["policy", "prm", "sft"])
def test_three_sharded_updates_equal_three_on_one_device(found, name):
    """Parameters and momentum; a mesh of data 2 × fsdp 2 × tensor 2."""
    step = found[name]
    assert step["moved"] > 1e-2 and step["difference"] < 1e-5
    one, eight = step["metrics"]
    assert eight == pytest.approx(one, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["policy", "prm", "sft"])
def test_parameters_and_momentum_stay_sharded(found, name):
    shares = {
        "['embedding']": [[["fsdp", "tensor"]], 1 / 4],
        "['attention']['query']": [["fsdp", "tensor"], 1 / 4],
        "['attention']['output']": [["tensor", None, "fsdp"], 1 / 4],
        "['mlp']['down']": [["tensor", "fsdp"], 1 / 4],
        "['final_norm']['scale']": [[], 1],
    }
    for part, expected in shares.items():
        specs = {path: spec for path, spec in found[name]["specs"].items() if part in path}
        assert any("trace" in path for path in specs) and any(".params" in path for path in specs)
        assert list(specs.values()) == [expected] * len(specs), part


@pytest.mark.parametrize("name", ["policy", "prm", "sft"])
def test_a_step_compiles_once_a_mesh(found, name):
    assert found[name]["programs"] == [1, 1, 1, 2, 2, 2]


def test_a_run_works_on_the_mesh(root, tmp_path):
    records = on_eight_devices(root, RUN, str(tmp_path / "run"))
    assert [r["stage"] for r in records] == ["sft", "sft", "train", "train"]
    assert records[1]["sft/loss"] < records[0]["sft/loss"]
    assert records[-1]["env_steps"] >= 200 and 0 <= records[-1]["eval/success"] <= 1
    assert max(r["policy/sampler_gap"] for r in records[2:]) < 1e-4
    assert any(r["policy/grad_norm"] > 0 for r in records[2:])


def test_a_run_with_critic_and_estimator_is_the_same_on_the_mesh(root, tmp_path):
    """Every phase: what is sampled is the same, what is computed differs by rounding alone."""
    found = on_eight_devices(root, SPA, str(tmp_path))
    one, eight = found["one"], found["eight"]
    assert [r["stage"] for r in one] == ["sft", "explore", "estimator", "estimator", "train", "train"]
    timed = lambda name: name == "wall_s" or name.startswith("time/") or name.endswith("_per_s")
    for a, b in zip(one, eight, strict=True):
        assert set(a) == set(b)
        for name in a:
            played = name in ("stage", "env_steps") or name.startswith("rollout/") and name != "rollout/entropy"
            if played and not timed(name):
                assert b[name] == a[name], name
            elif "rank_correlation" in name:  # advantages that are all but equal change places by rounding
                assert b[name] == pytest.approx(a[name], abs=2e-2), name
            elif not timed(name):
                assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-4), name


FREE = """
import dataclasses, sys
from pathlib import Path
sys.path.insert(0, "tests")
import jax, json
from test_free_play import TASKS, assert_same, played
from test_play import CONFIG, chat, on_sokoban
from stepreward import parallel
from stepreward.models import decoder
from stepreward.rollout import free_play
from stepreward.rollout.engine import Engine

makes = free_play.Rows
used = []
free_play.Rows = lambda *args: used.append(makes(*args)) or used[-1]
params = decoder.build(CONFIG, 0)[1]
class Folder:
    mktemp = lambda self, name: Path(sys.argv[1])

plain = on_sokoban(chat.__wrapped__(Folder()))
expected = played(plain, params, "batch")
mesh = parallel.make_mesh(2, 2, 2)
config = dataclasses.replace(CONFIG, mesh=mesh)
one = plain.engine
engine = Engine(
    decoder.graph(config), config, one.sampling, one.max_length, one.buckets, one.pad_id, sharding=parallel.row_sharding(mesh), rows_multiple=4
)
collector = dataclasses.replace(plain, engine=engine)
prepared = engine.prepare(parallel.place_parameters(params, mesh))
for context in ("episode", "step"):
    free, lockstep = (played(dataclasses.replace(collector, context=context), prepared, s) for s in ("free", "lockstep"))
    assert_same(free, lockstep)
assert_same(played(collector, prepared, "free"), expected, exactly=False)
print(json.dumps([len(rows._caches[0].key.sharding.device_set) for rows in used]))
"""


def test_rows_on_a_mesh_play_the_same_episodes(root, tmp_path):
    assert on_eight_devices(root, FREE, str(tmp_path)) == [8] * 5


def test_a_mesh_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="needs 16 devices, but there are 1"):
        parallel.make_mesh(4, 2, 2)
    mesh = parallel.make_mesh(-1)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    with pytest.raises(ValueError, match="is not a multiple"):
        parallel.make_mesh(-1, 2, 1)
