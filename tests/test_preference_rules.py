"""The rules that form pairs, by hand, and what each method collects on a walk whose values are known."""

import functools

import jax
import numpy as np
import pytest
from test_branching import Guided, Telling
from test_collect import KEY, chat  # noqa: F401  (a fixture)
from test_strategies import LIMIT, walk

from stepreward import preference
from stepreward.preference import rules
from stepreward.preference.base import Pairs, joined
from stepreward.rollout.checked import checked
from stepreward.rollout.environments import EnvironmentPool
from stepreward.rollout.episode import NO_WAY, PAUSED, Start, Task

NAN = float("nan")
TASKS = [Task(0, "train", 0), Task(1, "train", 1)]  # from places 0 and 1 to place 3; a reward is the place that a step leads to


def test_the_golden_pairs():
    """T-27 of the catalogue."""
    assert rules.better(1.0, 0.4) == 1 and rules.better(0.4, 1.0) == -1 and rules.better(0.5, 0.5) == 0
    assert rules.eto_end(4, 20, 10) == 9 and rules.eto_end(4, 7, 10) == 7 and rules.eto_end(4, 20, 11) == 9
    assert rules.ipr_better((1.0, 0.2), (0.8, 0.3), 0.2, 0.35) == 1
    assert rules.ipr_better((1.0, 0.2), (0.8, 0.5), 0.2, 0.35) == 0
    assert rules.critical(0.40, [0.70, 0.66], 0.45, 0.65) == 0 and rules.critical(0.46, [0.70, 0.66], 0.45, 0.65) is None
    assert rules.rising(0.5, [0.4, 0.45, 0.6]) == 2 and rules.rising(0.5, [0.4, 0.45]) is None


def test_rules_are_strict_and_know_no_nan():
    assert rules.better(1.0, 0.5, 0.5) == 0 and rules.better(NAN, 0.5) == 0
    assert rules.ipr_better((1.0, 0.2), (0.3, 0.8), 0.2, 0.35) == 0 and rules.ipr_better((0.2, 1.0), (0.3, 0.8), 0.2, 0.35) == -1
    assert rules.rising(0.5, [0.5, NAN, 0.51]) == 2 and rules.rising(NAN, [1.0]) is None
    assert rules.critical(0.45, [0.9], 0.45, 0.65) is None and rules.critical(0.1, [0.65], 0.45, 0.65) is None
    assert rules.critical(0.1, [NAN, 0.8, 0.8], 0.45, 0.65) == 1 and rules.critical(NAN, [0.9], 0.45, 0.65) is None
    assert rules.critical(0.1, [NAN], 0.45, 0.65) is None


def test_pairs_are_joined_with_one_numbering():
    one, two = Pairs.of([((0, 0, 3), (1, 0, 2))]), Pairs.of([((1, 2, 3), (0, 2, 3))])
    both = joined([one, two.moved(2)])
    assert both.number == 2 and both.chosen.tolist() == [[0, 0, 3], [3, 2, 3]] and both.rejected.tolist() == [[1, 0, 2], [2, 2, 3]]
    assert Pairs.of([]).number == 0 and joined([]).chosen.shape == (0, 3)


@pytest.mark.parametrize("name, options, words", [
    ("eta", {}, "unknown preference method 'eta'; there are: cso, eto, ipr, online_dpo, rro, stepagent"),
    ("eto", {"sample": 2}, "'eto' has no option 'sample' .did you mean 'samples'"), ("eto", {"beta": 0.0}, "one positive, finite number"),
    ("eto", {"beta": ()}, "at least one"), ("eto", {"rate": (1.0, -1.0)}, "rate=.*one positive"), ("eto", {"rounds": 0}, "rounds=0"),
    ("eto", {"samples": 0}, "samples=0 must be at least 1"), ("eto", {"outcome": "luck"}, "outcome='luck' is not one of return, success"),
    ("ipr", {"n": 0}, "n=0 must be at least 1"), ("ipr", {"level": "token"}, "level='token' is not one of rest, step"),
    ("ipr", {"final_threshold": -1.0}, "final_threshold=-1.0 must be at least 0"), ("ipr", {"sft": -1.0}, "sft=-1.0"),
    ("rro", {"most": 1}, "most=1 must be at least 2"), ("cso", {"verify": 0}, "verify=0"), ("cso", {"outcome": "return"}, "starts from failed"),
    ("online_dpo", {"samples": 1}, "samples=1 must be at least 2"), ("online_dpo", {"pairs": "some"}, "pairs='some' is not one of"),
])  # fmt: skip
def test_a_wrong_option_is_one_line(name, options, words):
    with pytest.raises(ValueError, match=words):
        preference.make(name, **options)


