"""An expert and a judge outside the environment: a language model advises CSO, and a judge scores its candidates."""

import dataclasses
import hashlib
import re
from types import SimpleNamespace

import numpy as np
import pytest
from sotopia_stub import serving
from test_collect import KEY, chat  # noqa: F401  (a fixture)
from test_preference_rules import TASKS, guided, said
from test_preference_runs import config_of

from stepreward import preference
from stepreward.envs.endpoint import Endpoint
from stepreward.errors import UserError
from stepreward.metrics import read_metrics
from stepreward.rollout.episode import LONG_ANSWER, NO_ANSWER, PAUSED, Start
from stepreward.training.experts import EndpointExpert
from stepreward.training.train import Runner

CONVERSATION = [{"role": "user", "content": "at place 1"}]


def expert_at(url, folder=None, **settings):
    return EndpointExpert(Endpoint("expert", url, "tiny", backoff_s=0.01, retries=1), folder, **settings)


def test_answers_are_kept_by_conversation_and_draw(tmp_path):
    with serving() as stub:
        stub.partner = ["up", "down", "left"]
        expert = expert_at(stub.url, tmp_path / "expert", parallel=1, instruction="Be wise.")
        first = expert([CONVERSATION, CONVERSATION, CONVERSATION], [0, 1, 0])
        assert first == ["up", "down", "up"] and len(stub.asked) == 2
    again = expert_at("http://127.0.0.1:1/v1", tmp_path / "expert", instruction="Be wise.")  # the server is gone: nothing is asked
    assert again([CONVERSATION] * 2, [1, 0]) == ["down", "up"]
    (tmp_path / "expert" / next((tmp_path / "expert").iterdir()).name).write_text("{")  # a damaged entry is asked for again
    with pytest.raises(UserError, match="expert.url='http://127.0.0.1:1/v1'"):
        expert_at("http://127.0.0.1:1/v1", tmp_path / "expert", instruction="Be wise.")([CONVERSATION] * 2, [1, 0])


def test_a_request_without_an_answer_is_none_and_asked_again_later(tmp_path):
    with serving() as stub:
        stub.partner = lambda prompt: 500 if "place 1" in prompt else "up"
        expert = expert_at(stub.url, tmp_path / "expert")
        other = [{"role": "user", "content": "at place 2"}]
        assert expert([CONVERSATION, other], [0, 0]) == [None, "up"]
        stub.partner = "down"
        assert expert([CONVERSATION, other], [0, 0]) == ["down", "up"]


def test_nobody_answers():
    with pytest.raises(UserError, match=re.escape("the expert at http://127.0.0.1:1/v1 (model tiny) gave no usable answer")):
        expert_at("http://127.0.0.1:1/v1")([CONVERSATION], [0])
    with pytest.raises(UserError, match="set expert.url to the address"):
        expert_at("http://127.0.0.1:1/v1").open()


def advised_by(chat, up, adviser, judge=None):  # noqa: F811
    collector = guided(chat, up)
    collector.longest_answer = 20
    return collector.player(None)._replace(adviser=adviser, judge=judge)


def test_a_model_answers_in_the_policy_s_place(chat):  # noqa: F811
    seen = []

    def adviser(conversations, draws):
        seen.extend(zip(conversations, draws))
        return ["up", None, "up " * 99]

    player = advised_by(chat, 0.0, adviser)
    played = player([Start(task) for task in TASKS], KEY, keep=True)
    starts = [Start.before(played[0], 2), Start(TASKS[1]), Start(TASKS[1])]
    one, none, long = player.advise(starts, keep=True, draws=[3, 4, 5])
    assert [step.action for step in one.steps] == ["down", "down", "up"] and one.end == PAUSED
    assert none.failure == NO_ANSWER and long.failure == LONG_ANSWER
    assert [draw for _, draw in seen] == [3, 4, 5] and all(said[-1]["role"] == "user" for said, _ in seen)
    assert [said[-1]["content"] for said, _ in seen] == ["say:-2 2", "say:1 0", "say:1 0"]  # the place and the number of steps


def view(text):
    return {"text": text, "task": "go"}


def test_a_model_reads_what_the_policy_reads(chat):  # noqa: F811
    game = SimpleNamespace(view=view("c"), history=[(view("a"), "up"), (view("b"), "down")])
    writer = guided(chat, 0.0)._writer
    (one,) = dataclasses.replace(writer, by_step=True, history=1).messages(game)
    assert one == {"role": "user", "content": writer.prompt.window(game.view, game.history[-1:])}
    whole = dataclasses.replace(writer, by_step=False).messages(game)
    assert [said["role"] for said in whole] == ["user", "assistant", "user", "assistant", "user"]
    later = writer.prompt.later
    assert [said["content"] for said in whole] == [writer.prompt.first(view("a")), "up", later(view("b")), "down", later(view("c"))]


