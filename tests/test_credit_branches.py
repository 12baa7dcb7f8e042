"""VinePPO, SPO, TreeRPO and ARPO: golden values, plain loops as references, identities, and weights with which a shared step counts once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import literal, pack, random_episodes, sharing, tree_loop, vine_loop

from stepreward.credit import make, step_mask
from stepreward.credit.branches import numbered, sharers

CLOSE = dict(atol=1e-4, rtol=0)
NAN = float("nan")


def tree(outcomes=(1, 1, 1, 0), **options):
    """A root with the children 0 and 1, each of which has two leaves: [[1, 1], [1, 0]] by default. One step is a segment."""
    a, b, c, d = outcomes
    left, right = (a + b) / 2, (c + d) / 2
    signals = {
        "node_id": [[0, 2], [0, 3], [1, 4], [1, 5]],
        "segment_id": [[0, 2], [0, 3], [1, 4], [1, 5]],
        "sibling_id": [[9, 0], [9, 0], [9, 1], [9, 1]],
        "segment_value": [[left, a], [left, b], [right, c], [right, d]],
        "parent_value": [[(left + right) / 2, left]] * 2 + [[(left + right) / 2, right]] * 2,
    }
    return literal([[1, 1]] * 4, outcomes, signals=signals, **options)


@pytest.mark.parametrize("values, expected", [([0.5, 0.75, 0.25], [0.25, -0.5, 0.75]), ([0.5, NAN, NAN], [0.5, 0, 0])])
def test_vineppo_is_the_change_of_values(values, expected):
    found = make("vineppo").credit(literal([[1, 1, 1]], [1], signals={"mc_value": [values]}))
    np.testing.assert_allclose(found.step_advantage[0, :3], expected, **CLOSE)
    assert found.token_weight is None


def test_an_unknown_value_between_known_ones_is_that_of_the_next_state():
    batch = literal([[1, 1, 1]], [1], signals={"mc_value": [[0.5, NAN, 0.25]]})
    np.testing.assert_allclose(make("vineppo").credit(batch).step_advantage[0, :3], [-0.25, 0, 0.75], **CLOSE)
    found = make("spo", probability_mask=False).credit(batch)  # the segment of the first two steps has one advantage
    np.testing.assert_allclose(found.step_advantage[0, :3], [-0.25, -0.25, 0.75], **CLOSE)


def test_an_unfinished_episode_gets_the_penalty_as_released():
    batch = literal([[1], [1]], [1, 1], signals={"mc_value": [[0.5], [0.5]]})
    batch = batch.replace(truncated=batch.truncated.at[1].set(True))
    np.testing.assert_allclose(make("vineppo", variant="released").credit(batch).step_advantage[:2, 0], [0.5, -0.5], **CLOSE)
    assert make("vineppo", variant="paper").k == make("vineppo", variant="released").k == 9


@pytest.mark.parametrize(
    "name, options, root, leaves",
    [
        ("spo", {"form": "tree"}, 0.25, 0.5),
        ("spo", {"form": "tree", "scale": "grpo"}, 1.0, 1.0),
        ("treerpo", {"ddof": 0}, 1.0, 1.0),
        ("treerpo", {}, 0.7071, 0.7071),
        ("treerpo", {"scale": "none"}, 0.25, 0.5),
        ("treerpo", {"renormalise": True}, 0.25 / np.sqrt(0.75 * 0.25), 1.0),
    ],
)
def test_edges_of_a_tree(name, options, root, leaves):
    """Leaves [[1, 1], [1, 0]]: nodes 1 and 0.5, root 0.75. The left leaves do not differ, and are left out of the loss."""
    found = make(name, **options).credit(tree())
    np.testing.assert_allclose(found.step_advantage[:4, :2], [[root, 0], [root, 0], [-root, leaves], [-root, -leaves]], **CLOSE)
    weight = np.asarray(found.token_weight)[:4, [1, 3]]  # a token of an observation is before each answer
    np.testing.assert_allclose(weight, [[0.5, 0], [0.5, 0], [0.5, 1], [0.5, 1]], **CLOSE)


def test_sets_of_siblings_that_hardly_differ_are_pruned():
    batch = tree((0.5, 0.55, 1, 0))  # nodes 0.525 and 0.5
    found = make("treerpo").credit(batch)
    np.testing.assert_allclose(np.asarray(found.token_weight)[:4, [1, 3]], [[0, 0], [0, 0], [0, 1], [0, 1]], **CLOSE)
    assert not found.step_advantage[:2].any() and found.metrics["tokens_left_out"] == 6 / 8
    assert (np.asarray(make("treerpo", tau=0.02).credit(batch).token_weight)[:4, [1, 3]] > 0).all()


@pytest.mark.parametrize("ddof, own, shared", [(0, [1.7321, -0.5774], 0.5774), (1, [1.5, -0.5], 0.5)])
def test_arpo_averages_shared_steps_if_hard(ddof, own, shared):
    node = [[0, 1], [0, 2], [3, 4], [5, 6]]
    batch = literal([[1, 1]] * 4, [1, 0, 0, 0], signals={"node_id": node})
    win, loss = own
    hard = make("arpo", advantage="hard", ddof=ddof).credit(batch)
    np.testing.assert_allclose(hard.step_advantage[:4, :2], [[shared, win], [shared, loss], [loss] * 2, [loss] * 2], **CLOSE)
    soft = make("arpo", ddof=ddof).credit(batch)
    np.testing.assert_allclose(soft.step_advantage[:4, :2], [[win] * 2, [loss] * 2, [loss] * 2, [loss] * 2], **CLOSE)
    assert hard.token_weight is None and make("arpo").requires == frozenset()


# --- Random episodes against plain loops ---


@pytest.fixture(scope="module")
def episodes():
    return random_episodes(np.random.default_rng(1), groups=(4, 3, 4, 1), failed=(5,), uniform=(2,))


def of_steps(found, shape):
    out = np.zeros(shape, np.float32)
    for (e, t), value in found.items():
        out[e, t] = value
    return out


def check(method, episodes, packing, advantages, weights=None):
    batch = pack(episodes, packing)
    found = jax.jit(method.credit)(batch)
    expected = of_steps(advantages, batch.step_mask.shape)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found.step_advantage, expected, atol=2e-5)
    if weights is not None:
        weight_ExS = of_steps(weights, batch.step_mask.shape)
        assert {0.0, 0.5} <= set(np.round(weight_ExS[np.asarray(step_mask(batch))], 3).tolist())
        step_id = np.asarray(batch.step_id)
        of_tokens = np.where(step_id >= 0, weight_ExS.reshape(-1)[np.maximum(step_id, 0)], 0.0)
        np.testing.assert_allclose(found.token_weight, of_tokens, atol=1e-6)
    return found, batch


each_packing = pytest.mark.parametrize("packing", ["episode", "step"])


@each_packing
def test_vineppo_is_the_loop(episodes, packing):
    check(make("vineppo"), episodes, packing, vine_loop(episodes))


@each_packing
def test_spo_on_a_chain_is_the_loop(episodes, packing):
    found, batch = check(make("spo"), episodes, packing, vine_loop(episodes, segments=True))
    known = of_steps({key: 1.0 for key, a in vine_loop(episodes, segments=True).items() if a}, batch.step_mask.shape)
    weight, p = np.asarray(found.token_weight), np.exp(np.asarray(batch.log_prob_old))
    for r, l in zip(*np.nonzero(np.asarray(batch.action_mask))):
        e, t = divmod(int(batch.step_id[r, l]), batch.max_steps)
        assert weight[r, l] == (episodes[e].counted and known[e, t] and p[r, l] < 0.9)


def edge(step, children):
    difference = step.segment_value - step.parent_value
    return None if np.isnan(difference) or abs(difference) < 1e-6 else difference


def scaled_edge(step, children):
    found = edge(step, children)
    return found if found is None else found / (children.std() + 1e-6) if children.std() > 0 else 0.0


def relative(ddof=1, tau=0.1, scale=True):
    def advantage(step, children):
        if len(children) < 2 or children.max() - children.min() < tau:
            return None
        return (step.segment_value - children.mean()) / (children.std(ddof=ddof) + 1e-6 if scale else 1.0)

    return advantage


@each_packing
@pytest.mark.parametrize(
    "name, options, advantage",
    [
        ("spo", {"form": "tree"}, edge),
        ("spo", {"form": "tree", "scale": "grpo"}, scaled_edge),
        ("treerpo", {}, relative()),
        ("treerpo", {"ddof": 0, "tau": 0.3}, relative(0, 0.3)),
        ("treerpo", {"scale": "none"}, relative(scale=False)),
    ],
)
def test_trees_are_the_loop(episodes, packing, name, options, advantage):
    found = tree_loop(episodes, advantage)
    check(make(name, **options), episodes, packing, {k: a for k, (a, _) in found.items()}, {k: w for k, (_, w) in found.items()})


@each_packing
@pytest.mark.parametrize("ddof", [0, 1])
def test_arpo_is_the_loop(episodes, packing, ddof):
    own, means = {}, {}
    for e, episode in enumerate(episodes):
        outcomes = np.array([other.outcome for other in episodes if other.counted and other.group == episode.group])
        std = outcomes.std(ddof=ddof) if len(outcomes) > 1 else 0.0
        own[e] = (episode.outcome - outcomes.mean()) / (std + 1e-6) if episode.counted and std > 1e-9 else 0.0
    for e, episode in enumerate(episodes):
        for t, step in enumerate(episode.steps if episode.counted else ()):
            same = [
                own[o]
                for o, other in enumerate(episodes)
                if other.counted and other.group == episode.group and any(s.node_id == step.node_id for s in other.steps)
            ]
            means[e, t] = np.mean(same)
            assert len(same) == round(1 / sharing(episodes, e, t))
    check(make("arpo", advantage="hard", ddof=ddof), episodes, packing, means)


# --- Identities ---


def test_vineppo_sums_to_the_outcome_minus_the_first_value(episodes):
    batch = pack(episodes)
    values = jnp.where(jnp.isnan(batch.signals["mc_value"]), 0.3, batch.signals["mc_value"])
    found = np.asarray(make("vineppo").credit(batch.with_signals(mc_value=values)).step_advantage)
    counted = np.asarray(step_mask(batch)).any(axis=1)
    np.testing.assert_allclose(found.sum(axis=1)[counted], (batch.outcome - values[:, 0])[counted], atol=1e-5)


def test_with_all_values_known_spo_without_a_mask_is_vineppo(episodes):
    batch = pack(episodes)
    batch = batch.with_signals(mc_value=jnp.where(jnp.isnan(batch.signals["mc_value"]), 0.3, batch.signals["mc_value"]))
    spo = make("spo", probability_mask=False).credit(batch)
    np.testing.assert_array_equal(spo.advantage, make("vineppo").credit(batch).advantage)


def test_values_of_the_outcome_alone_leave_all_credit_to_the_last_step(episodes):
    """A policy whose chances stay the same until the end: only the last action mattered."""
    batch = pack(episodes)
    found = np.asarray(make("vineppo").credit(batch.with_signals(mc_value=jnp.full(batch.step_mask.shape, 0.5))).step_advantage)
    for e, episode in enumerate(episodes):
        if episode.counted:
            np.testing.assert_allclose(
                found[e, : len(episode.steps)], [0.0] * (len(episode.steps) - 1) + [episode.outcome - 0.5], atol=1e-6
            )


def test_treerpo_of_a_star_is_grpo(episodes):
    """One set of siblings whose segments are whole episodes: the outcome method, with equal outcomes left out."""
    batch = pack(episodes)
    whole_ExS = jnp.broadcast_to(jnp.arange(batch.num_episodes)[:, None], batch.step_mask.shape)
    own_ExS = jnp.arange(batch.step_mask.size).reshape(batch.step_mask.shape)
    outcome_ExS = jnp.broadcast_to(batch.outcome[:, None], batch.step_mask.shape)
    star = dict(node_id=own_ExS, segment_id=whole_ExS, sibling_id=jnp.zeros_like(whole_ExS), segment_value=outcome_ExS)
    found = make("treerpo", tau=0.0).credit(batch.with_signals(**star))
    np.testing.assert_allclose(found.advantage, make("grpo").credit(batch).advantage, atol=1e-5)
    np.testing.assert_array_equal(found.token_weight > 0, batch.action_mask & (found.token_weight > 0))


def test_arpo_without_branches_is_grpo_both_ways(episodes):
    batch = pack(episodes)
    expected = make("grpo").credit(batch).advantage
    np.testing.assert_allclose(make("arpo").credit(batch).advantage, expected, atol=1e-6)
    alone = batch.with_signals(node_id=jnp.full(batch.step_mask.shape, -1, jnp.int32))
    np.testing.assert_allclose(make("arpo", advantage="hard").credit(alone).advantage, expected, atol=1e-6)


# --- Unknown values and ids ---


@pytest.mark.parametrize("name", ["vineppo", "spo", "spo-tree", "treerpo"])
def test_nothing_known_gives_no_credit_and_no_nan(name, episodes):
    method = make("spo", form="tree") if name == "spo-tree" else make(name)
    batch = pack(episodes)
    nothing = {k: jnp.full(batch.step_mask.shape, jnp.nan) for k in ("mc_value", "segment_value", "parent_value")}
    if name == "vineppo":
        nothing["mc_value"] = nothing["mc_value"].at[:, 0].set(0.0)  # else the outcome is the value of every state
    found = method.credit(batch.with_signals(**nothing))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    if name == "vineppo":
        np.testing.assert_allclose(found.step_advantage[:, 0], jnp.where(step_mask(batch)[:, 0], batch.outcome, 0.0))
    else:
        assert not found.advantage.any() and not found.token_weight.any()


def test_steps_without_an_id_count_as_their_own():
    batch = tree()
    found = make("treerpo").credit(batch.with_signals(node_id=jnp.full_like(batch.signals["node_id"], -1)))
    np.testing.assert_array_equal(np.asarray(found.token_weight)[:4, [1, 3]], [[1, 0], [1, 0], [1, 1], [1, 1]])


def test_ids_are_those_of_a_group():
    """The same ids in two groups are different nodes, and ids may be any numbers."""
    batch = literal([[1, 1]] * 4, [1, 0, 1, 0], groups=[0, 0, 1, 1], signals={"node_id": [[7, 10**9], [7, 8], [7, -1], [8, -1]]})
    node = numbered(batch.signals["node_id"], batch)
    np.testing.assert_array_equal(sharers(node)[:4, :2], [[2, 1], [2, 1], [1, 1], [1, 1]])
    number = np.asarray(node.number)
    assert number[0, 0] == number[1, 0] != number[2, 0] and 0 <= number.min() and number.max() < number.size


def test_a_failed_episode_does_not_share():
    batch = tree()
    without = batch.replace(episode_mask=batch.episode_mask.at[0].set(False))
    found = make("treerpo", tau=0.0).credit(without)
    np.testing.assert_array_equal(np.asarray(found.token_weight)[:4, [1, 3]], [[0, 0], [1, 1], [0.5, 1], [0.5, 1]])
