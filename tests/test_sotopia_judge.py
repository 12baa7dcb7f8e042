"""SOTOPIA's rule-based judge, and the judgements of models on disk."""

import json

import pytest

from stepreward.envs.entries import key_of
from stepreward.envs.sotopia import partner
from stepreward.envs.sotopia.judge import DIMENSIONS, judge
from stepreward.envs.sotopia.judgements import Judgements, check
from stepreward.envs.sotopia.scenarios import Task

BIKE = Task("bike", "Ada", "Ben", tuple(map(str, range(90, 35, -5))), (0, 1, 2), 1, "warm", 40, 0)
START = partner.opening(BIKE)
SCORES = {agent: {name: low for name, (low, _) in DIMENSIONS.items()} for agent in ("agent_1", "agent_2")}


@pytest.mark.parametrize(
    "state, goal",
    [
        ({"deal": 100}, 10), ({"deal": 70}, 8), ({"deal": 60}, 7), ({"deal": 50}, 6), ({"deal": 0}, 2), ({"deal": -30}, 1),
        ({"deal": 250}, 10), ({}, 1), ({"threats": 1}, 0), ({"insults": 1}, 0), ({"deal": 60, "secret": True}, 5),
        ({"deal": 60, "threats": 2}, 6), ({"deal": 0, "secret": True, "threats": 1}, 0),
    ],
)  # fmt: skip
def test_goal_scores(state, goal):
    assert judge(BIKE, START._replace(**state))["goal"] == goal


def test_the_other_dimensions():
    state = START._replace(deal=70, ended="deal", courtesy=2, asked=1, argued=(1,), offers=3)
    assert judge(BIKE, state) == {
        "believability": 10, "relationship": 3, "knowledge": 9, "secret": 0, "social_rules": 0, "financial": 2, "goal": 8,
    }  # fmt: skip
    state = START._replace(threats=3, insults=2, secret=True, repeats=2, unheard=9, ended="walked")
    assert judge(BIKE, state) == {
        "believability": 0, "relationship": -5, "knowledge": 0, "secret": -8, "social_rules": -10, "financial": 0, "goal": 0,
    }  # fmt: skip
    assert judge(BIKE._replace(scenario="film"), START._replace(deal=100))["financial"] == 0


def test_judgements_are_checked():
    assert check(SCORES) is SCORES
    goal = {**SCORES["agent_1"], "goal": 11}
    for bad in (None, [], {}, {"agent_1": SCORES["agent_1"]}, {**SCORES, "agent_1": goal}, {**SCORES, "agent_2": {"goal": 3}},
                {**SCORES, "agent_1": {**goal, "goal": "7"}}, {**SCORES, "agent_1": {**goal, "goal": float("nan")}}):  # fmt: skip
        with pytest.raises(ValueError):
            check(bad)


def test_judgements_on_disk(tmp_path):
    kept, key = Judgements(str(tmp_path)), key_of("a talk", "http://127.0.0.1/v1", "judge")
    assert key != key_of("a talk", "http://127.0.0.1/v1judge", "")
    assert kept.get(key) is None and kept.pending() == []
    judge_asked = ("http://127.0.0.1/v1", "judge")
    path = kept.later(key, "a talk", ("Ada", "Ben"), judge_asked)
    (path.parent / "half.json").write_text('{"key": ')
    assert kept.pending() == [{"key": key, "history": "a talk", "names": ["Ada", "Ben"], "judge": list(judge_asked)}]
    kept.put(key, SCORES)
    assert kept.get(key) == SCORES and kept.pending() == []
    assert [path.name for path in (tmp_path / "judgements").iterdir()] == [f"{key}.json"]  # nothing temporary is left
    other = key_of("another")
    (tmp_path / "judgements" / f"{other}.json").write_text(json.dumps({"key": key, "scores": SCORES}))
    assert kept.get(other) is None  # the key of another conversation
    with pytest.raises(ValueError):
        kept.put(key, {})
