"""What environments say of a step: its events (new states, errors and recoveries) and its turn reward."""

import importlib
import pickle
import random

import pytest

from stepreward.envs.events import Events
from stepreward.envs.protocol import EVENT_NAMES, EVENTS, TURN_REWARD
from stepreward.rollout.checked import checked

NEEDS = {"alfworld": "alfworld", "virtualhome": "virtualhome_eval"}


def test_the_events_of_an_episode():
    events = Events("hall")
    steps = [("kitchen", True), ("kitchen", False), ("kitchen", False), ("hall", True), ("attic", True), ("attic", False), ("cellar", True)]
    assert [events.after(*step) for step in steps] == [
        ("new_state",), ("error",), ("error",), ("recovered",), ("new_state",), ("error",), ("new_state", "recovered"),
    ]  # fmt: skip


def test_a_failed_action_may_reach_a_new_state():
    """A clock may run on while the action does nothing."""
    assert Events("noon").after("one", False) == ("new_state", "error")


def test_the_memory_continues_an_episode_and_stays_as_it_was_saved():
    events = Events("hall")
    events.after("kitchen", True)
    events.after("kitchen", False)
    memory = pickle.loads(pickle.dumps(events.saved()))
    assert events.after("hall", True) == ("recovered",)
    for _ in range(2):
        again = Events.of(memory)
        assert again.after("kitchen", True) == ("recovered",)
        assert again.after("hall", True) == ()
        assert again.after("attic", True) == ("new_state",)


@pytest.fixture(params=["sokoban", "webshop", "alfworld", "virtualhome"])
def told(request):
    """What an environment says after each action of some episodes: the info at its reset, and after each step."""
    name = request.param
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    options = {"sokoban": {"events": True, "turn_reward": True, "boxes": 2}, "alfworld": {}}.get(name, {"turn_reward": True})
    environment = checked(importlib.import_module(f"stepreward.envs.{name}").make("tiny", **options))()
    assert EVENTS in environment.capabilities and (TURN_REWARD in environment.capabilities) == (name != "alfworld")
    draw, episodes = random.Random(0), []
    for seed in range(4):
        infos = [environment.reset(seed=seed)[1]]
        plan, over = environment.expert()[::-1], False
        while not over:
            choices = [*infos[-1].get("admissible", ("up", "down", "left", "right")), "nonsense", None]
            action = plan.pop() if seed == 3 and plan else draw.choice(choices)
            *_, terminated, truncated, info = environment.step(action)
            over = terminated or truncated
            infos.append(info)
        episodes.append(infos)
    environment.close()
    return name, episodes


def test_the_events_of_an_environment_follow_from_its_state_keys(told):
    _, episodes = told
    seen = set()
    for infos in episodes:
        assert EVENTS not in infos[0]
        for turn, info in enumerate(infos[1:], 1):
            new = info["state_key"] not in [before["state_key"] for before in infos[:turn]]
            recovered = info["executed"] and not infos[turn - 1]["executed"]
            named = {"new_state": new, "error": not info["executed"], "recovered": recovered}
            assert info["events"] == tuple(name for name in EVENT_NAMES if named[name])
            seen.update(info["events"])
    assert seen == set(EVENT_NAMES)


def test_turn_rewards_add_up_to_the_progress_at_the_end(told):
    name, episodes = told
    if name == "alfworld":
        assert all(TURN_REWARD not in info for infos in episodes for info in infos)
        return
    for infos in episodes:
        reached, rewards = 0.0, [info["turn_reward"] for info in infos[1:]]
        if name == "sokoban":
            reached = infos[0]["state_key"].count("√") / 2, infos[-1]["state_key"].count("√") / 2
            assert sum(rewards) == pytest.approx(reached[1] - reached[0])
        elif infos[-1]["won"] or name == "virtualhome" or infos[-1]["score"]:
            assert sum(rewards) == pytest.approx(infos[-1]["score"] - infos[0]["score"])
    assert any(rewards) and sum(rewards) > 0  # the expert's episode


def test_a_turn_reward_of_webshop_is_what_a_purchase_would_change():
    from stepreward.envs import webshop

    environment = webshop.make("tiny", turn_reward=True)()
    environment.reset(seed=0)
    rewards = []
    for action in environment.expert():
        *_, info = environment.step(action)
        rewards.append((action.partition("[")[0], info["turn_reward"]))
    opened = next(index for index, (_, reward) in enumerate(rewards) if reward)
    assert rewards[0] == ("search", 0.0) and rewards[opened][0] == "click" and rewards[opened][1] > 0
    assert rewards[-1] == ("click", 0.0) and sum(reward for _, reward in rewards) == pytest.approx(1.0)
    environment.reset(seed=0)
    for action in [*environment.expert()[: opened + 1], "click[back to search]"]:
        *_, info = environment.step(action)
    assert info["turn_reward"] == pytest.approx(-rewards[opened][1])  # a page without a product is worth nothing


def test_settings_are_true_or_false():
    for name, setting in (("sokoban", "events"), ("sokoban", "turn_reward"), ("webshop", "turn_reward"), ("virtualhome", "turn_reward")):
        with pytest.raises(ValueError, match=setting):
            importlib.import_module(f"stepreward.envs.{name}").make("tiny", **{setting: 1})
