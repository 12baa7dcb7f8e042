"""SOTOPIA's own package, end to end, with a scripted local server."""

import json
import os
import pickle
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sotopia_stub import judges, serving, speaks, write_data

from stepreward.envs.endpoint import EndpointError
from stepreward.envs.protocol import TASKS, Environment, prompt_view
from stepreward.envs.sotopia import make, pool, prompts
from stepreward.envs.sotopia.judgements import Judgements

pytest.importorskip("sotopia", reason="the extra sotopia is not installed")
from stepreward.envs.sotopia.package import PackageEnv, judge_pending


@pytest.fixture(scope="module")
def stub():
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def fresh(stub):
    stub.partner, stub.judge = speaks("Fine."), judges()
    for noted in (stub.asked, stub.keys, stub.models):
        noted.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def factory(stub, folder, tmp_path):
    def build(**settings):
        defaults = {"partner_url": stub.url, "partner_model": "tiny", "max_steps": 2, "cache": str(tmp_path / "cache")}
        limits = {"retries": 1, "backoff_s": 0.0, "timeout_s": 10}
        return make("sotopia", data=folder, **{**defaults, **limits, **settings})

    return build


def test_a_whole_episode(factory, stub):
    environment = factory(seat=0)()
    assert isinstance(environment, Environment) and environment.capabilities == {TASKS}
    observation, info = environment.reset(seed=0, options={"split": "train"})
    assert observation == {"text": "Nobody has spoken yet.", "talk": (), "you": "Mina Stone", "turn": 1, "turns": 2}
    assert info["task"].startswith("You are Mina Stone.") and "red" in info["task"]
    assert "blue" not in info["task"] and "no brush" not in info["task"]  # the partner's goal and secret
    stub.partner = [speaks("Blue, please."), speaks("Red it is.")]
    observation, reward, terminated, truncated, info = environment.step("Shall we paint it red?")
    assert (reward, terminated, truncated, info["executed"]) == (0.0, False, False, True)
    assert observation["talk"] == (("Mina Stone", "Shall we paint it red?"), ("Otto Stone", "Blue, please."))
    observation, reward, terminated, truncated, info = environment.step("I would do the work.")
    assert observation["text"] == "Red it is."
    assert (reward, terminated, truncated) == (8.0, False, True)
    assert (info["won"], info["score"], info["dimensions"]["goal"], info["partner_dimensions"]["goal"]) == (True, 0.8, 8, 4)
    assert info["dimensions"] == {
        "believability": 9, "relationship": 2, "knowledge": 3, "secret": 0, "social_rules": -1, "financial": 1, "goal": 8,
    }  # fmt: skip
    assert [role for role, _ in stub.asked] == ["partner", "partner", "judge"]
    assert stub.models == [("tiny", 0.7), ("tiny", 0.7), ("tiny", 0.0)]
    assert "owes money" not in stub.asked[0][1] and "Shall we paint it red?" in stub.asked[0][1]  # what the partner sees
    with pytest.raises(RuntimeError, match="reset"):
        environment.step("more")


@pytest.mark.parametrize(
    "prompt, said, read",
    [(None, speaks("Blue\0."), "Blue\ufffd."), ("compact", "Blue\0.", "Blue\ufffd."), ("compact", "Blue\ud83d.", "Blue\ufffd.")],
)
def test_the_judge_and_the_player_read_the_same_text_of_a_partner(factory, stub, prompt, said, read):
    environment = factory(seat=0, partner_prompt=prompt, max_steps=1)()
    environment.reset(seed=0)
    stub.partner = said
    observation, _, _, truncated, _ = environment.step("Red?")
    assert truncated and observation["text"] == read
    assert [role for role, _ in stub.asked] == ["partner", "judge"] and observation["text"] in stub.asked[1][1]


def test_the_second_seat_and_a_judge_in_another_order(factory, stub):
    stub.judge = judges((8, 4), order=("agent_2", "agent_1"))
    environment = factory(seat=1)()
    observation, info = environment.reset(seed=0)
    assert observation["text"] == "Fine." and observation["you"] == "Otto Stone" and "blue" in info["task"]
    environment.step("Blue.")
    _, reward, terminated, truncated, info = environment.step("Blue!")
    assert (reward, truncated, info["won"], info["dimensions"]["goal"]) == (4.0, True, False, 4)


@pytest.mark.parametrize(("goals", "seat", "won"), [((6, 9), 0, False), ((7, 0), 0, True), ((9, 6), 1, False), ((0, 7), 1, True)])
def test_a_goal_score_of_7_is_a_success_and_6_is_not(factory, stub, goals, seat, won):
    stub.judge = judges(goals)
    environment = factory(seat=seat, max_steps=1)()
    environment.reset(seed=0)
    _, reward, _, _, info = environment.step("Red?")
    assert (reward, info["score"], info["won"]) == (goals[seat], goals[seat] / 10, won)


