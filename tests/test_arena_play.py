"""Episodes in arrays: chains, hand-overs and trees, against what the library's strategies and host functions compute."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepreward import credit
from stepreward.arena import exact, labels, learn, signals, tasks
from stepreward.arena.play import Draws, chain, draw, entropy_branch, handover, levels_of, play, to_batch, tree
from stepreward.batch import validate
from stepreward.credit.adaptation import Rules
from stepreward.credit.filters import Filter, GroupOutcomes
from stepreward.credit.schedules import Standing, parse
from stepreward.envs.automata import automaton
from stepreward.rollout.episode import Episode, Step, Task
from stepreward.rollout.strategies.base import outcome_of
from stepreward.rollout.strategies.restore import cut_points
from stepreward.rollout.strategies.segments import tree_signals

GROUPS, SIZE = 3, 8


def policy_of(task, seed=0, scale=0.7):
    return jax.nn.log_softmax(scale * jnp.asarray(np.random.default_rng(seed).normal(size=(task.num_states, 4)), jnp.float32))


def played(name="key_door_5", seed=0, scale=0.7):
    """`(task, log-policy, episodes, batch)`, with successes and failures."""
    task = tasks.make(name)
    log_policy = policy_of(task, scale=scale) if scale else jax.nn.log_softmax(jnp.zeros((task.num_states, 4)))
    episodes = chain(task, jnp.exp(log_policy), jax.random.key(seed), GROUPS, SIZE)
    return task, log_policy, episodes, to_batch(episodes, log_policy)


def on_the_host(episodes, batch):
    """The episodes as a run's host sees them."""
    found = []
    for e in range(batch.num_episodes):
        steps = [
            types.SimpleNamespace(
                state_key=str(episodes.state[e, t]), observation=str(episodes.state[e, t]), action=str(episodes.action[e, t]),
                log_prob=np.array([batch.log_prob_old[e, t]]),
            )
            for t in range(int(batch.step_mask[e].sum()))
        ]  # fmt: skip
        found.append(types.SimpleNamespace(steps=steps, failure=None, success=bool(batch.success[e])))
    return found


def moment(task, log_policy, episodes, batch, key=0):
    values = exact.values(task, log_policy)
    return signals.Moment(task, episodes, batch, log_policy, log_policy, log_policy, values, values.value, jax.random.key(key))


def test_a_batch_of_chains_is_valid_and_its_outcome_is_the_exact_one():
    task, log_policy, episodes, batch = played("lock", scale=0)
    validate(jax.tree.map(np.asarray, batch))
    many = chain(task, jnp.exp(log_policy), jax.random.key(1), 500, SIZE)
    expected = float(exact.success(task, log_policy))
    assert float(many.success.mean()) == pytest.approx(expected, abs=4 * np.sqrt(expected / 4000))
    occupied = np.asarray(many.mask.mean(axis=0))
    np.testing.assert_allclose(occupied, exact.occupancy(task, log_policy).sum(axis=1), atol=0.05)


def test_the_episodes_of_a_group_share_their_start():
    _, _, episodes, batch = played()
    starts = np.asarray(episodes.state[:, 0]).reshape(GROUPS, SIZE)
    assert (starts == starts[:, :1]).all() and len(set(np.asarray(batch.group_id))) == GROUPS


@pytest.mark.parametrize("name", ["gigpo", "hgpo", "salt"])
def test_ids_of_equal_steps_agree_with_the_host(name):
    task, log_policy, episodes, batch = played("corridor")
    method = credit.make(name)
    (signal,) = method.requires
    ours = np.asarray(signals.PROVIDED[signal](moment(task, log_policy, episodes, batch), method))
    theirs = method.host_signals(batch, on_the_host(episodes, batch), np.random.default_rng(0))[signal]
    ours, theirs = ours.reshape(*theirs.shape[:2], -1), theirs.reshape(*theirs.shape[:2], -1)
    for level in range(ours.shape[2]):
        a, b = ours[..., level], theirs[..., level]
        np.testing.assert_array_equal(a < 0, b < 0)
        pairs = set(zip(a[a >= 0].tolist(), b[a >= 0].tolist()))
        assert len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs}) > 5  # one name for another
        assert ours.max() < batch.step_mask.size


