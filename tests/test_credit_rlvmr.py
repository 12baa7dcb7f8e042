"""RLVMR: the golden value, a plain loop as reference, and the rules that reward tags."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from references import assert_steps, counted_groups, literal, pack, random_episodes

from stepreward.credit import make
from stepreward.credit.rlvmr import released_rule

CLOSE = dict(atol=1e-4, rtol=0)


def test_one_step_of_each_of_three_episodes():
    """Rewards 0.2, 0, 0.4 of one tag; A_traj of the first episode is 0.8660."""
    batch = literal([[1, 1, 1], [1], [1], [1]], [1, 0, 0, 1], rule_reward=[[0.2, 0, 0.4], [0], [0], [0]], tag_id=[[2] * 3, [0], [1], [3]])
    found = make("rlvmr").credit(batch)
    np.testing.assert_allclose(found.step_advantage[0, :3], [0.433, -0.067, 0.933], **CLOSE)
    np.testing.assert_allclose(found.step_advantage[1:4, 0], [-0.433, -0.433, 0.433], **CLOSE)


def rlvmr_loop(episodes, *, alpha=0.5, scope="group", penalty=0.1):
    found, tags = {}, {}
    z = lambda x: (x - x.mean()) / (x.std(ddof=1) + 1e-6) if len(x) > 1 and x.std() > 1e-9 else np.zeros(len(x))
    for g, group in counted_groups(episodes).items():
        for e, a in zip(group, z(np.array([episodes[e].outcome for e in group]))):
            for t, step in enumerate(episodes[e].steps):
                found[e, t] = alpha * a
                tags.setdefault((g if scope == "group" else 0, step.tag_id), []).append((e, t))
    for (_, tag), places in tags.items():
        rewards = np.array([episodes[e].steps[t].rule_reward for e, t in places])
        for place, a in zip(places, z(rewards) if tag >= 0 else np.full(len(places), -penalty)):
            found[place] += (1 - alpha) * a
    return found


@pytest.mark.parametrize("packing", ["episode", "step"])
@pytest.mark.parametrize("options", [{}, {"alpha": 0.2, "scope": "batch"}, {"format_penalty": 0.5}])
def test_advantages_are_those_of_the_definition(packing, options):
    episodes = random_episodes(np.random.default_rng(1), groups=(4, 3, 4, 1), failed=(5,), uniform=(2,))
    found = jax.jit(make("rlvmr", **options).credit)(pack(episodes, packing)).step_advantage
    assert_steps(found, rlvmr_loop(episodes, **{"penalty" if k == "format_penalty" else k: v for k, v in options.items()}))


def test_the_weight_leaves_one_of_the_terms():
    batch = pack(random_episodes(np.random.default_rng(3)))
    np.testing.assert_array_equal(make("rlvmr", alpha=1.0).credit(batch).advantage, make("grpo").credit(batch).advantage)
    only_tags = make("rlvmr", alpha=0.0).credit(batch)
    other = batch.replace(outcome=-batch.outcome)
    np.testing.assert_array_equal(only_tags.advantage, make("rlvmr", alpha=0.0).credit(other).advantage)


@pytest.mark.parametrize(
    "scale, expected",
    [("none", [[1, 0.8333, 0.5], [-1, -1.1667], [-0.1667]]), ("std", [[1.62, 1.4902, 0.9129], [-1.62, -2.0676], [-0.3355]])],
)
def test_the_released_variant(scale, expected):
    """Means over step rows, tags planning and explore; the third step has none. Printed by the release's functions."""
    tag, reward = [[0, 1, -1], [0, 1], [1]], [[1, 1, 0], [0, 0], [1]]
    batch = literal([[1, 1, 1], [1, 1], [1]], [1, 0, 0], rule_reward=reward, tag_id=tag)
    found = make("rlvmr", variant="released", scale=scale).credit(batch).step_advantage
    for row, of_episode in zip(found, expected):
        np.testing.assert_allclose(row[: len(of_episode)], of_episode, **CLOSE)


