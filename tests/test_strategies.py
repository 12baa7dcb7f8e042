"""Strategies: what they play, the values that branches give, and that every step and token counts once."""

import dataclasses

import jax
import numpy as np
import pytest
import restarting
from test_collect import KEY, chat, params, spell  # noqa: F401  (`chat` and `params` are fixtures)
from test_play import GROUPED, Reading, Told, on_sokoban

from stepreward.credit.base import Method
from stepreward.rollout import strategies
from stepreward.rollout.checked import checked
from stepreward.rollout.engine import Answer
from stepreward.rollout.environments import EnvironmentPool
from stepreward.rollout.episode import Cost, Episode, Step, Task, total_cost
from stepreward.rollout.play import Collector

TASKS = [Task(0, "train", 0), Task(1, "train", 1)]  # walks from places 0 and 1 to place 3
LIMIT = 4  # steps of a walk


def test_they_are_made_by_name():
    assert strategies.names() == ("chain", "entropy_branch", "handover", "restore", "tree")
    assert strategies.make("restore", k=2).k == 2 and strategies.make("chain").name == "chain"
    assert strategies.make("restore").restarts and not strategies.make("chain").restarts


@pytest.mark.parametrize("name, options, words", [
    ("bush", {}, "unknown rollout strategy .bush.; there are: chain, entropy_branch, handover, restore, tree"),
    ("restore", {"n": 2}, "'restore' has no option 'n'; its options are: k, outcome, at, below, tokens_per_cut, adaptive"),
    ("chain", {"k": 2}, "'chain' has no option 'k'; its options are: none"),
    ("restore", {"k": 0}, "k=0: play at least 1 episode"),
    ("restore", {"outcome": "luck"}, "outcome='luck' is not one of return, success"),
])  # fmt: skip
def test_a_wrong_name_or_option_is_one_line(name, options, words):
    with pytest.raises(ValueError, match=words):
        strategies.make(name, **options)


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="'chain' is registered already"):
        strategies.register("chain")(strategies.Chain)


def test_a_method_names_its_strategy():
    assert Method.strategy == "chain" and "strategy" not in {field.name for field in dataclasses.fields(Method)}


def test_signals_are_padded_to_the_steps_of_a_batch():
    rollout = strategies.Rollout([], {"mc_value": [np.array([1, 2], np.float32), np.array([], np.float32)]}, Cost())
    np.testing.assert_array_equal(rollout.arrays(3)["mc_value"], [[1, 2, 0], [0, 0, 0]])


def test_a_total_is_the_sum_over_episodes():
    costs = [Cost(1, 2, 3, 4), Cost(10, 20, 30, 40)]
    assert total_cost([Episode(TASKS[0], cost=cost) for cost in costs]) == Cost(11, 22, 33, 44)
    assert total_cost([]) == Cost()


# --- On Sokoban ---


def test_a_chain_is_what_is_collected(chat, params):  # noqa: F811
    collector = on_sokoban(chat)
    rollout = strategies.make("chain")(collector.player(params), GROUPED, KEY)
    for one, other in zip(rollout.episodes, collector.collect(params, GROUPED, KEY), strict=True):
        assert one.task == other.task
        for step, same in zip(one.steps, other.steps, strict=True):
            np.testing.assert_array_equal(step.action_tokens, same.action_tokens)
            np.testing.assert_array_equal(step.log_prob, same.log_prob)
    steps = [step for episode in rollout.episodes for step in episode.steps]
    sampled, read = sum(len(step.action_tokens) for step in steps), sum(len(step.prompt_tokens) for step in steps)
    assert rollout.signals == {} and rollout.cost == Cost(len(steps), 0, sampled, read)


@pytest.mark.parametrize("context", ["step", "episode"])
def test_branches_leave_the_episodes_as_a_chain_has_them(chat, params, context):  # noqa: F811
    collector, some = on_sokoban(chat, context), GROUPED[:2]
    rollout = strategies.make("restore", k=2)(collector.player(params), some, KEY)
    chain = strategies.make("chain")(collector.player(params), some, KEY)
    for one, other in zip(rollout.episodes, chain.episodes, strict=True):
        assert [step.action_tokens.tolist() for step in one.steps] == [step.action_tokens.tolist() for step in other.steps]
        assert all(step.snapshot is None for step in one.steps)
    counts = [len(episode.steps) for episode in rollout.episodes]
    assert [len(values) for values in rollout.signals["mc_value"]] == counts
    # From state t of a room that no random answer solves, 5 − t steps are left.
    assert rollout.cost.env_steps == sum(counts) + sum(2 * (5 - turn) for count in counts for turn in range(count))
    assert rollout.cost.replayed_steps == 0


# --- Known values on a walk ---


class Drawing(Reading):
    """A scripted engine that answers "up" with a probability, by the keys that it is given."""

    def __init__(self, words, up):
        super().__init__(lambda said: words[0])
        self.words, self.up = words, up

    def turn(self, params, state, new_tokens, keys):  # noqa: F811
        state, answer = super().turn(params, state, new_tokens, keys)
        ups = np.asarray(jax.vmap(jax.random.uniform)(keys)) < self.up
        tokens = answer.tokens.copy()
        for row, up in enumerate(ups):
            tokens[row, :2] = self.words[0] if up else self.words[1]
        return state, Answer(tokens, *answer[1:])


def walk(chat, up, *, context="step", **settings):  # noqa: F811
    """Walks in which the policy says "up" with probability `up`, and "down" otherwise."""
    end = chat.codec.end_id
    engine = Drawing([[*spell(chat, "up"), end], [*spell(chat, "down"), end]], up)
    pool = EnvironmentPool(checked(restarting.make(**settings)))
    return Collector(engine, pool, Told(), chat, context, 0, LIMIT, 64)


