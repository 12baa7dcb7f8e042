"""The embedded SOTOPIA environment: the protocol, settings, prompts and data; and endpoints without the package."""

import json
import pickle

import numpy as np
import pytest
from sotopia_stub import serving, write_data

from stepreward.envs import sotopia
from stepreward.envs.endpoint import Endpoint, EndpointError
from stepreward.envs.protocol import ADMISSIBLE, EXPERT, REPLAY, SNAPSHOT, Environment, Prompt, prompt_view, replay_prefix
from stepreward.envs.sotopia import backend, data, make, prompts, settings
from stepreward.envs.sotopia.env import Snapshot
from stepreward.envs.sotopia.measure import play as measured
from stepreward.envs.sotopia.partner import opening
from stepreward.envs.sotopia.presets import PackageSettings, Settings
from stepreward.envs.sotopia.scenarios import Task

PRESETS = ("tiny", "istar", "spa")


def play(environment, actions):
    return [environment.step(action) for action in actions]


def test_it_follows_the_protocol():
    environment = make()()
    assert isinstance(environment, Environment)
    assert environment.capabilities == {SNAPSHOT, REPLAY, EXPERT, ADMISSIBLE}
    observation, info = environment.reset(seed=3, options={"split": "held_out"})
    assert (info["won"], info["score"], info["executed"]) == (False, 0.0, True)
    assert observation["text"] == observation["talk"][-1][1] and (observation["turn"], observation["turns"]) == (1, 6)
    assert isinstance(info["state_key"], str) and "dimensions" not in info
    environment.close()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_expert_is_understood_and_usually_succeeds(preset):
    environment, goals = make(preset)(), []
    for seed in range(60):
        environment.reset(seed=seed)
        turns = play(environment, environment.expert())
        assert all(info["executed"] for *_, info in turns)
        *_, (_, reward, terminated, truncated, info) = turns
        assert (terminated or truncated) and all(turn[1] == 0 for turn in turns[:-1])
        goal = info["dimensions"]["goal"]
        assert (reward, info["score"], info["won"]) == (goal, goal / 10, goal > 6)
        assert info["dimensions"]["secret"] == 0 and info["admissible"] == ()
        goals.append(goal)
    assert np.mean([goal > 6 for goal in goals]) > 0.75


@pytest.mark.parametrize(("rung", "goal", "won"), [(5, 6, False), (4, 7, True), (0, 10, True), (10, 2, False)])
def test_a_goal_score_of_7_is_a_success_and_6_is_not(rung, goal, won):
    bike = Task("bike", "Ada", "Ben", tuple(map(str, range(90, 35, -5))), (0, 1, 2), 1, "warm", 40, 0)
    environment = make("istar")()
    environment.restore(Snapshot(bike, opening(bike)._replace(standing=rung), (("Ben", "hi"),), 0, False))
    _, reward, terminated, _, info = environment.step("agree")
    assert (reward, terminated, info["dimensions"]["goal"], info["score"], info["won"]) == (goal, True, goal, goal / 10, won)


def test_measured_figures():
    expert, random = (measured(settings("tiny"), player, tasks=40) for player in ("expert", "random"))
    assert expert["goal"] > 5 > random["goal"] and expert["success"] > 0.7 > 0.3 > random["success"]
    assert measured(settings("tiny"), "random", tasks=40)["goal"] == random["goal"]
    with pytest.raises(ValueError, match="give expert or random"):
        measured(settings("tiny"), "other")


def test_the_expert_changes_no_state_and_continues_from_any_turn():
    environment = make("istar")()
    environment.reset(seed=1)
    environment.step("The weather is grey.")
    before = environment.snapshot()
    rest = environment.expert(np.random.Generator(np.random.PCG64(0)))
    assert environment.snapshot() == before
    *_, info = play(environment, rest)[-1]
    assert info["won"] and environment.expert() is None


def test_admissible_actions_are_executed():
    environment = make("istar")()
    for seed in range(20):
        _, info = environment.reset(seed=seed)
        start = environment.snapshot()
        for action in info["admissible"]:
            assert environment.step(action)[4]["executed"], action
            environment.restore(start)


def test_snapshot_restore_and_replay():
    environment, other = make("istar")(), make("istar")()
    observation, info = environment.reset(seed=8)
    actions = environment.expert()
    environment.step(actions[0])
    kept = pickle.loads(pickle.dumps(environment.snapshot()))
    one = play(environment, actions[1:])
    other.restore(kept)
    assert play(other, actions[1:]) == one
    assert replay_prefix(other, actions, seed=8)[1] == one[-1][4]


def test_an_utterance_without_an_act_costs_a_turn_and_changes_nothing():
    environment = make("tiny", max_steps=3, invalid_reward=-0.5)()
    _, start = environment.reset(seed=0)
    for turn, action in enumerate((None, "", "xyzzy \x00 😀"), start=1):
        observation, reward, terminated, truncated, info = environment.step(action)
        assert observation["text"] == "pardon?" and not info["executed"]
        assert (terminated, truncated) == (False, turn == 3)
        assert reward == (-0.5 if turn < 3 else -0.5 + 1)  # the last turn, without a deal
    assert start["state_key"] != info["state_key"]  # the judge counts utterances that were not understood
    with pytest.raises(RuntimeError, match="reset"):
        environment.step("hello")


