"""Judges of steps: the rules, the language model behind an address, and runs whose credit reads their scores."""

import dataclasses
import hashlib
import json
import re
from typing import ClassVar

import numpy as np
import pytest
from sotopia_stub import serving

from stepreward import credit
from stepreward.credit import base as credit_base
from stepreward.credit.outcome import OutcomeMethod
from stepreward.envs.endpoint import Endpoint
from stepreward.errors import UserError
from stepreward.metrics import read_metrics
from stepreward.report.tables import losses_html
from stepreward.rollout.episode import Episode, Step, Task
from stepreward.training.judges import EndpointJudge, RuleJudge, Unreachable, parse
from stepreward.training.train import Runner

NONE = np.zeros(0, np.int32)


def step(key, action="up", executed=True, *, events=(), turn_reward=0.0, output=None):
    output = f"I go {action}" if output is None else output
    empty = NONE.astype(np.float32)
    return Step(NONE, NONE, empty, empty, f"at {key}", output, action, 0.0, executed, key, events=events, turn_reward=turn_reward)


def episode(*steps, seed=0):
    return Episode(Task(seed, "train", 0), list(steps), final_observation="the end")


def good(prompt):
    """A score of 0 to 4 of 4 points that depends on the request alone."""
    return f"Be quick.\n<final_score>{int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 5},4</final_score>"


# --- By rules ---


def test_the_rules_read_what_the_environment_said():
    played = episode(
        step("a", events=("new_state",)),
        step("b", events=()),
        step("a", executed=False, events=("error",)),
        step("a", events=("new_state", "recovered")),
        step("c", None, events=("error",), executed=False),
        step("c", turn_reward=0.5, events=("new_state",)),
        step("d", turn_reward=-0.5, events=("new_state",)),
    )
    (scores,), calls, failures = RuleJudge().judge([played])
    assert scores.tolist() == [0.5, 0.25, 0, 0.75, 0, 1, 0.25] and scores.dtype == np.float32
    assert (calls, failures) == (0, 0)


def test_without_events_the_rules_read_the_state_keys():
    played = episode(step("a"), step("b", executed=False), step("b"), step("a"), step("c"))
    assert RuleJudge().judge([played]).scores[0].tolist() == [0.5, 0, 0.25, 0.5, 0.5]  # nobody saw the last state before
    assert RuleJudge().judge([episode()]).scores[0].tolist() == []


# --- By a language model ---


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("<final_score>3,4</final_score>", 0.75),
        ("1. Be quick.\n<FINAL_SCORE> 7.5 , 10 </final_score> So it is.", 0.75),
        ("<final_score>1,2</final_score> or rather <final_score>2,2</final_score>", 1.0),
        ("<final_score>0,.5</final_score>", 0.0),
        *((said, None) for said in ("", "7 of 10", "<final_score>SCORE,MAX</final_score>", "<final_score>7</final_score>",
                                    "<final_score>5,4</final_score>", "<final_score>-1,4</final_score>", "<final_score>0,0</final_score>",
                                    "<final_score>nan,4</final_score>", "<final_score>3,4", "\ud800<final_score>\0</final_score>")),
    ],
)  # fmt: skip
def test_a_final_score_is_read_or_refused(said, score):
    if score is None:
        with pytest.raises(ValueError):
            parse(said)
    else:
        assert parse(said) == score


def judge_at(url, folder=None, **options):
    return EndpointJudge(Endpoint("judge", url, "tiny", "JUDGE_KEY", retries=0), folder, **options)


def test_a_model_sees_task_history_and_step():
    with serving() as stub:
        stub.partner = good
        first, second = step("start"), step("b" * 50, output="x" * 50, executed=False)
        ((one, two),), calls, failures = judge_at(stub.url, longest=20).judge([episode(first, second)])
        assert stub.models == [("tiny", 0.0)] * 2 and calls == 2 and failures == 0
        asked = {("Step 1\n" in prompt): prompt for _, prompt in stub.asked}
    assert [one, two] == [np.float32(parse(good(asked[with_history]))) for with_history in (False, True)]
    assert "at start" in asked[False] and "I go up" in asked[False] and "The action took effect." in asked[False]
    assert "The action had no effect." in asked[True] and "The observation after it: the end" in asked[True]
    assert "xxxxxxxxxx[… 30 characters cut …]xxxxxxxxxx" in asked[True]