def chances(up, place, turn):
    """The probability of winning from a place with LIMIT − turn steps left."""
    if place == restarting.GOAL:
        return 1.0
    if turn == LIMIT:
        return 0.0
    return up * chances(up, place + 1, turn + 1) + (1 - up) * chances(up, place - 1, turn + 1)


def state_of(step):
    """The place and turn before a step."""
    place, _, turn = step.state_key.partition(" at ")
    return int(place), int(turn)


def test_values_are_the_chances_of_the_policy(chat):  # noqa: F811
    k, up = 400, 0.6
    rollout = strategies.make("restore", k=k, outcome="success")(walk(chat, up).player(None), TASKS, KEY)
    for episode, values in zip(rollout.episodes, rollout.signals["mc_value"], strict=True):
        for step, value in zip(episode.steps, values, strict=True):
            true = chances(up, *state_of(step))
            assert abs(value - true) <= 4 * np.sqrt(true * (1 - true) / k) + 1e-6


@pytest.mark.parametrize("context", ["step", "episode"])
@pytest.mark.parametrize("capabilities", [("snapshot",), ("replay",)])
def test_a_policy_that_never_errs_has_exact_values(chat, capabilities, context):  # noqa: F811
    collector = walk(chat, 1.0, context=context, capabilities=capabilities)
    rollout = strategies.make("restore", k=3)(collector.player(None), TASKS, KEY)
    assert [values.tolist() for values in rollout.signals["mc_value"]] == [[6.0, 6.0, 6.0], [5.0, 5.0]]  # 1 + 2 + 3, 2 + 3
    # Three and two steps, and from each state three times those that are left.
    replayed = 3 * (0 + 1 + 2) + 3 * (0 + 1) if capabilities == ("replay",) else 0
    assert rollout.cost[:2] == (3 + 2 + 3 * (3 + 2 + 1) + 3 * (2 + 1), replayed)
    assert rollout.cost.sampled_tokens == 2 * rollout.cost.env_steps  # a word and its end


def test_restored_and_replayed_branches_are_the_same(chat):  # noqa: F811
    found = [
        strategies.make("restore", k=5)(walk(chat, 0.6, capabilities=(way,)).player(None), TASKS, KEY) for way in ("snapshot", "replay")
    ]
    for one, other in zip(*(rollout.signals["mc_value"] for rollout in found), strict=True):
        np.testing.assert_array_equal(one, other)


def test_branches_of_failed_environments_are_left_out(chat):  # noqa: F811
    """Every second walk fails as it is restored."""
    collector, restores = walk(chat, 1.0), []
    call_all = collector.pool.call_all

    def failing(calls):
        found = call_all(calls)
        if calls[0][0].method == "restore":
            restores.extend(calls)
            found[::2] = [call_all([[calls[0][0]._replace(method="nothing", slot=99)]])[0]] * len(found[::2])
        return found

    collector.pool.call_all = failing
    rollout = strategies.make("restore", k=2)(collector.player(None), TASKS, KEY)
    assert len(restores) == 10 and [values.tolist() for values in rollout.signals["mc_value"]] == [[6.0, 6.0, 6.0], [5.0, 5.0]]


def test_where_nothing_could_be_played_on_the_value_is_nan(chat):  # noqa: F811
    collector = walk(chat, 1.0, fault="restore: raise", only_seed=None)
    rollout = strategies.make("restore", k=2)(collector.player(None), TASKS, KEY)
    assert [episode.failure for episode in rollout.episodes] == [None, None]
    assert all(np.isnan(values).all() for values in rollout.signals["mc_value"])


def test_an_episode_that_failed_has_no_branches(chat):  # noqa: F811
    collector = walk(chat, 1.0, fault="step 2: raise", only_seed=1, capabilities=("replay",))
    rollout = strategies.make("restore", k=1)(collector.player(None), TASKS, KEY)
    assert [values.tolist() for values in rollout.signals["mc_value"]][0] == [6.0, 6.0, 6.0]
    assert np.isnan(rollout.signals["mc_value"][1]).all() and len(rollout.signals["mc_value"][1]) == 1
    assert rollout.cost.env_steps == (3 + 2) + (3 + 2 + 1)


def test_an_environment_that_cannot_be_restarted_is_refused_before_it_is_played(chat):  # noqa: F811
    collector = walk(chat, 1.0, capabilities=())
    with pytest.raises(ValueError, match="Walk offers neither 'snapshot' nor 'replay'.*whose strategy is 'chain'"):
        strategies.make("restore")(collector.player(None), TASKS, KEY)
    with pytest.raises(ValueError, match="offers neither"):
        collector.check_restarts()
    assert collector.engine.batches == []


def test_a_method_s_own_strategy_is_one_class():
    """What a file outside needs: a class with a name, which plays and counts."""
    none = np.zeros(0, np.int32)

    @strategies.register("twice")
    @dataclasses.dataclass(frozen=True)
    class Twice(strategies.Strategy):
        def __call__(self, play, tasks, key):
            first = play(tasks, key)
            second = play(tasks, jax.random.fold_in(key, 1))
            return strategies.Rollout(second, {}, total_cost([*first, *second]))

    try:
        play = lambda starts, key: [
            Episode(task, [Step(none, none, none, none, "", "", None, 0.0, True, "")], cost=Cost(1)) for task in starts
        ]
        assert strategies.make("twice")(play, TASKS, KEY).cost.env_steps == 4
    finally:
        del strategies.base._STRATEGIES["twice"]
