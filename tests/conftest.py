"""Shared fixtures: a run of a few seconds, a one-layer model, and random batches for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from xla_flags import known_flags

# Compiled programs and translated games are kept between tests and the processes that they start. Before jax is imported.
_KEPT = Path(tempfile.gettempdir()) / f"stepreward-tests-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_KEPT))
os.environ.setdefault("ALFWORLD_DATA", str(_KEPT / "alfworld"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# The tests compile far more than they compute. With these flags a step of the small models compiles in a fifth of the time.
os.environ.setdefault("XLA_FLAGS", known_flags(_KEPT))

import jax
import numpy as np
import pytest

# A shell's background job ignores SIGINT, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 16
WIDTH = 16  # of the one-layer decoder


@pytest.fixture(scope="module", autouse=True)
def _programs_are_released():
    """A compiled program holds memory maps, of which a process may have 65,530: all tests together would need more."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the repository."""
    return ROOT


def _micro(file, changes=None):
    from stepreward.config import load_config_file

    config = load_config_file(f"{ROOT}/configs/{file}.py:micro")
    left = dict(changes or {})
    with config.unlocked():
        for name in ("credit.options", "credit.schedules", "preference.options"):  # open groups: their keys need not be there
            group, open_group = name.split(".")
            found = {k.removeprefix(f"{name}."): left.pop(k) for k in list(left) if k.startswith(f"{name}.")}
            config[group][open_group].update(found)
    config.update_from_flattened_dict(left)
    return config


@pytest.fixture(scope="session")
def under_hash_seeds():
    """`under_hash_seeds(program)`: what a program prints under two seeds of Python's hashes, `[str, str]`."""

    def run(program: str) -> list[str]:
        of_seed = lambda seed: os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        options = dict(cwd=ROOT, capture_output=True, text=True, check=True)
        return [subprocess.run([sys.executable, "-c", program], env=of_seed(seed), **options).stdout for seed in ("1", "2")]

    return run


@pytest.fixture(scope="session")
def micro():
    """`micro("istar_webshop", {"train.env_steps": 100, …})`: the micro preset of an experiment with some keys changed."""
    return _micro


@pytest.fixture(scope="session")
def micro_config():
    """`micro_config({"train.env_steps": 100, …})`: the micro preset of iStar with some keys changed."""
    return partial(_micro, "istar_sokoban")


@pytest.fixture(scope="session")
def spa_config():
    """The same of SPA."""
    return partial(_micro, "spa_sokoban")


@pytest.fixture(scope="session")
def model():
    """`(graphdef, params)` of the one-layer decoder in fp32."""
    from stepreward.models import decoder
    from stepreward.models.presets import decoder_config

    return decoder.build(decoder_config("tiny-micro", vocab_size=VOCABULARY), jax.random.key(0))


@pytest.fixture(scope="session")
def headed(model):
    """`(graphdef, params)` of the one-layer decoder with a head whose last layer is not zero."""
    from stepreward.models.heads import with_head

    params = with_head(model[1], jax.random.key(1), WIDTH, "mlp")
    last = {"weight": 0.5 * jax.random.normal(jax.random.key(2), (WIDTH,)), "bias": jax.numpy.float32(0.1)}
    return model[0], {**params, "scalar_head": params["scalar_head"] | last}


@pytest.fixture(scope="session")
def make_batch(model):
    """`make_batch(seed, …)`, see `random_batch`."""
    return partial(random_batch, model)


@pytest.fixture(scope="session")
def flat():
    """`flat(tree)`: every number of a pytree of arrays as one float64 vector."""
    return lambda tree: np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


@pytest.fixture(scope="session")
def assert_same(flat):
    """`assert_same(found, expected)`: gradients of a whole model, or its weights after an update, are equal up to rounding.

    Each number is a float32 sum over all tokens of a batch. Its rounding depends on the order of the additions, which depends on the
    processor and on the chunks: numbers near 1 differed by up to 3e-6.
    """
    return lambda found, expected: np.testing.assert_allclose(flat(found), flat(expected), rtol=1e-5, atol=1e-5)


def random_batch(model, seed=0, *, groups=2, group_size=4, steps=3, length=8, rows=24, noise=0.0, failed=()):
    """Groups with successes and failures, one step a row, as a rollout packs them (NumPy arrays).

    Args:
      model: `(graphdef, params)`; scores the tokens for `log_prob_old`.
      noise: standard deviation of what is added to those scores.
      failed: indices of episodes whose environment failed.
    """
    from stepreward.rollout.episode import Episode, Step, Task
    from stepreward.rollout.packing import pack
    from stepreward.training.auxiliaries.prm import score

    graphdef, params = model
    rng = np.random.default_rng(seed)
    episodes = []
    for index in range(groups * group_size):
        group, place = divmod(index, group_size)
        episode = Episode(Task(group, "train", group), success=place < 1 + group % (group_size - 1))
        for _ in range(int(rng.integers(1, steps + 1))):
            prompt, answer = (rng.integers(0, VOCABULARY, n).astype(np.int32) for n in rng.integers((3, 1), (6, 3)))
            zeros = np.zeros(len(answer), np.float32)
            episode.steps.append(Step(prompt, answer, zeros, zeros, "", "", "up", 0.0, True, ""))
        episode.failure = "broken" if index in failed else None
        episodes.append(episode)
    batch = pack(episodes, context="step", max_steps=steps, row_length=length, row_multiple=rows, pad_id=0, outcome="success")
    log_prob, _ = score(params, batch, graphdef=graphdef, chunk_rows=rows, temperature=1.0)
    log_prob = np.asarray(log_prob) + noise * rng.normal(size=log_prob.shape).astype(np.float32) * batch.action_mask
    return batch.replace(log_prob_old=log_prob)


@pytest.fixture(scope="session")
def spa_base(spa_config, tmp_path_factory):
    """A finished run of SPA's micro preset, whose stages other runs take; `programs`: compiled steps after each tick."""
    from stepreward.training.auxiliaries.critic import critic_step, values
    from stepreward.training.auxiliaries.estimator import estimate
    from stepreward.training.auxiliaries.update import auxiliary_step
    from stepreward.training.policy import policy_step
    from stepreward.training.train import Runner

    steps = (auxiliary_step, estimate, critic_step, values, policy_step)
    runner = Runner(spa_config(), tmp_path_factory.mktemp("spa") / "run")
    runner.programs = []
    runner.on_tick = lambda r, _: r.programs.append([step._cache_size() for step in steps])
    runner.run()
    return runner