def test_the_history_is_a_window():
    with serving() as stub:
        stub.partner = good
        judge_at(stub.url, history=1).judge([episode(step("a"), step("b"), step("c"), step("d"))])
        last = next(prompt for _, prompt in stub.asked if "The step to judge, step 4" in prompt)
    assert "(2 earlier steps are not shown.)" in last and "Step 3\n" in last and "Step 2\n" not in last


def test_equal_requests_are_sent_once_and_scores_are_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret-key")
    played = [episode(step("a"), step("b")), episode(step("a"), step("c"))]
    played[1].steps[0] = played[0].steps[0]
    played[1].steps[1].observation = played[0].steps[1].observation  # the same up to what followed the second step
    played[1].final_observation = "another end"
    with serving() as stub:
        stub.partner = good
        first = judge_at(stub.url, tmp_path / "judge").judge(played)
        assert first.calls == 3 and stub.keys == ["Bearer secret-key"] * 3
        again = judge_at("http://127.0.0.1:1/v1", tmp_path / "judge").judge(played)  # the server has moved: nothing is asked
    assert again.calls == 0 and [x.tolist() for x in again.scores] == [x.tolist() for x in first.scores]
    files = sorted((tmp_path / "judge").iterdir())
    assert len(files) == 3 and all("secret-key" not in file.read_text() for file in files)
    files[0].write_text("{")  # a damaged entry is asked for again
    with pytest.raises(Unreachable):
        judge_at("http://127.0.0.1:1/v1", tmp_path / "judge").judge(played)


@pytest.mark.parametrize("rubbish", ["no score", "", "<final_score>9,1</final_score>"])
def test_rubbish_is_asked_for_once_more_and_then_is_no_score(tmp_path, rubbish):
    with serving() as stub:
        stub.partner = lambda prompt: (
            rubbish if "at b" in prompt.split("The step to judge")[1].split("The observation after")[0] else good(prompt)
        )
        found = judge_at(stub.url, tmp_path / "judge").judge([episode(step("a"), step("b"))])
        assert found.calls == 3 and found.failures == 1
        assert np.isnan(found.scores[0]).tolist() == [False, True]
        stub.partner = good
        again = judge_at(stub.url, tmp_path / "judge").judge([episode(step("a"), step("b"))])
    assert again.calls == 0 and again.failures == 1  # a resumed run masks the same episodes


def test_a_second_answer_may_have_a_score():
    with serving() as stub:
        stub.partner = ["hm", "<final_score>1,2</final_score>"]
        assert judge_at(stub.url).judge([episode(step("a"))]).scores[0].tolist() == [0.5]


def test_some_requests_without_an_answer_are_steps_without_a_score():
    with serving() as stub:
        stub.partner = lambda prompt: 500 if "The step to judge, step 2" in prompt else good(prompt)
        found = judge_at(stub.url).judge([episode(step("a"), step("b"), step("c"))])
    assert found.failures == 1 and np.isnan(found.scores[0]).tolist() == [False, True, False]


def test_a_judge_that_nobody_hears_is_given_up_soon(tmp_path):
    with serving() as stub:
        stub.partner = 503
        with pytest.raises(Unreachable, match=re.escape(f"the judge at {stub.url} (model tiny) gave no usable answer: status 503")):
            judge_at(stub.url, tmp_path / "judge", parallel=2).judge([episode(*(step(str(i)) for i in range(60)))])
        assert len(stub.asked) < 20
    assert not (tmp_path / "judge").exists()
    with pytest.raises(Unreachable):
        judge_at("http://127.0.0.1:1/v1").reach()


# --- In a run ---


@pytest.fixture
def judged(monkeypatch):
    """A method that reads the judge's scores and nothing else."""
    monkeypatch.setattr(credit_base, "_METHODS", dict(credit_base._METHODS))

    @credit.register("judged")
    @dataclasses.dataclass(frozen=True)
    class Judged(OutcomeMethod):
        name: ClassVar[str] = "judged"
        requires = frozenset({"process_score"})

        def _episode_advantage(self, batch):
            return batch.outcome

        def assign(self, batch):
            found = super().assign(batch)
            kept = batch.step_mask & batch.episode_mask[:, None]
            mean = batch.signals["process_score"].mean(where=kept)
            return found.replace(metrics={**found.metrics, "score_seen": mean, "episodes_seen": batch.episode_mask.sum().astype("float32")})