def test_leaving_ends_the_conversation():
    environment = make("istar")()
    environment.reset(seed=0)
    _, reward, terminated, truncated, info = environment.step("left the conversation")
    assert (reward, terminated, truncated, info["won"], info["score"]) == (1.0, True, False, False, 0.1)


def test_a_noisy_judge_is_seeded_by_the_conversation():
    def goals(**noise):
        environment, scores = make("istar", **noise)(), []
        for seed in range(30):
            environment.reset(seed=seed)
            scores.append(play(environment, environment.expert())[-1][1])
        return scores

    exact, noisy = goals(), goals(judge_noise=2.0)
    assert noisy == goals(judge_noise=2.0) != exact
    assert all(0 <= goal <= 10 for goal in noisy)


def test_factories_are_pickled():
    environment = pickle.loads(pickle.dumps(make("tiny", scenarios=("film",))))()
    assert environment.reset(seed=4)[1]["task"].startswith("film.")
    assert settings("tiny", scenarios=["film"]) == settings("tiny", scenarios=("film",))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"preset": "huge"}, "unknown SOTOPIA preset 'huge'; the presets are tiny, istar, spa, sotopia"),
        ({"colour": 1}, "unknown SOTOPIA setting colour; the settings are max_steps"),
        ({"max_steps": 0}, "max_steps=0"), ({"style": "long"}, "style='long'"), ({"scenarios": ("chess",)}, "scenario chess"),
        ({"scenarios": "film"}, "give a list"), ({"judge_noise": -1}, "judge_noise=-1"),
        ({"invalid_reward": "x"}, "invalid_reward"),
        ({"data": "somewhere"}, "embedded world"),
        ({"preset": "sotopia", "subset": "easy"}, "subset='easy'"), ({"preset": "sotopia", "seat": 2}, "seat=2"),
        ({"preset": "sotopia", "timeout_s": 0}, "timeout_s=0"),
        ({"preset": "sotopia", "partner_url": "here"}, "partner_url: give"),
        ({"preset": "sotopia", "judge_url": "http://u:secret@host/v1"}, "put no user or password into the address"),
        ({"preset": "sotopia", "key_variable": "sk-12-secret"}, "not a key"),
        ({"preset": "sotopia", "retries": -1}, "retries=-1"),
        ({"preset": "sotopia", "partner_prompt": "x"}, "partner_prompt='x'"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message) as raised:
        make(**arguments)
    assert "secret" not in str(raised.value)


def test_bad_resets_are_named():
    environment = make()()
    with pytest.raises(RuntimeError, match="reset"):
        environment.step("hello")
    for arguments, message in (({"seed": -1}, "seed=-1"), ({"seed": 1, "options": {"level": 1}}, "unknown reset option level"),
                               ({"seed": 1, "options": {"split": "test"}}, "unknown split 'test'")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            environment.reset(**arguments)
    assert environment.reset()[1]["executed"]


@pytest.mark.parametrize("name", ["compact", "istar", "spa"])
def test_prompts(name):
    prompt = prompts(name)
    assert isinstance(prompt, Prompt)
    environment = make("tiny" if name == "compact" else "istar")()
    observation, info = environment.reset(seed=2)
    first = prompt.first(prompt_view(observation, info))
    assert info["task"] in first and observation["text"] in first
    expert = environment.expert()
    assert [prompt.parse(prompt.answer(action)) for action in expert] == expert
    observation, *_, info = environment.step(expert[0])
    view = prompt_view(observation, info)
    assert observation["text"] in prompt.later(view)
    window = prompt.window(view, [(view, "unused")])
    assert info["task"] in window and expert[0] in window and observation["text"] in window
    for nothing in (None, "", "  ", 7, "<action></action>", "Action:"):
        assert prompt.parse(nothing) is None or name == "compact"


def test_prompt_forms():
    view = {"text": "Well?", "talk": (("Ben", "Well?"),), "you": "Ada", "turn": 2, "turns": 20, "task": "You are Ada."}
    assert prompts("compact").window(view, ()) == "You are Ada.\nWell?"
    told = prompts("istar").window(view, ())
    assert "number 2 of 20" in told and "Ben: Well?" in told and "left the conversation" in told
    assert prompts("istar").parse("<think>a</think><action> offer 45 </action>") == "offer 45"
    assert prompts("istar").parse("<action>offer 45</action>") is None
    assert prompts("spa").parse("Thought: a\nAction: offer 45\nmore") == "offer 45"
    assert prompts("compact").parse(" offer 45 \n> no") == "offer 45"
    with pytest.raises(ValueError, match="unknown SOTOPIA prompt 'x'; the prompts are compact, istar, spa"):
        prompts("x")


def test_what_the_package_provides():
    assert sotopia.POOL("istar") == "inline" and sotopia.POOL("sotopia") == "thread"
    assert isinstance(settings("istar"), Settings) and isinstance(settings("sotopia"), PackageSettings)


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "sotopia", None)
    with pytest.raises(ValueError, match=r"'sotopia'.*\[sotopia\]"):
        backend.package.__wrapped__()
    with pytest.raises(ValueError, match=r"'sotopia'.*\[sotopia\]"):
        make("sotopia", data=write_data(tmp_path / "data"), partner_url="http://127.0.0.1:1/v1")