def test_both_seats_are_tasks_and_scenarios_are_in_one_split(factory):
    environment = factory()()
    assert (environment.num_tasks("train"), environment.num_tasks("held_out")) == (16, 4)
    tasks = {
        split: [environment.reset(seed=seed, options={"split": split})[1]["task"] for seed in range(count)]
        for split, count in (("train", 16), ("held_out", 4))
    }
    assert len(set(tasks["train"])) == 16 and not set(tasks["train"]) & set(tasks["held_out"])
    assert environment.reset(seed=16)[1]["task"] == tasks["train"][0]


def test_leaving_and_other_acts(factory, stub):
    environment = factory(seat=0, max_steps=9)()
    environment.reset(seed=0)
    observation, *_ = environment.step("[action] takes a brush")
    assert observation["talk"][0] == ("Mina Stone", "[action] takes a brush")
    _, reward, terminated, truncated, _ = environment.step("left the conversation")
    assert (reward, terminated, truncated) == (8.0, True, False) and stub.count("partner") == 1
    environment.reset(seed=1)
    stub.partner = speaks("", "leave")
    _, _, terminated, truncated, info = environment.step("Hello")
    assert (terminated, truncated, info["won"]) == (True, False, True)


def test_silence_is_no_error(factory):
    environment = factory(seat=0)()
    environment.reset(seed=0)
    observation, reward, _, _, info = environment.step(None)
    assert (info["executed"], reward, observation["talk"]) == (False, 0.0, (("Otto Stone", "Fine."),))


def test_judgements_are_kept_and_damaged_ones_asked_again(factory, stub, tmp_path):
    def play():
        environment = factory(seat=0, max_steps=1)()
        environment.reset(seed=0)
        return environment.step("Red?")[4]["dimensions"]

    first = play()
    assert play() == first and stub.count("judge") == 1
    (entry,) = (tmp_path / "cache" / "judgements").iterdir()
    for damage in (entry.read_text()[:40], "", "[]", json.dumps({"key": entry.stem, "scores": {}})):
        entry.write_text(damage)
        asked = stub.count("judge")
        assert play() == first and stub.count("judge") == asked + 1


@pytest.mark.parametrize("rubbish", ["no JSON", "{}", "", 500, b"<html>", b'{"choices": []}', speaks("x", "sing")])
def test_a_partner_that_answers_rubbish_is_asked_again_and_then_named(factory, stub, rubbish):
    environment = factory(seat=0)()
    environment.reset(seed=0)
    stub.partner = [rubbish, speaks("Sorry!")]
    assert environment.step("Hello")[0]["text"] == "Sorry!"
    stub.partner = rubbish
    with pytest.raises(EndpointError, match=f"partner at {stub.url}.*tried 2 times"):
        environment.step("Hello again")
    with pytest.raises(RuntimeError, match="reset"):
        environment.step("Hello?")
    stub.partner = speaks("Fine.")
    environment.reset(seed=1)
    assert environment.step("Hello")[0]["text"] == "Fine."


def test_a_partner_that_is_not_there_or_silent_is_named(factory, stub):
    with serving() as gone:
        build = factory(seat=0, partner_url=gone.url, judge_url=stub.url)
        environment = build()
        environment.reset(seed=0)
    with pytest.raises(EndpointError, match=f"partner at {gone.url}.*no connection"):
        environment.step("Hello")
    build()  # an address that was once reachable is not checked again
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        for role in ("partner", "judge"):
            with pytest.raises(ValueError, match=f"the {role} at {nowhere}.*no connection.*Start a server at {role}_url"):
                factory(**{f"{role}_url": nowhere})()
    environment = factory(seat=0, timeout_s=0.2, retries=0)()
    environment.reset(seed=0)
    stub.partner = None
    with pytest.raises(EndpointError, match="no full answer within 0.2 s"):
        environment.step("Hello")


def test_a_conversation_without_a_judgement_is_kept_and_judged_later(factory, stub, tmp_path):
    build = factory(seat=0, max_steps=1)
    environment = build()
    environment.reset(seed=0)
    stub.judge = judges((11, 4))  # out of range
    with pytest.raises(EndpointError, match="the judge at") as raised:
        environment.step("Red, red, red?")
    kept = Judgements(str(tmp_path / "cache"))
    (talk,) = kept.pending()
    assert "Red, red, red?" in talk["history"] and "judge_later" in raised.value.__notes__[0]
    stub.judge = judges()
    scores = judge_pending(build.args[0])
    assert scores[talk["key"]]["agent_1"]["goal"] == 8 and kept.pending() == []
    asked = stub.count("judge")
    environment.reset(seed=0)
    assert environment.step("Red, red, red?")[1] == 8.0 and stub.count("judge") == asked