SHORT = {"credit.method": "judged", "train.env_steps": 300, "checkpoint.every": 99, "eval.every": 99, "eval.prm_as_policy_every": 0}


def learnt(runner):
    return [
        {k: v for k, v in r.items() if not k.startswith("time/") and k not in ("wall_s", "rollout/tokens_per_s", "judge/calls")}
        for r in read_metrics(runner.workdir)
        if r["stage"] == "train"
    ]


def test_a_run_with_the_rules(judged, micro_config, tmp_path):
    runner = Runner(micro_config(SHORT), tmp_path / "run")
    runner.run()
    records = learnt(runner)
    assert records and all(r["judge/failures"] == 0 and 0 < r["credit/score_seen"] < 1 for r in records)


def test_an_episode_with_a_step_without_a_score_is_masked_and_counted(judged, micro_config, tmp_path):
    with serving() as stub:
        stub.partner = lambda prompt: "no idea" if "step 7" in prompt else good(prompt)  # long episodes only
        config = {**SHORT, "judge.kind": "endpoint", "judge.url": stub.url, "judge.retries": 0}
        runner = Runner(micro_config(config), tmp_path / "run")
        runner.run()
    records = learnt(runner)
    assert any(r["judge/masked_episodes"] for r in records)
    for r in records:
        assert r["judge/masked_episodes"] <= r["judge/failures"]
        if "credit/episodes_seen" in r:  # otherwise every episode of the iteration was masked
            assert r["credit/episodes_seen"] == 16 - r["judge/masked_episodes"] and np.isfinite(r["credit/score_seen"])
    shown = losses_html(records)
    assert "steps that the judge gave no score" in shown and "they are masked for credit" in shown


def test_a_judge_that_disappears_loses_no_finished_tick(judged, micro_config, tmp_path):
    config = {**SHORT, "judge.kind": "endpoint", "judge.retries": 0}
    with serving() as stub:
        stub.partner = good
        whole = Runner(micro_config({**config, "judge.url": stub.url}), tmp_path / "whole")
        whole.run()
        cut = Runner(micro_config({**config, "judge.url": stub.url}), tmp_path / "cut")
        while not cut.counters.iteration:
            cut.tick()
        stub.partner, tick = 500, cut.counters.tick
        with pytest.raises(UserError, match="status 500.*Start the server of judge.url=.* again, or set judge.url to the address"):
            cut.run()
        assert cut.counters.tick == tick
        stub.partner = good
    with serving() as moved:
        moved.partner = good
        again = Runner(micro_config({**config, "judge.url": moved.url}), tmp_path / "cut")
        assert again.counters.tick == tick and again.counters.iteration == 1
        again.run()
    assert len(learnt(whole)) > 1 and learnt(again) == learnt(whole)
    kept = json.loads(next((tmp_path / "cut" / "judge").iterdir()).read_text())
    assert set(kept) == {"key", "score", "said"} and kept["said"].startswith("Be quick.")


def test_an_address_without_a_server_is_found_before_anything_is_trained(judged, micro_config, tmp_path):
    config = {**SHORT, "judge.kind": "endpoint", "judge.url": "http://127.0.0.1:1/v1"}
    with pytest.raises(UserError, match="no connection.*judge.url='http://127.0.0.1:1/v1'.*judge.kind=rules needs no server"):
        Runner(micro_config(config), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"judge.kind": "oracle"}, "judge.kind='oracle' is not one of rules, endpoint"),
        ({"judge.kind": "endpoint"}, "judge.url='': judge.kind='endpoint' needs the address"),
        ({"judge.parallel": 0}, "judge.parallel=0 must be at least 1"),
        ({"judge.retries": -1}, "judge.retries=-1 must be at least 0"),
        ({"judge.timeout_s": 0.0}, "judge.timeout_s=0.0 must be a finite number, above 0"),
        ({"judge.temperature": -1.0}, "judge.temperature=-1.0 must be a finite number, at least 0"),
        ({"judge.max_characters": 1}, "judge.max_characters=1 must be at least 2"),
    ],
)
def test_bad_values_are_named(judged, micro_config, tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        Runner(micro_config({**SHORT, **change}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
