"""The Search QA environment: turns, rewards and penalties, partial progress, snapshots, replay, the expert and the distance."""

import json
import math
import pickle

import numpy as np
import pytest

from stepreward.envs.protocol import Environment, replay_prefix
from stepreward.envs.search_qa import PRESETS, make, random_play_success, settings

HOPS = {"people": 80, "questions": 60, "held_out": 20}  # a small world


def environment(preset="tiny", **overrides):
    return make(preset, **HOPS | overrides)()


def started(preset="tiny", seed=0, least=1, **overrides):
    """An environment at the first question, from `seed` on, whose expert takes at least that many searches; and the expert's actions."""
    found = environment(preset, **overrides)
    while found.reset(seed=seed) and len(found.expert()) <= least:
        seed += 1
    return found, found.expert()


def kinds(found, actions):
    return [found.step(action)[0]["kind"] for action in actions]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_protocol(preset):
    found = pickle.loads(pickle.dumps(make(preset, **HOPS)))()
    assert isinstance(found, Environment)
    observation, info = found.reset(seed=3)
    keys = {"won", "score", "executed", "state_key", "task", "admissible", "reference_answer"}
    assert set(info) == keys and (info["won"], info["score"], info["executed"]) == (False, 0.0, True)
    assert observation == {"text": info["task"], "kind": "question"}
    again, reward, terminated, truncated, after = found.step("search[]")
    assert set(after) == keys | {"events"} and not after["executed"] and after["state_key"] == info["state_key"]
    assert (again["kind"], reward, terminated, truncated) == ("invalid", settings(preset).invalid_reward, False, False)
    json.dumps([observation, info, again, after])
    found.close()


def test_whatever_a_model_says_is_an_action():
    bad = (None, "", "up", "search[]", "search[ ]", "answer[", "Search[x]", "search(x)", "\x00", "search[" * 50, "answer", 7)
    found = environment(max_steps=len(bad) + 2)
    _, info = found.reset(seed=0)
    for action in bad:
        observation, reward, terminated, truncated, after = found.step(action)
        assert (observation["kind"], reward, terminated, truncated, after["executed"]) == ("invalid", 0.0, False, False, False)
        assert after["state_key"] == info["state_key"]
    assert found.step("search[\ud800 ]] <search>]")[0]["kind"] == "nothing"
    assert found.step("answer[\ud800]")[2]


def test_a_search_shows_the_best_documents():
    found, plan = started("search_r1", max_words=0)
    observation = found.step(plan[0])[0]
    lines = observation["text"].split("\n")
    title = plan[0][len("search[") : -1]
    assert len(lines) == 3 and lines[0].startswith(f"Doc 1(Title: {title}) ") and lines[2].startswith("Doc 3(Title: ")
    assert found.step("search[the of]")[0] == {"text": "nothing found", "kind": "nothing"}


def test_a_long_observation_is_cut_with_a_mark():
    whole, plan = started("search_r1", max_words=0)
    words = whole.step(plan[0])[0]["text"].split(" ")
    found, _ = started("search_r1", max_words=7)
    assert found.step(plan[0])[0]["text"] == " ".join(words[:7]) + f" [… {len(words) - 7} words cut …]"


def test_the_last_turns_may_only_answer():
    found, plan = started(max_steps=3, answer_turns=1)
    assert kinds(found, [plan[0], "search[any]"]) == ["documents", "nothing"]
    assert not any(action.startswith("search") for action in found._listed()) and found.expert() == plan[-1:]
    observation, reward, terminated, truncated, info = found.step(plan[0])
    assert (observation["kind"], reward, terminated, truncated, info["executed"]) == ("invalid", 0.0, False, True, False)
    with pytest.raises(RuntimeError, match="over"):
        found.step(plan[0])


def test_a_repeated_query_is_invalid_if_the_settings_say_so():
    for repeats, kind in ((True, "documents"), (False, "invalid")):
        found, plan = started(repeats=repeats)
        assert kinds(found, [plan[0], plan[0]]) == ["documents", kind]


def last_reward(preset="tiny", actions=None, **overrides):
    """The reward of the last of some actions; `gold` in them stands for the right answer."""
    found, plan = started(preset, **overrides)
    for action in actions:
        reward = found.step(plan[-1] if action == "gold" else action)[1]
    return reward


def test_rewards_and_penalties():
    assert last_reward(actions=["gold"]) == last_reward(actions=["gold"], reward="em") == 1.0
    half, _ = started()
    first = half.expert()[-1][len("answer[") : -1].split()[0]
    assert last_reward(actions=[f"answer[{first}]"]) == pytest.approx(2 / 3)
    assert last_reward(actions=[f"answer[{first}]"], reward="em") == 0.0
    assert last_reward(actions=["answer[x]"], wrong_reward=-0.5) == -0.5
    assert last_reward(actions=["jump"], invalid_reward=-0.01) == -0.01
    assert last_reward(actions=["jump", "jump"], invalid_reward=-0.01, unanswered_reward=-2.0, max_steps=2) == -2.01
    assert last_reward(actions=["gold"], tool_bonus=0.1) == 1.0 and last_reward(actions=["search[x]", "gold"], tool_bonus=0.1) == 1.1
    assert last_reward("arpo", actions=["search[x]", "answer[x]"]) == 0.0
    assert last_reward("igpo", actions=["jump"] * 10) == -2.0 and last_reward("arpo", actions=["jump"] * 10) == -1.0


def test_what_wins_and_what_the_score_is():
    for overrides, score, won in (({}, 2 / 3, False), ({"win_f1": 0.6}, 2 / 3, True), ({"score": "em"}, 0.0, False)):
        found, plan = started(**overrides)
        info = found.step(f"answer[{plan[-1][len('answer[') : -1].split()[0]}]")[-1]
        assert (info["score"], info["won"]) == (pytest.approx(score), won)


