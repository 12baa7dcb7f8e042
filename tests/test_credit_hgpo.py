"""HGPO: its golden values, a plain loop as reference, the levels that the host finds, and GiGPO as the special case K = 0."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from references import HISTORY, assert_steps, counted_groups, literal, pack, random_episodes, returns_loop

from stepreward import signals
from stepreward.batch import validate
from stepreward.credit import make
from stepreward.credit.hgpo import last_states

CLOSE = dict(atol=1e-4, rtol=0)
FOUR = ["pqr", "pqr", "uqr", "vwr"]
EXPECTED = {
    "none": [[0.5, 0.4333, 0.4444], [-0.5, -0.5667, -0.5556], [0, 0.3333, 0.4], [0, 0, -0.5]],
    "std": [[1, 0.8828, 0.9024], [-1, -1.1657, -1.1381], [0, 0.7071, 0.8243], [0, 0, -1]],
}


def played(states, failure=None):
    """An episode as the rollout leaves it, of which only the states count; the observation names the state twice."""
    return SimpleNamespace(steps=[SimpleNamespace(state_key=s, observation=s * 2) for s in states], failure=failure)


def batch_of(method, states, outcomes, **values):
    """A batch with the levels that the host finds."""
    batch = literal([[1] * len(s) for s in states], outcomes, **values)
    return batch.with_signals(**method.host_signals(batch, [played(s) for s in states], np.random.default_rng(0)))


@pytest.mark.parametrize("scale", ["none", "std"])
def test_four_episodes(scale):
    method = make("hgpo", discount=1.0, scale=scale)
    found = method.credit(batch_of(method, FOUR, [1, 0, 1, 0])).step_advantage
    np.testing.assert_allclose(found[:4, :3], EXPECTED[scale], **CLOSE)


@pytest.mark.parametrize("zero_levels, last", [("drop", -0.25), ("keep", -0.15)])
def test_a_level_that_says_nothing_is_left_out_as_released(zero_levels, last):
    method = make("hgpo", discount=1.0, history=1, zero_levels=zero_levels)
    found = method.credit(batch_of(method, ["xz", "yz", "xz"], [1, 0, 0.5])).step_advantage
    np.testing.assert_allclose(found[:3, 1], [0.35, -0.5, last], **CLOSE)


def hgpo_loop(episodes, *, alpha=1.0, discount=0.95, scale="none", reward="outcome", base_group=False, zero_levels="drop", penalty=0.0):
    """The advantage of each step by the definition, `{(episode, step): advantage}`."""
    found = {}
    for group in counted_groups(episodes).values():
        returns = {}
        for e in group:
            steps = episodes[e].steps
            rewards = [s.env_reward for s in steps] if reward == "env" else [0.0] * (len(steps) - 1) + [episodes[e].outcome]
            for t, g in enumerate(returns_loop(rewards, discount)):
                returns[e, t] = g - penalty * (not steps[t].executed)
        recent = lambda e, t, k: [s.state for s in episodes[e].steps[t + 1 - k : t + 1]] if t + 1 >= k else None
        for e, t in returns:
            top = bottom = 0.0
            for k in range(0 if base_group else 1, HISTORY + 2):
                mine = recent(e, t, k)
                level = [returns[other] for other in returns if mine is not None and recent(*other, k) == mine]
                if len(level) < 2:
                    continue
                a = returns[e, t] - np.mean(level)
                a = a / (np.std(level) + 1e-6) if scale == "std" else a
                if abs(a) < 1e-9 and zero_levels == "drop":
                    continue
                top, bottom = top + (k + 1) ** alpha * a, bottom + (k + 1) ** alpha
            found[e, t] = top / bottom if bottom else 0.0
    return found


@pytest.mark.parametrize("packing", ["episode", "step"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": "std", "alpha": 0.0},
        {"reward": "env", "discount": 0.5, "base_group": True},
        {"zero_levels": "keep", "invalid_penalty": 0.3},
    ],
)
def test_advantages_are_those_of_the_definition(packing, options):
    episodes = random_episodes(np.random.default_rng(1), groups=(4, 3, 4, 1), failed=(5,), uniform=(2,))
    found = jax.jit(make("hgpo", **options).credit)(pack(episodes, packing)).step_advantage
    expected = hgpo_loop(episodes, **{"penalty" if name == "invalid_penalty" else name: value for name, value in options.items()})
    assert_steps(found, expected)


def test_without_history_it_is_the_step_term_of_gigpo():
    episodes = random_episodes(np.random.default_rng(2))
    batch = pack(episodes)
    batch = batch.with_signals(level_id=batch.signals["anchor_id"][..., None])
    gigpo = make("gigpo").credit(batch).step_advantage - make("dr_grpo").credit(batch).step_advantage
    np.testing.assert_allclose(make("hgpo", history=0).credit(batch).step_advantage, gigpo, atol=1e-5)


def test_the_host_compares_what_the_key_names():
    states, outcomes = ["ab", "cb", "ab"], [1, 0, 0]
    for key in ("state", "observation"):
        method = make("hgpo", history=1, key=key)
        ids = batch_of(method, states, outcomes, groups=[0, 0, 1]).signals["level_id"]
        assert ids.dtype == np.int32 and ids.shape == (14, 5, 2)
        assert ids[:3, :2, 0].tolist() == [[0, 1], [2, 1], [3, 4]]
        assert ids[:3, :2, 1].tolist() == [[-1, 0], [-1, 1], [-1, 2]]
        assert (ids[3:] == -1).all() and (ids[:, 2:] == -1).all()


def test_episodes_that_failed_or_are_masked_have_no_level():
    method, batch = make("hgpo"), literal([[1], [1], [1]], [1, 0, 0])
    batch = batch.replace(episode_mask=batch.episode_mask.at[1].set(False).at[2].set(False))
    episodes = [played("a"), played("a"), played("a", failure="it broke")]
    ids = method.host_signals(batch, episodes, np.random.default_rng(0))["level_id"]
    assert ids[0, 0, 0] == 0 and (ids[1:] == -1).all()


def test_the_last_states_of_a_step():
    assert last_states(["abc"], 2) == [[None, ("a", "b"), ("b", "c")]]
    assert last_states(["ab", ""], 1) == [[("a",), ("b",)], []]


def test_metrics_say_how_many_steps_each_level_compares():
    method = make("hgpo")
    metrics = method.credit(batch_of(method, FOUR, [1, 0, 1, 0])).metrics
    shared = [metrics[f"level_{k}_shared"] for k in (1, 2, 3)]
    np.testing.assert_allclose(shared, [9 / 12, 5 / 12, 2 / 12], rtol=1e-6)


def test_a_number_of_levels_that_does_not_fit_is_refused():
    batch = pack(random_episodes(np.random.default_rng(0)))
    with pytest.raises(ValueError, match=r"history \+ 1 = 4 levels, not the shape \(14, 5, 3\)"):
        make("hgpo", history=3).credit(batch)


def test_the_further_axis_may_have_any_size_but_must_be_there():
    batch = jax.device_get(pack(random_episodes(np.random.default_rng(0))))
    for levels in (1, 7):
        validate(batch.with_signals(level_id=np.zeros((14, 5, levels), np.int32)))
    for shape in ((14, 5), (14, 4, 3), (14, 5, 3, 1)):
        with pytest.raises(ValueError, match=r"level_id'\] has shape .*; it must be \(14, 5, any size\)"):
            validate(batch.with_signals(level_id=np.zeros(shape, np.int32)))
    assert signals.row("level_id").depth == 1 and signals.row("anchor_id").depth == 0