def test_without_a_cache_the_conversation_is_in_the_notes(factory, stub):
    environment = factory(seat=0, max_steps=1, cache=None)()
    environment.reset(seed=0)
    stub.judge = 503
    with pytest.raises(EndpointError, match="status 503") as raised:
        environment.step("Red?")
    assert 'said: "Red?"' in raised.value.__notes__[0]
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_the_key_is_sent_and_nowhere_else(factory, stub, monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    build = factory(seat=0, max_steps=1, key_variable="MY_KEY")
    environment = build()
    environment.reset(seed=0)
    environment.step("Red?")
    assert set(stub.keys) == {"Bearer sk-very-secret"}
    environment.reset(seed=1)
    stub.partner = 401
    with pytest.raises(EndpointError) as raised:
        environment.step("Red?")
    assert stub.count("partner") == 2  # a refused request is not retried
    monkeypatch.setenv("MY_KEY", "sk-very-secret\nbroken")
    environment.reset(seed=1)
    with pytest.raises(EndpointError) as broken:
        environment.step("Red?")
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    errors = (repr(raised.value), str(raised.value), repr(broken.value))
    told = (*errors, repr(build), repr(environment.__dict__), written, *capfd.readouterr())
    assert not any("sk-very" in text for text in told)
    assert b"sk-very" not in pickle.dumps(build)


def test_nothing_is_printed_and_the_home_folder_is_left_alone(factory, capfd):
    environment = factory(seat=0, max_steps=1)()
    environment.reset(seed=0)
    environment.step("Red?")
    assert capfd.readouterr() == ("", "")
    from sotopia.database import get_storage_backend

    assert Path.home() not in Path(get_storage_backend().base_path).parents
    assert os.environ["SOTOPIA_STORAGE_BACKEND"] == "local"


def test_self_play_asks_and_reads_the_partner_as_the_policy(factory, stub):
    environment = factory(seat=0, partner_prompt="istar")()
    observation, info = environment.reset(seed=0)
    stub.partner = prompts("istar").answer("Blue, I say.")
    observation, *_ = environment.step("Red?")
    assert observation["text"] == "Blue, I say."
    asked = stub.asked[0][1]
    assert "You are Otto Stone." in asked and "Mina Stone: Red?" in asked and "number 1 of 2" in asked
    assert "likes red" not in asked
    assert "number 2 of 2" in prompts("istar").window(prompt_view(observation, info), ())
    stub.partner = "no tags at all"
    observation, *_ = environment.step("Red!")
    assert "number 2 of 2" in stub.asked[1][1]
    assert observation["talk"][-1] == ("Mina Stone", "Red!")  # an output without an action is silence, as for the policy


@pytest.mark.parametrize("nothing", ["", " \n", b'{"choices": [{"message": {"content": null}}]}'])
def test_in_self_play_an_empty_output_is_silence(factory, stub, nothing):
    environment = factory(seat=0, partner_prompt="compact")()
    environment.reset(seed=0)
    stub.partner = nothing
    observation, *_ = environment.step("Red?")
    assert observation["talk"] == (("Mina Stone", "Red?"),) and stub.count("partner") == 1


def test_environments_share_a_process(factory, stub):
    stub.partner = lambda prompt: speaks("about " + prompt.split("fence number ")[1].split(".")[0])
    build = pickle.loads(pickle.dumps(factory(seat=0, max_steps=3)))

    def play(seed):
        environment = build()
        _, info = environment.reset(seed=seed)
        number = info["task"].split("fence number ")[1].split(".")[0]
        return {environment.step(f"turn {turn}")[0]["text"] == f"about {number}" for turn in range(3)}

    with ThreadPoolExecutor(8) as threads:
        assert set().union(*threads.map(play, range(8))) == {True}
    assert pool("sotopia") == "thread" and pool("tiny") == "inline"


def test_what_is_missing_is_named(folder, stub):
    for nothing in (None, ""):  # a config has empty strings until it is filled in
        with pytest.raises(ValueError, match="needs data and partner_url"):
            make("sotopia", data=nothing, partner_url=nothing)
        with pytest.raises(ValueError, match="needs partner_url"):
            make("sotopia", data=folder, partner_url=nothing)
    with pytest.raises(FileNotFoundError, match="no envs.json, .* in .*nowhere; set data to the folder"):
        make("sotopia", data=folder / "nowhere", partner_url=stub.url)
    with pytest.raises(ValueError, match="partner_model=''"):
        make("sotopia", data=folder, partner_url=stub.url, partner_model="")
    environment = make("sotopia", data=folder, partner_url=stub.url)()
    with pytest.raises(ValueError, match="unknown split"):
        environment.reset(seed=0, options={"split": "test"})
    with pytest.raises(ValueError, match="seed=-1"):
        environment.reset(seed=-1)
    assert isinstance(environment, PackageEnv)


def test_the_benchmarks_own_data(root, stub):
    real = root.parent / "shared" / "data" / "sotopia"
    if not real.is_dir():
        pytest.skip("the benchmark's data is not beside the repository")
    environment = make("sotopia", data=real, partner_url=stub.url)()
    assert (environment.num_tasks("train"), environment.num_tasks("held_out")) == (720, 180)
    hard = make("sotopia", data=real, partner_url=stub.url, subset="hard", seat=0)()
    assert (hard.num_tasks("train"), hard.num_tasks("held_out")) == (380, 70)
    for seed in range(0, 70, 7):
        assert "viewer" not in hard.reset(seed=seed, options={"split": "held_out"})[1]["task"]