def test_permutations_keep_steps_within_their_episode():
    task, log_policy, episodes, batch = played()
    order = np.asarray(signals.step_permutation(moment(task, log_policy, episodes, batch), None))
    mask = np.asarray(batch.step_mask)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(mask.shape[1]), (len(mask), 1)))
    np.testing.assert_array_equal(np.take_along_axis(mask, order, axis=1), mask)
    assert (order != np.arange(mask.shape[1])).any()


def test_cuts_agree_with_the_strategy():
    task, log_policy, episodes, batch = played("key_door_5", scale=3.0)
    method = credit.make("spo", tokens_per_cut=3, below=0.6)
    ours = np.asarray(signals.cut_points(moment(task, log_policy, episodes, batch), method))
    for row, episode in zip(ours, on_the_host(episodes, batch)):
        assert np.flatnonzero(row).tolist() == cut_points(episode.steps, 0.6, 3)
    assert 0.05 < ours.sum() / np.asarray(batch.step_mask).sum() < 0.9


def test_values_of_continuations_have_the_mean_and_spread_of_played_ones():
    task, log_policy, episodes, batch = played("ice")
    method = credit.make("vineppo", k=2)
    told = moment(task, log_policy, episodes, batch)
    draws = jax.vmap(lambda key: signals.mc_value(told._replace(key=key), method))(jax.random.split(jax.random.key(3), 400))
    at = (0, 0)
    state = jnp.full(4000, episodes.state[at])
    again = play(task, jnp.exp(log_policy), state, 1, draw(jax.random.key(9), 4000, task.max_steps))
    chance = float(again.success.mean())
    found = np.array([x[at] for x in np.asarray(draws)])
    assert found.mean() == pytest.approx(chance, abs=0.05) and found.var() == pytest.approx(chance * (1 - chance) / 2, abs=0.03)


def test_labels_of_progress_agree_with_the_host():
    task, log_policy, episodes, batch = played("detour", seed=3)
    assert np.asarray(batch.success).reshape(GROUPS, SIZE).sum(axis=1).max() > 1
    theirs = credit.make("progrm").labels(batch, on_the_host(episodes, batch))["progress_label"]
    ours = learn.with_labels(credit.make("progrm"), batch, episodes, GROUPS).signals["progress_label"]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert theirs.max() == 1


def test_pooled_outcomes_agree_with_the_host():
    task, log_policy, episodes, batch = played("trap")
    method = credit.make("agentprm_mc")
    theirs = method.labels(batch, on_the_host(episodes, batch))["progress_label"]
    ours = learn.with_labels(method, batch, episodes, GROUPS).signals["progress_label"]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert len(np.unique(theirs)) > 5


def test_distances_adapt_as_on_the_host():
    states = 4
    edge = lambda i: {"from": f"q{i}", "to": f"q{i + 1}", "when": {"n": i + 1}}
    names = [f"q{i}" for i in range(states)]
    rules = Rules(
        automaton({"states": names, "start": "q0", "accepting": ["q3"], "edges": [edge(i) for i in range(3)]}),
        "rank",
        3,
        0.5,
        2.0,
        0.4,
        "paper",
    )
    initial = jnp.asarray(rules.automaton.distances())
    rng = np.random.default_rng(0)
    reached = rng.integers(0, 3, (20, 5)).astype(np.int32)
    reached[:6] = np.minimum(reached[:6], 1)
    success = rng.random(20) < 0.15
    reached[success, -1] = 3
    theirs = rules.begin()
    for row, won in zip(reached, success):
        theirs = rules.after(theirs, row.tolist(), bool(won))
    ours = labels.Distances(initial, jnp.float32(0.4), jnp.int32(0), jnp.zeros(states, jnp.int32))
    ours = labels.adapt(ours, initial, jnp.asarray(reached), jnp.asarray(success), every=3, theta=jnp.float32(2.0))
    np.testing.assert_allclose(ours.distance, theirs.distance)
    assert float(ours.eta) == pytest.approx(theirs.eta) and int(ours.episodes) == theirs.episodes and theirs.updates > 1
    assert tuple(np.asarray(ours.visits).tolist()) == theirs.visits