@pytest.mark.parametrize(
    ("retries", "backoff_s", "waits"),
    [(0, 0.5, []), (1, 0.5, [0.5]), (6, 0.5, [0.5, 1.0, 2.0, 4.0, 8.0, 10.0]), (2, 20.0, [10.0, 10.0]), (2, 0.0, [0.0, 0.0])],
)
def test_the_wait_between_two_tries_doubles_up_to_ten_seconds(monkeypatch, retries, backoff_s, waits):
    tried, waited = [], []

    def ask(self, messages):
        tried.append(messages)
        return " "

    monkeypatch.setattr(Endpoint, "_ask", ask)
    monkeypatch.setattr("stepreward.envs.endpoint.time.sleep", waited.append)
    with pytest.raises(EndpointError, match=f"tried {retries + 1} times"):
        Endpoint("partner", "http://127.0.0.1:1/v1", "tiny", retries=retries, backoff_s=backoff_s).complete([])
    assert waited == waits and len(tried) == retries + 1


def test_an_empty_setting_is_none():
    empty = dict.fromkeys(("data", "partner_url", "judge_url", "judge_model", "partner_prompt", "cache", "storage"), "")
    assert settings("sotopia", **empty) == settings("sotopia")


def test_data_in_the_benchmarks_layout(tmp_path):
    pairings = data.load(str(write_data(tmp_path / "good")))
    train, held_out = (data.split(pairings, name) for name in ("train", "held_out"))
    ids = [{pairing.scenario["pk"] for pairing in part} for part in (train, held_out)]
    assert (len(train), len(held_out)) == (8, 2) and not ids[0] & ids[1]
    assert data.split(pairings, "held_out", seed=1) != held_out == data.split(pairings, "held_out")
    with pytest.raises(ValueError, match="no pairing in the held_out split of subset 'hard'"):
        data.split(pairings, "held_out", "hard")


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("agents.json", None, "no agents.json in"),
        ("envs.json", '{"E0": {', "envs.json: this is not valid JSON, perhaps an incomplete download"),
        ("envs.json", "[]", "envs.json: this is not a mapping"),
        ("envs.json", '{"E0": {"scenario": "x"}}', "envs.json, entry E0: the profile has no agent_goals"),
        ("envs.json", '{"E0": {"scenario": "x", "agent_goals": ["a"]}}', "must be a list of two texts"),
        ("env_agent_combos.json", "{}", "not a list of pairings"),
        ("env_agent_combos.json", '[{"env_id": "E0", "agent_ids": ["A1"]}]', "entry 0: a pairing needs env_id and two different agent_ids"),
        ("env_agent_combos.json", '[{"env_id": "E77", "agent_ids": ["A1", "A2"]}]', "entry 0: E77 is not in envs.json"),
        ("env_agent_combos.json", '[{"env_id": "E0", "agent_ids": ["A1", "A9"]}]', "entry 0: A9 is not in agents.json"),
    ],
)
def test_bad_data_is_named(tmp_path, file, content, message):
    folder = write_data(tmp_path / "bad")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data.load(str(folder))


def test_the_benchmarks_own_files(root):
    real = root.parent / "shared" / "data" / "sotopia"
    if not real.is_dir():
        pytest.skip("the benchmark's data is not beside the repository")
    pairings = data.load(str(real))
    sizes = [len(data.split(pairings, name, subset)) for subset in ("all", "hard") for name in ("train", "held_out")]
    assert sizes == [360, 90, 380, 70]


def test_an_endpoint_retries_and_then_names_itself(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving() as stub:
        endpoint = Endpoint("partner", stub.url, "tiny", retries=2, backoff_s=0.0)
        ask = [{"role": "user", "content": "Hello?"}]
        stub.partner = [503, json.dumps({"no": "choices"}).encode(), "Hello!"]
        assert endpoint.complete(ask) == "Hello!" and stub.keys == [None] * 3
        stub.partner = [302, "Hello!"]  # a redirect is not followed
        assert endpoint.complete(ask) == "Hello!"
        stub.partner = "my password is sk-1"

        def refuse(text):
            raise ValueError(text)

        with pytest.raises(
            EndpointError, match=f"partner at {stub.url} .model tiny.*could not be parsed or was blank .tried 3 times"
        ) as raised:
            endpoint.complete(ask, refuse)
        assert "sk-1" not in repr(raised.value)