@pytest.mark.parametrize("answer", ["nonsense", "", "<|end|>"])
def test_an_answer_without_an_action_is_no_alternative(chat, answer):  # noqa: F811
    found = preference.make("cso", n=2).collect(advised_by(chat, 0.3, lambda said, draws: [answer] * len(said)), TASKS * 4, KEY)
    assert found.pairs.number == 0 and found.failed == 0


def scores_by_action(episodes):
    worth = {"up": 0.9, "down": 0.1}
    return [np.array([worth.get(step.action, 0.0) for step in episode.steps], np.float32) for episode in episodes]


def test_cso_with_a_judge_plays_only_to_verify(chat):  # noqa: F811
    method = preference.make("cso", score="judge", alternatives=2)
    found = method.collect(advised_by(chat, 0.6, None, scores_by_action), TASKS * 8, KEY)
    assert 0 < found.pairs.number <= found.metrics["candidates"]
    assert all(said(found, i, "chosen") == ["up"] and said(found, i, "rejected") == ["down"] for i in range(found.pairs.number))
    checks = found.played - len(TASKS) * 8 - found.metrics["asked"]
    assert 0 <= checks <= found.metrics["candidates"]  # a candidate whose alternative ends the episode needs no check
    lost = preference.make("cso", score="judge").collect(
        advised_by(chat, 0.6, None, lambda episodes: [np.full(len(e.steps), np.nan, np.float32) for e in episodes]), TASKS * 8, KEY
    )
    assert lost.pairs.number == 0 and lost.metrics["unscored"] > 0
    with pytest.raises(ValueError, match="the player has no judge"):
        method.collect(advised_by(chat, 0.6, None), TASKS * 8, KEY)


def wise(prompt):
    """An action of Sokoban that depends on the request alone."""
    return ("up", "down", "left", "right")[hashlib.sha256(prompt.encode()).digest()[0] % 4]


def test_a_run_whose_expert_is_a_model_and_whose_judge_has_rules(micro_config, tmp_path):
    with serving() as stub:
        stub.partner = wise
        changes = {
            "expert.kind": "endpoint",
            "expert.url": stub.url,
            "expert.instruction": "Solve it.",
            "preference.options.score": "judge",
        }
        changes |= {"preference.options.bad": 0.9, "preference.options.good": 0.05}
        runner = Runner(config_of(micro_config, "cso", **changes), tmp_path / "run")
        runner.run()
        asked = len(stub.asked)
        assert asked == len(list((tmp_path / "run" / "expert").iterdir())) > 0
    records = [record for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if "preference/asked" in record]
    assert sum(record["preference/candidates"] for record in records) > 0 and runner.finished
    assert all(record["rollout/failed_episodes"] == 0 for record in records)


@pytest.mark.parametrize("name, changes, words", [
    ("cso", {"expert.kind": "model"}, "expert.kind='model' is not one of environment, endpoint"),
    ("cso", {"expert.kind": "endpoint"}, "expert.url=''.*up to and including /v1"),
    ("cso", {"expert.kind": "endpoint", "expert.url": "http://127.0.0.1:1/v1", "expert.parallel": 0}, "expert.parallel=0 must be at least 1"),
    ("cso", {"expert.timeout_s": 0.0}, "expert.timeout_s=0.0 must be a finite number, above 0"),
    ("eto", {"expert.kind": "endpoint", "expert.url": "http://127.0.0.1:1/v1"}, "single actions .cso., and preference.method='eto' is none"),
    ("cso", {"preference.options.score": "luck"}, "score='luck' is not one of play, judge"),
    ("cso", {"preference.options.score": "judge", "judge.kind": "endpoint"}, "judge.url=''"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(micro_config, tmp_path, name, changes, words):
    with pytest.raises((UserError, ValueError), match=words):
        Runner(config_of(micro_config, name, **changes), tmp_path / "run")


def test_an_expert_at_an_address_needs_none_in_the_environment(micro_config, tmp_path):
    changes = {"expert.kind": "endpoint", "expert.url": "http://127.0.0.1:1/v1", "expert.retries": 0}
    with pytest.raises(UserError, match="the expert at http://127.0.0.1:1/v1"):
        Runner(config_of(micro_config, "cso", **changes), tmp_path / "run").run()