@pytest.mark.parametrize("kind", ["variance", "top_share"])
def test_filters_keep_the_groups_that_the_host_keeps(kind):
    _, _, _, batch = played("trap")
    won = np.zeros((GROUPS, SIZE), np.float32)
    won[1, :3], won[2, :1] = 1, 1
    batch = batch.replace(outcome=jnp.asarray(won.reshape(-1)))
    kept = np.asarray(learn.filtered(kind, batch, GROUPS).episode_mask).reshape(GROUPS, SIZE)
    expected = Filter(kind=kind).kept([GroupOutcomes(x, x > 0) for x in won])
    assert np.flatnonzero(kept.any(axis=1)).tolist() == expected and (kept.all(axis=1) == kept.any(axis=1)).all()


@pytest.mark.parametrize("text", ["linear(1.0, 0.2, 7)", "success(1, 0, 0.2, 0.8, 3)", "pair_accuracy(0, 0.3)"])
def test_schedules_have_the_values_of_a_run(text):
    schedule, successes = parse(text), (0.1, 0.4, 0.6, 0.7)
    recent = jnp.asarray([np.nan] * 6 + list(successes))
    for iteration, accuracy in ((0, 0.5), (3, 0.8), (9, 0.2)):
        theirs = schedule(Standing(iteration, successes, accuracy))
        assert float(learn.schedule_value(schedule, jnp.int32(iteration), recent, accuracy)) == pytest.approx(float(theirs), abs=1e-6)
    assert float(learn.schedule_value(parse("success(1, 0, 0.2, 0.8)"), jnp.int32(0), jnp.full(10, jnp.nan), 0.5)) == 1


def as_episodes(episodes, parent_steps):
    """Library episodes that share the `Step` objects of shared steps; `parent_steps[e][t]` names a step."""
    known, found = {}, []
    zeros = np.zeros(1, np.float32)
    for e in range(len(episodes.mask)):
        episode = Episode(Task(int(episodes.group[e]), "train", int(episodes.group[e])), success=bool(episodes.success[e]))
        if not episodes.counted[e]:
            episode = Episode(episode.task, end="absent")
        for t in range(int(episodes.mask[e].sum())):
            make = lambda: Step(
                np.zeros(1, np.int32), np.zeros(1, np.int32), zeros, zeros, "", "", "a", float(episodes.reward[e, t]), True, ""
            )
            episode.steps.append(known.setdefault(int(parent_steps[e, t]), make()))
        found.append(episode)
    return found


def test_a_tree_has_the_signals_of_the_strategy():
    task = tasks.make("stopping")  # its episodes end early, so that leaves are absent
    log_policy = policy_of(task)
    episodes = tree(task, jnp.exp(log_policy), jax.random.key(2), GROUPS, SIZE, (2, 2, 2), 2)
    counted, node = np.asarray(episodes.counted), np.asarray(episodes.signals["node_id"])
    assert 0 < counted.sum() < len(counted)
    host = as_episodes(jax.tree.map(np.asarray, episodes._replace(signals={})), node)
    firsts = {id(e.steps[t]) for e in host for t in (0, 2, 4) if len(e.steps) > t}
    groups = [host[i : i + SIZE] for i in range(0, len(host), SIZE)]
    theirs = tree_signals(groups, firsts, "success")
    for e, steps in enumerate(len(x.steps) for x in host):
        for name in ("segment_value", "parent_value"):
            np.testing.assert_allclose(np.asarray(episodes.signals[name])[e, :steps], theirs[name][e], atol=1e-6)
    for name in ("segment_id", "sibling_id"):
        pairs = {
            (int(a), int(b))
            for e, x in enumerate(host)
            for a, b in zip(np.asarray(episodes.signals[name])[e, : len(x.steps)], theirs[name][e])
        }
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) > 5
    assert float(episodes.cost) == len({id(step) for x in host for step in x.steps})
    assert outcome_of(host[0], "success") == float(episodes.success[0])