def test_turn_rewards_are_shares_of_the_gold_path():
    found, plan = started(turn_reward=True, least=2, max_steps=9)
    assert "turn_reward" in found.capabilities and len(plan) == 3
    rewards = [found.step(action)[-1]["turn_reward"] for action in ("jump", plan[0], plan[0], "search[the]", plan[1], plan[2])]
    assert rewards == [0, 0.5, 0, 0, 0.5, 0]
    assert "turn_reward" not in environment().capabilities


def test_events():
    found, plan = started(max_steps=9)
    events = [found.step(action)[-1]["events"] for action in ("jump", "jump", plan[0], plan[0], None, plan[0], "answer[x]")]
    assert events == [("error",), ("error",), ("new_state", "recovered"), (), ("error",), ("recovered",), ("new_state",)]


@pytest.mark.parametrize("preset", ["tiny", "istar", "search_r1"])
def test_the_expert_wins_and_the_distance_counts_down(preset):
    found = environment(preset)
    for seed in range(60):
        found.reset(seed=seed)
        plan = found.expert(np.random.default_rng(seed))
        assert len(plan) <= found.settings.max_steps and len(plan) == found.distance()
        for taken, action in enumerate(plan):
            assert found.distance() <= len(plan) - taken == len(plan[taken:])
            info = found.step(action)[-1]
            assert info["executed"]
        assert info["won"] and found.distance() == 0 and found.expert() is None


def test_the_expert_goes_on_from_any_state():
    found, plan = started(least=2)
    found.step("search[the]")
    found.step(plan[0])
    assert found.expert() == plan[1:] and found.distance() == 2
    found.step("answer[x]")
    assert found.distance() == math.inf and found.expert() is None
    short, plan = started(max_steps=2, least=1)
    assert short.expert()[-1] == plan[-1] and len(short.expert()) == 2


def test_random_play_of_the_listed_actions():
    assert 0 <= random_play_success(settings("micro"), questions=200) <= 0.25
    found, plan = started()
    assert found._listed()[0] == f"search[{found._question.text}]"
    found.step(plan[0])
    assert plan[-1] in found._listed() or plan[1] in found._listed()


def test_snapshots_continue_anywhere_and_replays_lead_to_the_same_state():
    first, second = environment(), environment()
    draw = np.random.default_rng(0)
    for seed in range(12):
        _, info = first.reset(seed=seed)
        actions = []
        for _ in range(3):
            choices = [action for action in info["admissible"] if action.startswith("search")] + ["jump", None]
            actions.append(choices[draw.integers(len(choices))])
            *_, info = told = first.step(actions[-1])
        assert replay_prefix(second, actions, seed=seed) == (told[0], info)
        snapshot = pickle.loads(pickle.dumps(first.snapshot()))
        ends = [first.step(action) for action in ("search[old]", "answer[old]")]
        second.restore(snapshot)
        assert [second.step(action) for action in ("search[old]", "answer[old]")] == ends and second.snapshot() == first.snapshot()


def test_equal_states_have_equal_keys():
    found = environment(max_steps=9)
    one, two = (f"search[{document.title}]" for document in found._library.documents[:2])
    keys = []
    for actions in ([one, two], [two, None, one, one], [one]):
        found.reset(seed=0)
        for action in actions:
            key = found.step(action)[-1]["state_key"]
        keys.append(key)
    assert keys[0] == keys[1] != keys[2]
    assert found.reset(seed=1)[1]["state_key"] != found.reset(seed=0)[1]["state_key"]


def test_seeds_select_tasks_of_a_split():
    found = environment()
    assert (found.num_tasks("train"), found.num_tasks("held_out")) == (60, 20)
    assert found.reset(seed=2) == found.reset(seed=62) != found.reset(seed=2, options={"split": "held_out"})
    for options, named in (({"level": 1}, "level"), ({"split": "test"}, "the splits are train, held_out")):
        with pytest.raises(ValueError, match=named):
            found.reset(seed=0, options=options)
    with pytest.raises(ValueError, match="seed=-1"):
        found.reset(seed=-1)
    with pytest.raises(RuntimeError, match="reset"):
        environment().step("answer[x]")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"preset": "big"}, "presets are tiny, micro"), ({"depth": 3}, "the settings are data"), ({"reward": "money"}, "reward='money'"),
        ({"hits": 0}, "hits=0"), ({"hops": (0,)}, "hops="), ({"hops": ()}, "hops="), ({"hops": 2}, "hops=2"), ({"norm": "x"}, "squad, igpo"),
        ({"answer_turns": 5}, "max_steps=5"), ({"win_f1": 0.0}, "win_f1"), ({"people": 3000}, "people=3000"), ({"hits": "3"}, "hits='3'"),
        ({"corpus": "x.jsonl"}, "needs data"), ({"wrong_reward": math.nan}, "wrong_reward"), ({"seed": -1}, "seed=-1"),
    ],
)  # fmt: skip
def test_settings_and_their_errors(arguments, named):
    with pytest.raises(ValueError, match=named):
        make(**arguments)


def test_episodes_do_not_depend_on_the_hash_seed(under_hash_seeds):
    program = (
        "import sys\nfrom stepreward.envs.search_qa import make\ne = make('istar', people=80, questions=50, held_out=20)()\n"
        "assert not [name for name in sys.modules if name.startswith(('jax', 'torch'))]\n"
        "for seed in range(5):\n  print(e.reset(seed=seed)); plan = e.expert(); print(plan)\n  for a in plan: print(e.step(a))"
    )
    outputs = under_hash_seeds(program)
    assert outputs[0] == outputs[1] and "Doc 1" in outputs[0]