def test_the_released_rules():
    """Repeated actions are not explored, a first step may reflect, and neither monitor nor an answer without an action has a tag."""
    said = lambda tag, action, executed=True: SimpleNamespace(output=f"<{tag}>x</{tag}>", action=action, executed=executed)
    steps = [said("reflection", "a"), said("explore", "b"), said("explore", "a"), said("planning", "c", False), said("reflection", "c"),
             said("monitor", "d", False), said("reflection", "e"), said("explore", None)]  # fmt: skip
    rule = lambda success: [released_rule(SimpleNamespace(steps=steps, success=success), t) for t in range(len(steps))]
    kept = [("reflection", True), ("explore", True), ("explore", False), ("planning", True), ("reflection", False), (None, False),
            ("reflection", True), (None, False)]  # fmt: skip
    assert rule(True) == kept and rule(False)[3] == ("planning", False)
    episode = SimpleNamespace(steps=steps[:5], failure=None, success=True)
    batch = literal([[1] * 5], [1])
    found = make("rlvmr", variant="released", explore=0.5).host_signals(batch, [episode], np.random.default_rng(0))
    assert found["tag_id"][0].tolist() == [2, 1, 1, 0, 2] and found["rule_reward"][0].tolist() == [1, 0.5, 0, 1, 0]


def step(output, *events, action="look"):
    return SimpleNamespace(output=output, events=events, action=action)


def tagged(tag):
    return f"<{tag}>So.</{tag}><action>look</action>"


@pytest.mark.parametrize(
    "tag, events, success, reward",
    [
        ("planning", (), True, 1.0),
        ("planning", ("new_state",), False, 0.0),
        ("explore", ("new_state",), False, 2.0),
        ("explore", ("recovered",), True, 0.0),
        ("reflection", ("recovered", "new_state"), False, 3.0),
        ("reflection", ("error",), True, 0.0),
        ("monitor", (), False, 4.0),
        ("monitor", ("error",), True, 0.0),
    ],
)
def test_rules(tag, events, success, reward):
    method = make("rlvmr", explore=2.0, reflection=3.0, monitor=4.0)
    assert method.rule(step(tagged(tag), *events), tag, success) == reward
    assert method.rule(step(tagged(tag), *events, action=None), tag, success) == -0.1
    assert method.rule(step("look", *events), None, success) == -0.1
    assert make("rlvmr").rule(step(tagged("monitor")), "monitor", True) == 0.0


def test_the_host_reads_tags_and_events():
    batch = literal([[1, 1, 1], [1], [1]], [1, 0, 0])
    batch = batch.replace(episode_mask=batch.episode_mask.at[1].set(False).at[2].set(False))
    steps = [step(tagged("planning")), step(tagged("EXPLORE"), "new_state"), step("<action>look</action>")]
    episodes = [
        SimpleNamespace(steps=steps, failure=None, success=True),
        SimpleNamespace(steps=steps[:1], failure=None, success=True),
        SimpleNamespace(steps=steps[:1], failure="it broke", success=True),
    ]
    found = make("rlvmr").host_signals(batch, episodes, np.random.default_rng(0))
    assert found["tag_id"].dtype == np.int32 and found["tag_id"][0, :3].tolist() == [0, 1, -1]
    np.testing.assert_allclose(found["rule_reward"][0, :3], [1, 1, -0.1])
    assert (found["tag_id"][1:] == -1).all() and not found["rule_reward"][1:].any()
    metrics = make("rlvmr").credit(batch.with_signals(**found)).metrics
    np.testing.assert_allclose([metrics[f"tag_{name}"] for name in ("planning", "explore", "monitor", "none")], [1 / 3, 1 / 3, 0, 1 / 3])


def test_what_the_environment_must_offer():
    assert make("rlvmr").capabilities == {"events"} and make("rlvmr").needs_group
