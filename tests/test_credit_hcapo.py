"""HCAPO: golden values, a plain loop as reference, and steps without hindsight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import assert_steps, counted_groups, literal, pack, random_episodes

from stepreward.credit import make

CLOSE = dict(atol=2e-4, rtol=0)


def hcapo(**options):
    """Mean log-probabilities −1, −2, −3 of a success (over two tokens, one and two), and −2, −2 of a failure."""
    hindsight = [[-0.5, -1.5, -2.0, -3.0, -3.0], [-2.0, -2.0]]
    return make("hcapo", discount=0.5, **options).credit(literal([[2, 1, 2], [1, 1]], [1, 0], log_prob_hindsight=hindsight))


def test_two_episodes():
    found = hcapo()
    np.testing.assert_allclose(found.step_reward[:2, :3], [[0.3, 0.4934, 0.8079], [0, 0, 0]], **CLOSE)
    np.testing.assert_allclose(found.step_advantage[0, :3], [1, 1.5627, 2.585], **CLOSE)
    np.testing.assert_allclose(found.step_advantage[1, :2], [-2.0409] * 2, **CLOSE)
    np.testing.assert_allclose(found.metrics["hindsight_clipped"], 1 / 5, rtol=1e-6)
    np.testing.assert_allclose(hcapo(positive=False).step_advantage[0, 0], 0.9341, **CLOSE)


def test_smoothed_returns():
    found = hcapo(smooth=True).step_advantage
    np.testing.assert_allclose(found[0, :3], [1.0777, 1.8469, 2.3232], **CLOSE)
    np.testing.assert_allclose(found[1, :2], [-2.1238] * 2, **CLOSE)


def hcapo_loop(episodes, *, omega=1.0, discount=0.95, smooth=False, scope="group", positive=True, ddof=0):
    z = lambda x: (x - x.mean()) / (x.std(ddof=ddof) + 1e-6) if len(x) > 1 and x.std() > 1e-9 else np.zeros(len(x))
    found = {}
    for group in counted_groups(episodes).values():
        returns = {}
        for e in group:
            h = np.array([np.exp(step.log_prob_hindsight.mean() / 5) for step in episodes[e].steps])
            q = np.clip(h / h.mean(), 0.8, 1.2) * discount ** np.arange(len(h))[::-1] * episodes[e].outcome
            q = np.append((q[:-1] + q[1:]) / 2, q[-1]) if smooth else q
            returns |= {(e, t): x for t, x in enumerate(q)}
        of_episode = dict(zip(group, z(np.array([episodes[e].outcome for e in group]))))
        for index in range(5 if scope == "index" else 1):
            units = {place: q for place, q in returns.items() if scope == "group" or place[1] == index}
            for (e, t), a in zip(units, z(np.array(list(units.values()))) if units else ()):
                found[e, t] = of_episode[e] + omega * (max(a, 0) if positive and episodes[e].success else a)
    return found


@pytest.mark.parametrize("packing", ["episode", "step"])
@pytest.mark.parametrize("options", [{}, {"scope": "index", "smooth": True, "omega": 0.5}, {"ddof": 1, "positive": False, "discount": 0.5}])
def test_advantages_are_those_of_the_definition(packing, options):
    episodes = random_episodes(np.random.default_rng(1), groups=(4, 3, 4, 1), failed=(5,), uniform=(2,))
    found = jax.jit(make("hcapo", **options).credit)(pack(episodes, packing)).step_advantage
    assert_steps(found, hcapo_loop(episodes, **options), atol=1e-4)


def test_without_its_weight_it_is_the_outcome_method():
    batch = pack(random_episodes(np.random.default_rng(3)))
    np.testing.assert_allclose(make("hcapo", omega=0.0, ddof=1).credit(batch).advantage, make("grpo").credit(batch).advantage, atol=1e-6)


def test_only_the_differences_of_log_probabilities_within_an_episode_count():
    """A shift of a whole episode leaves ρ as it is, even where every probability is 0 in float32."""
    batch = pack(random_episodes(np.random.default_rng(3)))
    shifted = batch.with_signals(log_prob_hindsight=batch.signals["log_prob_hindsight"] - 3000.0)
    np.testing.assert_allclose(make("hcapo").credit(batch).advantage, make("hcapo").credit(shifted).advantage, atol=3e-3)


def test_steps_without_hindsight_have_the_ratio_one():
    batch = literal([[1, 1, 1], [1]], [1, 0], log_prob_hindsight=[[-1.0, np.nan, -2.0], [np.nan]])
    found = make("hcapo", discount=1.0, clip_low=0.0, clip_high=9.0).credit(batch)
    h = np.exp(np.array([-0.2, -0.4]))
    first, last = h / h.mean()
    np.testing.assert_allclose(found.step_reward[0, :3], [first, 1, last], atol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    np.testing.assert_allclose(found.metrics["hindsight_unknown"], 0.5)
    nothing = batch.with_signals(log_prob_hindsight=jnp.full_like(batch.log_prob_old, jnp.nan))
    np.testing.assert_allclose(make("hcapo", discount=1.0).credit(nothing).step_reward[0, :3], [1, 1, 1])