def test_levels_of_a_tree_fit_its_leaves_and_the_horizon():
    assert levels_of(None, 8, 16, 2) == (2, 2, 2) and levels_of((4, 2), 8, 16, 2) == (4, 2)
    assert levels_of(None, 8, 1, 2) == (8,) and levels_of(None, 8, 3, 2) == (4, 2)
    with pytest.raises(ValueError, match="leaves"):
        levels_of((3, 2), 8, 16, 2)


def test_branches_share_the_steps_before_them():
    task = tasks.make("key_door_5")
    log_policy = policy_of(task)
    options = dict(n0=4, p=0.5, w=0.2, beam=2)
    episodes = entropy_branch(task, jnp.exp(log_policy), jax.random.key(5), 40, SIZE, **options)
    born, state = np.asarray(episodes.signals["born"]).reshape(40, SIZE), np.asarray(episodes.state).reshape(40, SIZE, -1)
    mask, action = np.asarray(episodes.mask), np.asarray(episodes.action)
    assert (born[:, :4] == 0).all() and (born[:, 4:] > 0).mean() > 0.8
    for g, i in np.argwhere(born > 0):
        shared = [(state[g, j, : born[g, i] + 1] == state[g, i, : born[g, i] + 1]).all() for j in range(i)]
        assert any(shared)
    np.testing.assert_array_equal(np.asarray(episodes.next_state)[:, :-1][mask[:, 1:]], np.asarray(episodes.state)[:, 1:][mask[:, 1:]])
    own = mask & (np.arange(mask.shape[1]) >= born.reshape(-1, 1))
    assert float(episodes.cost) == own.sum() and action[mask].max() < 4
    share = own[:, 0].sum() / own.shape[0]
    assert share < 0.7  # most of the others left an episode after its first step


def test_the_expert_begins_the_episodes_of_a_handover():
    task = tasks.make("key_door_5")
    log_policy, expert = policy_of(task), jnp.exp(exact.expert(task))
    whole = handover(task, jnp.exp(log_policy), expert, jnp.float32(1.0), jax.random.key(0), GROUPS, SIZE)
    assert (np.asarray(whole.mask & ~whole.sampled).sum(axis=1) == 6).all() and np.asarray(whole.sampled).any(
        axis=1
    ).all()  # the best path has 7
    half = handover(task, jnp.exp(log_policy), expert, jnp.float32(0.5), jax.random.key(0), GROUPS, SIZE)
    assert (np.asarray(half.mask & ~half.sampled).sum(axis=1) == 3).all()
    batch = to_batch(half, log_policy)
    validate(jax.tree.map(np.asarray, batch))
    assert not (np.asarray(batch.action_mask) & ~np.asarray(half.sampled)).any()
    none = handover(task, jnp.exp(log_policy), expert, jnp.float32(0.0), jax.random.key(0), GROUPS, SIZE)
    assert np.asarray(none.mask == none.sampled).all()


def test_equal_draws_give_equal_episodes():
    task = tasks.make("ice")
    draws = draw(jax.random.key(0), SIZE, task.max_steps)
    same = Draws(*(jnp.tile(x[:1], (SIZE, 1)) for x in draws))
    episodes = play(task, jnp.exp(policy_of(task)), jnp.zeros(SIZE, jnp.int32), 1, same)
    assert all((np.asarray(x) == np.asarray(x)[:1]).all() for x in (episodes.state, episodes.action, episodes.mask))
    assert dataclasses.is_dataclass(task)