def test_rounds_beyond_the_list_take_its_last_number():
    method = preference.make("eto")
    assert [method.beta_of(i) for i in range(3)] == [0.1, 0.5, 0.5] and [method.rate_of(i) for i in range(3)] == [1.0, 0.5, 0.5]
    assert preference.make("eto", beta=0.3).beta == (0.3,)


def guided(chat, up, **settings):  # noqa: F811
    """A policy that goes up with a probability, on a walk whose expert goes straight up."""
    collector = walk(chat, up)
    collector.prompt = Telling()
    collector.pool = EnvironmentPool(checked(functools.partial(Guided, **settings)))
    collector.__post_init__()
    return collector


def said(found, pair, side):
    episode, first, end = getattr(found.pairs, side)[pair]
    return [step.action for step in found.episodes[episode].steps[first:end]]


def test_eto_compares_with_the_expert(chat):  # noqa: F811
    found = preference.make("eto", extra_messages=2).collect(guided(chat, 0.0).player(None), TASKS, KEY)
    assert found.pairs.number == 2 and found.metrics["reversed"] == 0 and found.failed == 0 and found.played == 4
    assert [said(found, i, "chosen") for i in range(2)] == [["up"] * 3, ["up"] * 2]
    assert [said(found, i, "rejected") for i in range(2)] == [["down"] * 4, ["down"] * 3]  # one step more than the expert, at most 4
    assert all(step.sampled and step.snapshot is None for episode in found.episodes for step in episode.steps)
    assert found.cost.env_steps == 2 * LIMIT and found.cost.replayed_steps == 3 + 2


def test_eto_turns_a_pair_around_and_drops_equal_ones(chat):  # noqa: F811
    tied = preference.make("eto").collect(guided(chat, 1.0).player(None), TASKS, KEY)
    assert tied.pairs.number == 0 and len(tied.episodes) == 1  # a part of a dataset is never empty
    lost = preference.make("eto", outcome="success").collect(guided(chat, 1.0, lost=1).player(None), TASKS, KEY)
    assert lost.pairs.number == 0 and lost.metrics["unsolved"] == 1 and lost.failed == 0


def test_ipr_pairs_the_rest_of_both_episodes(chat):  # noqa: F811
    found = preference.make("ipr", n=2).collect(guided(chat, 0.0).player(None), TASKS, KEY)
    # At every one of the 3 + 2 states of the expert its action is better; and so are its two whole episodes.
    assert found.pairs.number == 5 + 2 and found.metrics["whole_pairs"] == 2 and found.metrics["states"] == 5
    sides = {(tuple(said(found, i, "chosen")), tuple(said(found, i, "rejected"))) for i in range(found.pairs.number)}
    assert (("up",), ("down", "down")) in sides and (("up",) * 3, ("down",) * 4) in sides
    single = preference.make("ipr", n=1, level="step", whole=False).collect(guided(chat, 0.0).player(None), TASKS, KEY)
    assert single.pairs.number == 5 and all(end - first == 1 for _, first, end in single.pairs.chosen)
    same = preference.make("ipr", n=1).collect(guided(chat, 1.0).player(None), TASKS, KEY)
    assert same.pairs.number == 0  # the policy does what the expert does


def test_rro_stops_at_the_first_candidate_that_rises(chat):  # noqa: F811
    found = preference.make("rro", n=8, most=5).collect(guided(chat, 0.5).player(None), TASKS * 4, KEY)
    assert found.pairs.number > 4 and 1 <= found.metrics["candidates_per_step"] < 5
    for index in range(found.pairs.number):
        (episode, first, end), (other, start, stop) = found.pairs.chosen[index], found.pairs.rejected[index]
        assert (first, end) == (start, stop) == (first, first + 1)
        one, two = found.episodes[episode].steps, found.episodes[other].steps
        assert one[first].state_key == two[first].state_key and one[first].action != two[first].action
    assert np.mean([said(found, i, "chosen") == ["up"] for i in range(found.pairs.number)]) > 0.6  # going up is what pays
    alone = preference.make("rro", n=1).collect(guided(chat, 1.0).player(None), TASKS, KEY)
    assert alone.pairs.number == 0


