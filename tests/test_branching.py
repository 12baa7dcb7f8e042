"""Strategies whose episodes share steps: what is played, the tree's ids and values, and that everything counts once."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import restarting
from test_collect import KEY, chat, params  # noqa: F401  (fixtures)
from test_play import GROUPED, Told, on_sokoban
from test_strategies import LIMIT, Drawing, walk

from stepreward.envs.protocol import EXPERT
from stepreward.report import read_episodes, write_episodes, write_report
from stepreward.report.episode_html import episode_html, plain_board
from stepreward.report.episodes import list_episodes
from stepreward.report.tree_html import tree_html
from stepreward.rollout import strategies
from stepreward.rollout.checked import checked
from stepreward.rollout.engine import Answer
from stepreward.rollout.environments import EnvironmentPool
from stepreward.rollout.episode import ABSENT, PAUSED, STEP_LIMIT, TERMINATED, Cost, Episode, Start, Step, Task, to_record
from stepreward.rollout.packing import pack
from stepreward.rollout.strategies.entropy import branch_probability
from stepreward.rollout.strategies.restore import cut_points
from stepreward.rollout.strategies.segments import tree_record, tree_signals


def groups_of(size, seeds=(0, 1)):
    """The walks from places 0 and 1 to place 3, each `size` times."""
    return [Task(seed, "train", group) for group, seed in enumerate(seeds) for _ in range(size)]


def step_of(log_prob=(), reward=0.0):
    """A step with tokens of given log-probabilities."""
    tokens = np.arange(len(log_prob), dtype=np.int32)
    return Step(tokens, tokens, np.array(log_prob, np.float32), np.zeros(len(log_prob), np.float32), "", "", "up", reward, True, "")


def ended(*steps, outcome=0.0):
    """An episode of some steps; its last one gets the outcome as its reward."""
    return Episode(Task(0, "train", 0), [*steps[:-1], dataclasses.replace(steps[-1], reward=outcome)], end=TERMINATED)


# --- Episodes that are paused and played on ---


@pytest.mark.parametrize("way", ["snapshot", "replay"])
@pytest.mark.parametrize("context, reuse_cache", [("step", True), ("episode", True), ("episode", False)])
def test_a_paused_episode_plays_on_as_if_it_had_not_been_paused(chat, params, context, reuse_cache, way):  # noqa: F811
    collector = on_sokoban(chat, context, reuse_cache)
    whole = collector.collect(params, GROUPED, KEY)
    paused = collector.play(params, [Start(task) for task in GROUPED], KEY, keep=way == "snapshot", turns=2)
    assert [(episode.end, len(episode.steps), episode.truncated) for episode in paused] == [(PAUSED, 2, False)] * 6
    again = collector.play(params, [Start.after(episode) for episode in paused], KEY)
    for one, other in zip(whole, again, strict=True):
        assert (one.end, one.success, one.final_observation) == (other.end, other.success, other.final_observation)
        for step, same in zip(one.steps, other.steps, strict=True):
            np.testing.assert_array_equal(step.prompt_tokens, same.prompt_tokens)
            np.testing.assert_array_equal(step.action_tokens, same.action_tokens)
            assert (step.observation, step.reward) == (same.observation, same.reward)


def test_an_episode_that_ended_is_not_paused(chat):  # noqa: F811
    played = walk(chat, 1.0).play(None, [Start(task) for task in groups_of(1)], KEY, keep=True, turns=2)
    assert [episode.end for episode in played] == [PAUSED, TERMINATED]
    with pytest.raises(ValueError, match="only a paused episode can be played on, and this one ended: terminated"):
        Start.after(played[1])
    (limited,) = walk(chat, 0.0).play(None, [Start(Task(0, "train", 0))], KEY, turns=LIMIT)
    assert limited.end == STEP_LIMIT
    with pytest.raises(ValueError, match="turns=0: play at least 1 turn"):
        walk(chat, 1.0).play(None, [Start(Task(0, "train", 0))], KEY, turns=0)


# --- The tree ---


def test_the_golden_tree():
    """Leaves [[1, 1], [1, 0]]: the parents are worth 1 and 0.5, the root 0.75."""
    left, right = step_of(), step_of()
    leaves = [ended(left, step_of(), outcome=1.0), ended(left, step_of(), outcome=1.0)]
    leaves += [ended(right, step_of(), outcome=1.0), ended(right, step_of(), outcome=0.0)]
    firsts = {id(step) for episode in leaves for step in episode.steps}
    found = {name: [row.tolist() for row in rows] for name, rows in tree_signals([leaves], firsts, "return").items()}
    assert found == {
        "node_id": [[0, 1], [0, 2], [3, 4], [3, 5]],
        "segment_id": [[0, 1], [0, 2], [3, 4], [3, 5]],
        "sibling_id": [[0, 1], [0, 1], [0, 2], [0, 2]],
        "segment_value": [[1.0, 1.0], [1.0, 1.0], [0.5, 1.0], [0.5, 0.0]],
        "parent_value": [[0.75, 1.0], [0.75, 1.0], [0.75, 0.5], [0.75, 0.5]],
    }


def test_a_failed_leaf_is_left_out_and_a_node_without_leaves_has_no_value():
    left, right = step_of(), step_of()
    leaves = [ended(left, step_of(), outcome=1.0), ended(left, step_of(), outcome=0.0)]
    leaves += [ended(right, step_of(), outcome=1.0), ended(right, step_of(), outcome=1.0), Episode(Task(0, "train", 0), end=ABSENT)]
    for failed in (0, 2, 3):
        leaves[failed].failure = "broken"
    found = tree_signals([leaves], {id(step) for episode in leaves for step in episode.steps}, "return")
    assert [row.tolist() for row in found["segment_value"]][1] == [0.0, 0.0] and found["parent_value"][1].tolist() == [0.0, 0.0]
    assert [row.tolist() for row in found["segment_id"]] == [[-1, -1], [0, 1], [-1, -1], [-1, -1], []]
    assert np.isnan(found["segment_value"][2]).all() and np.isnan(found["parent_value"][3]).all()


def check_tree(rollout, group_size):
    """Compares ids and values with a plain recursion over what the episodes share."""
    signals, episodes = rollout.signals, rollout.episodes
    total = sum(len(episode.steps) for episode in episodes)
    rows = {name: np.concatenate(signals[name]) for name in ("node_id", "segment_id", "sibling_id")}
    assert all(row.max() < total for row in rows.values())
    owner = {}
    for e, episode in enumerate(episodes):
        for step, number in zip(episode.steps, signals["node_id"][e], strict=True):
            if episode.counts:
                assert owner.setdefault(int(number), id(step)) == id(step)  # one id for one step
    assert len(set(owner.values())) == len(owner)
    for first in range(0, len(episodes), group_size):
        whole = [e for e in range(first, first + group_size) if episodes[e].counts]

        def value(path):
            """The value of the node after the segments of `path`."""
            below = [e for e in whole if runs(signals["segment_id"][e])[: len(path)] == path]
            deeper = {
                tuple(runs(signals["segment_id"][e])[: len(path) + 1]) for e in below if len(runs(signals["segment_id"][e])) > len(path)
            }
            ends = [episodes[e].episode_return for e in below if len(runs(signals["segment_id"][e])) == len(path)]
            return np.mean([value(list(each)) for each in deeper] + ends)

        for e in whole:
            path = runs(signals["segment_id"][e])
            for t in range(len(episodes[e].steps)):
                depth = path.index(signals["segment_id"][e][t])
                np.testing.assert_allclose(signals["segment_value"][e][t], value(path[: depth + 1]), rtol=1e-6)
                np.testing.assert_allclose(signals["parent_value"][e][t], value(path[:depth]), rtol=1e-6)
                for other in whole:  # siblings start from the same node
                    theirs = runs(signals["segment_id"][other])
                    if len(theirs) > depth:
                        starts = signals["sibling_id"][other][list(signals["segment_id"][other]).index(theirs[depth])]
                        assert (starts == signals["sibling_id"][e][t]) == (theirs[:depth] == path[:depth])


def runs(ids):
    """The segments of an episode in their order."""
    return [int(x) for i, x in enumerate(ids) if i == 0 or x != ids[i - 1]]


@pytest.mark.parametrize("context", ["step", "episode"])
@pytest.mark.parametrize("capabilities", [("snapshot",), ("replay",)])
def test_a_tree_counts_shared_steps_once(chat, capabilities, context):  # noqa: F811
    collector = walk(chat, 1.0, context=context, capabilities=capabilities)
    rollout = strategies.make("tree", segment_steps=1)(collector.player(None), groups_of(4), KEY)  # branching (2, 2)
    # Three steps from place 0, two from place 1: 2 first steps and 4 rests each.
    assert rollout.cost[:2] == (2 + 4 * 2 + 2 + 4 * 1, 0 if capabilities == ("snapshot",) else 8)
    assert [len(episode.steps) for episode in rollout.episodes] == [3] * 4 + [2] * 4 and rollout.branch_steps == 0
    assert [row.tolist() for row in rollout.signals["segment_value"]] == [[6.0] * 3] * 4 + [[5.0] * 2] * 4
    assert rollout.counts == {"failed_branches": 0, "absent_leaves": 0}
    assert all(step.snapshot is None for episode in rollout.episodes for step in episode.steps)
    check_tree(rollout, 4)


def test_an_early_end_is_one_leaf(chat):  # noqa: F811
    rollout = strategies.make("tree", branching=[2, 3], segment_steps=2)(walk(chat, 1.0).player(None), groups_of(6), KEY)
    assert [episode.end for episode in rollout.episodes[6:]] == [TERMINATED, ABSENT, ABSENT, TERMINATED, ABSENT, ABSENT]
    assert rollout.counts == {"failed_branches": 0, "absent_leaves": 4}
    assert rollout.cost.env_steps == 2 * 2 + 6 * 1 + 2 * 2
    batch = pack(rollout.episodes, context="step", max_steps=LIMIT, row_length=64, row_multiple=1, pad_id=0)
    assert batch.episode_mask.tolist() == [True] * 6 + [True, False, False] * 2
    arrays = rollout.arrays(LIMIT)
    assert arrays["node_id"].dtype == np.int32 and arrays["node_id"][7].tolist() == [-1] * LIMIT
    assert arrays["segment_value"].dtype == np.float32 and arrays["segment_value"][6].tolist() == [5.0, 5.0, 0.0, 0.0]


def test_a_level_of_one_child_starts_no_segment(chat):  # noqa: F811
    rollout = strategies.make("tree", branching=(2, 1), segment_steps=1)(walk(chat, 1.0).player(None), groups_of(2), KEY)
    assert all(len(set(row.tolist())) == 1 for row in rollout.signals["segment_id"])


@pytest.mark.parametrize("up", [0.3, 0.6])
def test_random_trees_agree_with_the_reference(chat, up):  # noqa: F811
    make = strategies.make("tree", branching=(2, 2, 2), segment_steps=1)
    rollout = make(walk(chat, up).player(None), groups_of(8), KEY)
    assert len({row.tobytes() for row in rollout.signals["segment_value"]}) > 2
    check_tree(rollout, 8)
    again = make(walk(chat, up, capabilities=("replay",)).player(None), groups_of(8), KEY)
    for name, rows in rollout.signals.items():
        for one, other in zip(rows, again.signals[name], strict=True):
            np.testing.assert_array_equal(one, other)


def test_where_nothing_can_be_restored_one_child_goes_on(chat):  # noqa: F811
    """The environment of a paused episode is still in its state, so the first child of each node needs no restoring."""
    collector = walk(chat, 1.0, fault="restore: raise", only_seed=None)
    rollout = strategies.make("tree", branching=(2, 2), segment_steps=2)(collector.player(None), groups_of(4), KEY)
    assert [episode.failure is None for episode in rollout.episodes] == [True, False] * 2 + [True] * 4  # place 1 needs no restoring
    assert rollout.counts == {"failed_branches": 2, "absent_leaves": 2}
    assert [row.tolist() for row in rollout.signals["segment_id"][:2]] == [[0, 0, 1], [-1, -1]]
    assert np.isnan(rollout.signals["segment_value"][1]).all()
    assert rollout.signals["segment_value"][4].tolist() == [5.0, 5.0]
    # With another call in between, the paused environments may be in any state: nothing goes on in place.
    paused = collector.play(None, [Start(task) for task in groups_of(1)], KEY, keep=True, turns=1)
    starts = [Start.after(episode) for episode in paused]
    collector.pool.call(0, "capabilities")
    assert all("the server is gone" in episode.failure for episode in collector.play(None, starts, KEY))


def test_paused_episodes_go_on_in_place_in_any_order_and_number(chat, params):  # noqa: F811
    """Six episodes in four rows: the last four to play are paused in place. Two of these lose their environments to the first two."""
    collector = on_sokoban(chat, "step", max_rows=4)
    whole = collector.collect(params, GROUPED, KEY)
    paused = collector.play(params, [Start(task) for task in GROUPED], KEY, keep=True, turns=2)
    asked = []
    call_all = collector.pool.call_all
    collector.pool.call_all = lambda calls: asked.extend(one.method for call in calls for one in call) or call_all(calls)
    order = [5, 0, 3, 1, 4, 2]
    starts = [Start.after(paused[index]) for index in order]
    again = collector._play(params, starts, KEY, False, None, False, order)
    assert asked.count("restore") == 4 and "reset" not in asked
    for index, episode in zip(order, again, strict=True):
        assert [step.action_tokens.tolist() for step in episode.steps] == [step.action_tokens.tolist() for step in whole[index].steps]
        assert [step.observation for step in episode.steps] == [step.observation for step in whole[index].steps]
        assert [step.distance for step in episode.steps] == [step.distance for step in whole[index].steps]
        assert episode.final_observation == whole[index].final_observation


@pytest.mark.parametrize(
    "name, options, size, words",
    [
        ("tree", {"branching": (2, 0)}, 4, r"branching=\(2, 0\): give the number of children in each level, each at least 1"),
        ("tree", {}, 6, r"2, 4, 8 … leaves, not rollout.group_size=6: set credit.options.branching to numbers whose product is 6"),
        ("tree", {}, 1, "not rollout.group_size=1"),
        ("tree", {"branching": ()}, 4, r"branching=\(\): give the number"),
        ("tree", {"segment_steps": 0}, 4, "segment_steps=0: a segment has at least 1 turn"),
        ("tree", {"outcome": "luck"}, 4, "outcome='luck' is not one of return, success"),
        (
            "tree",
            {"branching": (2, 3)},
            4,
            r"group_size=4 is not the number of leaves.*branching=\(2, 3\): set rollout.group_size=6 \(= 2 · 3\)",
        ),
        ("tree", {"branching": (2, 2), "segment_steps": 9}, 4, "branch for the last time after 9 turns, but rollout.max_steps=4"),
        ("entropy_branch", {"n0": 5}, 4, "n0=5 episodes from the root are more than the rollout.group_size=4"),
        ("entropy_branch", {"n0": 0}, 4, "n0=0: play at least 1 episode"),
        ("entropy_branch", {"p": 1.5}, 4, "p=1.5 is a probability"),
        ("entropy_branch", {"w": -1.0}, 4, "w=-1.0 must be at least 0"),
        ("entropy_branch", {"beam": 1}, 4, "beam=1: at least 2 ways"),
        ("entropy_branch", {"first_tokens": 0}, 4, "first_tokens=0"),
        ("restore", {"at": "cut"}, 4, "at='cut' is not one of all, cuts, expert_prefix"),
        ("restore", {"below": 0.0}, 4, "below=0.0 is a probability"),
        ("restore", {"tokens_per_cut": 0}, 4, "tokens_per_cut=0"),
    ],
)
def test_wrong_options_are_one_error(name, options, size, words):
    with pytest.raises(ValueError, match=words):
        strategies.make(name, **options).check(size, LIMIT)


def test_a_group_that_is_no_tree_is_refused(chat):  # noqa: F811
    with pytest.raises(ValueError, match="rollout.group_size=3 is not the number of leaves"):
        strategies.make("tree", branching=(2, 2))(walk(chat, 1.0).player(None), groups_of(3), KEY)


# --- Branches by entropy ---


def test_the_golden_branch_probabilities():
    np.testing.assert_allclose(branch_probability([-0.5, 0, 0.5, 1], 0.5, 0.2), [0.4, 0.5, 0.6, 0.7])
    assert branch_probability(9.0, 0.5, 0.2) == 1 and branch_probability(-9.0, 0.5, 0.2) == 0


class Uncertain(Drawing):
    """Says "up" always; the entropy of an answer is `entropies[turn]`, for conversations of one prompt a turn."""

    def __init__(self, words, entropies, vocab_size):
        super().__init__(words, 1.0)
        self.entropies = np.log(vocab_size) * np.asarray(entropies, np.float32)
        self.prompts = {}

    def turn(self, params, state, new_tokens, keys):  # noqa: F811
        state, answer = super().turn(params, state, new_tokens, keys)
        turns = [int(self.read_turn(new)) if len(new) else 0 for new in new_tokens]
        entropy = np.broadcast_to(self.entropies[turns][:, None], answer.tokens.shape)
        return state, Answer(answer.tokens, answer.log_prob, entropy, *answer[3:])


def uncertain_walk(chat, entropies):  # noqa: F811
    collector = walk(chat, 1.0)
    engine = Uncertain(collector.engine.words, entropies, chat.codec.vocab_size)
    engine.read_turn = lambda tokens: chat.text(tokens).split()[1][0]  # "say:PLACE TURN"
    return dataclasses.replace(collector, engine=engine)


def branched_at(rollout):
    """Where each episode began, and the first step that no earlier episode of its group has."""
    seen, found = set(), []
    for episode in rollout.episodes:
        found.append(next(t for t, step in enumerate(episode.steps) if id(step) not in seen))
        seen |= {id(step) for step in episode.steps}
    return found


@pytest.mark.parametrize("beam, expected", [(2, [0, 1, 2, 2]), (3, [0, 1, 1, 2])])
def test_certain_branches_use_the_budget_turn_by_turn(chat, beam, expected):  # noqa: F811
    strategy = strategies.make("entropy_branch", n0=1, p=1.0, w=0.0, beam=beam)
    rollout = strategy(walk(chat, 1.0).player(None), groups_of(4, seeds=(0,)), KEY)
    assert branched_at(rollout) == expected
    assert rollout.cost.env_steps == sum(3 - turn for turn in expected) and rollout.branch_steps == 0
    check_tree(rollout, 4)


def test_without_branches_the_budget_is_played_from_the_root(chat):  # noqa: F811
    rollout = strategies.make("entropy_branch", p=0.0, w=0.0)(walk(chat, 0.6).player(None), groups_of(3), KEY)
    assert branched_at(rollout) == [0] * 6 and [episode.prefix for episode in rollout.episodes] == [0] * 6
    assert [episode.task.group for episode in rollout.episodes] == [0] * 3 + [1] * 3
    check_tree(rollout, 3)
    chain = strategies.make("chain")(walk(chat, 0.6).player(None), groups_of(3), KEY)  # each leaf draws as the episode in its place
    said = lambda found: [[step.action_tokens.tolist() for step in episode.steps] for episode in found.episodes]
    assert said(rollout) == said(chain)


def test_two_starts_with_one_index_are_refused(chat):  # noqa: F811
    with pytest.raises(ValueError, match="two starts have the same index"):
        walk(chat, 1.0).player(None)([Start(task) for task in groups_of(1)], KEY, indices=[3, 3])


@pytest.mark.parametrize("entropies, expected", [((0, 1, 0, 0), [0, 1, 0, 0]), ((0, 0, 1, 0), [0, 2, 0, 0]), ((1, 1, 1, 1), [0] * 4)])
def test_it_branches_where_the_entropy_rose(chat, entropies, expected):  # noqa: F811
    strategy = strategies.make("entropy_branch", n0=1, p=0.0, w=1.0)
    rollout = strategy(uncertain_walk(chat, entropies).player(None), groups_of(4, seeds=(0,)), KEY)
    assert branched_at(rollout) == expected


@pytest.mark.parametrize("context", ["step", "episode"])
def test_the_draws_come_from_the_key(chat, context):  # noqa: F811
    play = lambda key, way: strategies.make("entropy_branch", n0=2)(
        walk(chat, 0.4, context=context, capabilities=(way,)).player(None), groups_of(8), key
    )
    rollout, again, other = play(KEY, "snapshot"), play(KEY, "replay"), play(jax.random.key(1), "snapshot")
    check_tree(rollout, 8)
    assert any(episode.prefix for episode in rollout.episodes) and rollout.cost.replayed_steps == 0 < again.cost.replayed_steps
    assert [row.tolist() for row in rollout.signals["node_id"]] == [row.tolist() for row in again.signals["node_id"]]
    assert [row.tolist() for row in rollout.signals["node_id"]] != [row.tolist() for row in other.signals["node_id"]]


def test_failed_branches_are_counted_and_left_out(chat):  # noqa: F811
    collector = walk(chat, 1.0, fault="restore: raise", only_seed=0)
    rollout = strategies.make("entropy_branch", n0=1, p=1.0)(collector.player(None), groups_of(3), KEY)
    assert rollout.counts["failed_branches"] == 2
    assert [episode.failure is None for episode in rollout.episodes] == [True, False, False] + [True] * 3
    assert rollout.signals["segment_value"][0].tolist() == [6.0] * 3 and rollout.signals["node_id"][1].tolist() == [-1]


# --- Values at some states ---


def test_cuts_are_counted_in_uncertain_tokens():
    sure, unsure = np.log(0.95), np.log(0.5)
    steps = [step_of([unsure] * 2), step_of([sure] * 9), step_of([unsure] * 3), step_of([unsure] * 7), step_of([unsure]), step_of([])]
    assert cut_points(steps, 0.9, 5) == [0, 3, 4]
    assert cut_points(steps, 0.9, 1) == [0, 1, 3, 4, 5] and cut_points(steps, 0.9, 99) == [0] and cut_points([], 0.9, 5) == []


def test_values_are_measured_at_cuts_only(chat):  # noqa: F811
    # The scripted log-probabilities are -token / 10, so every token but <pad> is uncertain: two a step.
    strategy = strategies.make("restore", k=2, at="cuts", tokens_per_cut=4)
    rollout = strategy(walk(chat, 1.0).player(None), groups_of(1), KEY)
    np.testing.assert_array_equal(rollout.signals["mc_value"][0], np.array([6, np.nan, 6], np.float32))
    np.testing.assert_array_equal(rollout.signals["mc_value"][1], np.array([5, np.nan], np.float32))
    assert rollout.cost.env_steps == (3 + 2) + 2 * (3 + 1) + 2 * 2


def test_adaptive_sampling_stops_where_a_mean_has_risen():
    outcomes = iter([0.5, 0.6, 0.1, 0.4, 0.9, 0.2, 0.9, 0.9])  # three states in round 1, and so on
    main = ended(step_of(), step_of(), step_of())
    asked = []

    def play(starts, key, keep=False):
        if keep:
            return [main]
        asked.append([len(start.prefix) for start in starts])
        return [ended(step_of(), outcome=next(outcomes)) for _ in starts]

    rollout = strategies.make("restore", k=3, adaptive=True)(play, [main.task], KEY)
    # Round 1: 0.5, 0.6 > 0.5 is done, 0.1. Round 2: 0.45, and 0.5 < 0.6. Round 3: 0.3667, and 0.6333 > 0.6.
    assert asked == [[0, 1, 2], [0, 2], [0, 2]]
    np.testing.assert_allclose(rollout.signals["mc_value"][0], [(0.5 + 0.4 + 0.2) / 3, 0.6, (0.1 + 0.9 + 0.9) / 3], rtol=1e-6)


class Guided(restarting.Walk):
    """A walk whose expert goes straight to the goal, except from where `lost` says."""

    def __init__(self, lost=None, **settings):
        super().__init__(**settings)
        self.capabilities |= {EXPERT}
        self.lost = lost

    def expert(self, rng=None):
        seed, place, _ = self.state
        return None if seed == self.lost else ["up"] * (restarting.GOAL - place)


class Telling(Told):
    """A prompt that also says what an expert writes."""

    def answer(self, action):
        return action


def guided(chat, up, context="step", **settings):  # noqa: F811
    collector = walk(chat, up, context=context)
    return dataclasses.replace(collector, prompt=Telling(), pool=EnvironmentPool(checked(functools.partial(Guided, **settings))))


@pytest.mark.parametrize("context", ["step", "episode"])
@pytest.mark.parametrize("capabilities", [("snapshot",), ("replay",)])
def test_the_policy_plays_on_from_the_states_of_the_expert(chat, capabilities, context):  # noqa: F811
    collector = guided(chat, 0.0, context, capabilities=capabilities)
    strategy = strategies.make("restore", k=2, at="expert_prefix")
    assert strategy.capabilities == {EXPERT}
    rollout = strategy(collector.player(None), groups_of(3), KEY)
    assert [episode.prefix for episode in rollout.episodes] == [0, 1, 2, 0, 0, 1]
    # From place 0 the policy goes down: 0, -1, -2, ...: after t steps of the expert the return is 1 + ... + t, and then down from t.
    down = lambda place, turn: sum(range(1, place + 1)) + sum(place - i for i in range(1, LIMIT - turn + 1))
    expected = [down(t, t) for t in range(3)]
    for episode, values in zip(rollout.episodes[:3], rollout.signals["mc_value"], strict=False):
        assert values[: episode.prefix + 1].tolist() == expected[: episode.prefix + 1] and np.isnan(values[episode.prefix + 1 :]).all()
        assert [step.sampled for step in episode.steps] == [t >= episode.prefix for t in range(len(episode.steps))]
    batch = pack(rollout.episodes, context=context, max_steps=LIMIT, row_length=200, row_multiple=1, pad_id=0)
    trained = {int(i) for i in batch.step_id[batch.action_mask]}
    assert trained == {LIMIT * e + t for e, episode in enumerate(rollout.episodes) for t in range(episode.prefix, len(episode.steps))}
    # 3 + 2 steps of the expert; the episodes; two continuations from each of the expert's states.
    played = (4 + 3 + 2) + (4 + 4 + 3) + 2 * (4 + 3 + 2) + 2 * (4 + 3)
    replays = 0 if capabilities == ("snapshot",) else (0 + 1 + 2) + (0 + 0 + 1) + 2 * (0 + 1 + 2) + 2 * (0 + 1)
    assert rollout.cost[:2] == (played, 5 + replays)


def test_where_the_expert_is_lost_the_group_starts_at_the_beginning(chat):  # noqa: F811
    rollout = strategies.make("restore", k=1, at="expert_prefix")(guided(chat, 1.0, lost=0).player(None), groups_of(2), KEY)
    assert [episode.prefix for episode in rollout.episodes] == [0, 0, 0, 1]
    assert all(np.isnan(values).all() and len(values) == 3 for values in rollout.signals["mc_value"][:2])
    assert rollout.signals["mc_value"][3].tolist() == [5.0, 5.0]


def test_an_environment_without_an_expert_is_refused(chat):  # noqa: F811
    with pytest.raises(ValueError, match="needs 'expert', which the environment Walk does not offer"):
        strategies.make("restore", at="expert_prefix")(walk(chat, 1.0).player(None), groups_of(1), KEY)


@pytest.mark.parametrize("name, options", [("tree", {"branching": (2, 2)}), ("entropy_branch", {}), ("restore", {"at": "cuts"})])
def test_an_environment_that_cannot_be_restarted_is_refused(chat, name, options):  # noqa: F811
    collector = walk(chat, 1.0, capabilities=())
    with pytest.raises(ValueError, match="offers neither 'snapshot' nor 'replay'"):
        strategies.make(name, **options)(collector.player(None), groups_of(4), KEY)
    assert collector.engine.batches == []


@pytest.mark.parametrize("context", ["step", "episode"])
@pytest.mark.parametrize("name, options", [("tree", {"branching": (3,)}), ("tree", {"branching": (1, 3)}), ("entropy_branch", {"p": 1.0})])
def test_the_real_engine_plays_every_kind_of_branch(chat, params, context, name, options):  # noqa: F811
    collector = on_sokoban(chat, context)
    rollout = strategies.make(name, **options)(collector.player(params), GROUPED, KEY)
    check_tree(rollout, 3)
    assert all(episode.failure is None for episode in rollout.episodes)
    distinct = {id(step): step for episode in rollout.episodes for step in episode.steps}
    sampled = sum(len(step.action_tokens) for step in distinct.values())
    assert rollout.cost[:3] == Cost(len(distinct), 0, sampled)[:3] and rollout.branch_steps == 0


# --- The tree in the report ---


def test_the_report_shows_the_tree_of_a_group(chat, tmp_path):  # noqa: F811
    collector = walk(chat, 1.0, fault="step 2: raise", only_seed=0)
    rollout = strategies.make("tree", branching=(2, 2), segment_steps=1)(collector.player(None), groups_of(4), KEY)
    mixed = tree_record(rollout.episodes[:4], {name: rows[:4] for name, rows in rollout.signals.items()})
    assert mixed["value"] is None and [s["parent"] for s in mixed["segments"]] == [None] * 4
    assert all("failure" in s and s["first"] == 0 for s in mixed["segments"])
    tree = tree_record(rollout.episodes[4:], {name: rows[4:] for name, rows in rollout.signals.items()})
    assert tree["value"] == 5.0 and tree["absent"] == 0
    assert [(s["parent"], s["first"], s["last"], s["value"], s.get("success")) for s in tree["segments"]] == [
        (None, 0, 0, 5.0, None), (0, 1, 1, 5.0, True), (0, 1, 1, 5.0, True),
        (None, 0, 0, 5.0, None), (3, 1, 1, 5.0, True), (3, 1, 1, 5.0, True),
    ]  # fmt: skip
    tree["segments"][1]["value"] = 4.0
    tree["segments"].append({"parent": 0, "first": 1, "last": 0, "actions": [], "failure": "it <broke>"})
    tree["absent"] = 2
    write_episodes(tmp_path, 3, 2, [], tree)
    page = tree_html([read_episodes(path) for path in list_episodes(tmp_path)])
    assert page.count("<li>") == 7 and "<p>root <b>+5</b></p>" in page and "2 absent leaves" in page
    assert page.count('badge">best<') == 1 and page.count(">solved<") == 4  # the other siblings are equal
    assert 'title="it &lt;broke&gt;">left out: the environment failed' in page
    write_report(tmp_path)
    assert page in (tmp_path / "report.html").read_text()
    assert tree_html([{"iteration": 1, "episodes": []}]) == ""


def test_a_record_of_other_strategies_has_no_tree(chat):  # noqa: F811
    rollout = strategies.make("restore", k=1)(walk(chat, 1.0).player(None), groups_of(1), KEY)
    assert tree_record(rollout.episodes, rollout.signals) is None
    steps = to_record(rollout.episodes[0], value=rollout.signals["mc_value"][0])["steps"]
    assert [step["value"] for step in steps] == [6.0] * 3 and "<dt>value</dt><dd>+6</dd>" in episode_html(
        1, to_record(rollout.episodes[0], value=rollout.signals["mc_value"][0]), plain_board
    )


@pytest.mark.parametrize("tree", [[], {"segments": [{"first": 0}]}, {"segments": 3}])
def test_a_broken_tree_is_no_episodes_file(tmp_path, tree):
    write_episodes(tmp_path, 1, 1, [], {"segments": []})
    path = list_episodes(tmp_path)[0]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tree": tree}))
    with pytest.raises(ValueError, match="holds a tree without `segments`"):
        read_episodes(path)