def test_cso_keeps_verified_steps_only(chat):  # noqa: F811
    method = preference.make("cso", n=4, alternatives=3)
    none = method.collect(guided(chat, 0.0).player(None), TASKS, KEY)  # who always goes down wins from no alternative but the last
    assert none.pairs.number == 0 and none.metrics["candidates"] == 0
    found = method.collect(guided(chat, 0.6).player(None), TASKS * 8, KEY)
    assert found.pairs.number > 0 and found.pairs.number <= found.metrics["candidates"] <= found.metrics["failed_states"]
    for index in range(found.pairs.number):
        assert said(found, index, "chosen") == ["up"] and said(found, index, "rejected") == ["down"]


def test_stepagent_pairs_actions_in_the_expert_s_states(chat):  # noqa: F811
    found = preference.make("stepagent").collect(guided(chat, 0.0).player(None), TASKS, KEY)
    assert found.pairs.number == 5 and found.cost.env_steps == 5
    assert all(said(found, i, "chosen") == ["up"] and said(found, i, "rejected") == ["down"] for i in range(5))
    assert preference.make("stepagent").collect(guided(chat, 1.0).player(None), TASKS, KEY).pairs.number == 0


@pytest.mark.parametrize("pairs", ["best_worst", "all"])
def test_online_dpo_compares_episodes_of_a_task(chat, pairs):  # noqa: F811
    found = preference.make("online_dpo", samples=4, pairs=pairs).collect(guided(chat, 0.5).player(None), TASKS, KEY)
    worth = [episode.episode_return for episode in found.episodes]
    assert found.pairs.number >= 2 and (pairs == "all" or found.pairs.number == 2)
    for (one, first, end), (other, start, _) in zip(found.pairs.chosen, found.pairs.rejected, strict=True):
        assert worth[one] > worth[other] and first == start == 0 and end == len(found.episodes[one].steps)
        assert found.episodes[one].task == found.episodes[other].task


def test_a_failed_environment_is_in_no_pair_and_counted(chat):  # noqa: F811
    for name in preference.names():
        found = preference.make(name).collect(guided(chat, 0.3, fault="step 1: raise", only_seed=0).player(None), TASKS, KEY)
        assert found.failed > 0, name
        assert all(episode.task.seed == 1 for episode in found.episodes), name
    broken = preference.make("eto").collect(guided(chat, 0.3, fault="reset: raise").player(None), TASKS, KEY)
    assert broken.episodes == [] and broken.failed == 4


def test_the_expert_advises_one_action_from_any_state(chat):  # noqa: F811
    player = guided(chat, 0.0).player(None)
    played = player([Start(task) for task in TASKS], KEY, keep=True)
    advised = player.advise([Start.before(played[0], 2), Start(TASKS[1])], keep=True)
    assert [[step.action for step in episode.steps] for episode in advised] == [["down", "down", "up"], ["up"]]
    assert [episode.end for episode in advised] == [PAUSED] * 2 and [episode.cost.replayed_steps for episode in advised] == [1, 1]
    on = player([Start.after(episode) for episode in advised], jax.random.key(3))
    assert [step.action for step in on[1].steps] == ["up"] + ["down"] * (LIMIT - 1)
    (none,) = guided(chat, 0.0, lost=0).player(None).advise([Start(TASKS[0])])
    assert none.failure == NO_WAY


@pytest.mark.parametrize("name", preference.names())
def test_the_pairs_come_from_the_key(chat, name):  # noqa: F811
    def collected(key):
        found = preference.make(name).collect(guided(chat, 0.5).player(None), TASKS * 3, key)
        return [said(found, pair, side) for pair in range(found.pairs.number) for side in ("chosen", "rejected")], found.cost

    assert collected(KEY) == collected(KEY) != collected(jax.random.key(1))
