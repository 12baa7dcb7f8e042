"""SOTOPIA's own package with a server of this project: a tiny run is the policy and its own partner; the judge is a bad one."""

import dataclasses

import jax
import pytest

pytest.importorskip("sotopia", reason="the extra sotopia is not installed")
pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from sotopia_stub import judges, serving, write_data

from stepreward.config import load_config_file
from stepreward.envs.endpoint import Endpoint, EndpointError
from stepreward.envs.sotopia import make, pool
from stepreward.envs.sotopia.judgements import Judgements
from stepreward.rollout.environments import Call, EnvironmentFailure
from stepreward.rollout.episode import Task
from stepreward.rollout.pools import make_pool
from stepreward.serve import load_run, running
from stepreward.serve.server import Settings
from stepreward.training.evaluate import load_checkpoint
from stepreward.training.train import Runner

# Lengths in tokens. They are large because the tokenizer of the embedded world spells most words of the package, and the judge's prompt
# also includes the format of its answer.
LENGTH, JUDGED = 2048, 8192


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "talker"
    config = load_config_file(f"{root}/configs/istar_sotopia.py:micro")
    config.rollout.update({"context": "step", "max_prompt_tokens": LENGTH - 8, "max_row_tokens": LENGTH})
    config.update_from_flattened_dict({"train.env_steps": 10, "sft.updates": 1, "eval.every": 99})
    Runner(config, workdir).run()
    return workdir


@pytest.fixture(scope="module")
def address(run):
    with running(load_run(run, max_length=JUDGED), Settings(port=0)) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def stub():
    with serving() as server:
        yield server


@pytest.fixture
def factory(address, tmp_path):
    """Self-play with the served run: the policy's own prompt asks it to be the partner."""
    data, cache = write_data(tmp_path / "data"), str(tmp_path / "cache")

    def build(judge_url, **settings):
        models = {"partner_url": address, "partner_model": "talker", "judge_url": judge_url, "judge_model": "talker"}
        limits = {"max_steps": 2, "retries": 1, "backoff_s": 0.0, "timeout_s": 60}
        return make("sotopia", data=data, cache=cache, partner_prompt="compact", **{**models, **limits, **settings})

    return build


def talk(environments, seeds):
    """Plays a conversation of at most two turns in each slot, concurrently; returns the last results by slot.

    A conversation may be shorter, because a random model may fall silent.
    """
    results = environments.call_all([Call(slot, "reset", (), {"seed": seed}) for slot, seed in enumerate(seeds)])
    assert not [found for found in results if isinstance(found, EnvironmentFailure)]
    going = list(range(len(seeds)))
    while going:
        found = environments.call_all([Call(slot, "step", (f"This is number {slot}.",)) for slot in going])
        for slot, result in zip(list(going), found, strict=True):
            results[slot] = result
            if isinstance(result, EnvironmentFailure) or result[2] or result[3]:
                going.remove(slot)
    return results


def test_self_play_in_four_environments_at_once(factory, stub):
    stub.judge = judges()
    with make_pool(pool("sotopia"), factory(stub.url)) as environments:
        found = talk(environments, (0, 1, 8, 9))  # two scenarios, from both seats
        assert environments.failures == 0 and stub.count("partner") == 0 and stub.count("judge") == 4
    told = [prompt for _, prompt in stub.asked]
    for (observation, reward, *_, info), goal in zip(found, (8.0, 8.0, 4.0, 4.0), strict=True):
        assert (reward, info["score"], info["executed"]) == (goal, goal / 10, True)
        spoken = [words for _, words in observation["talk"]]
        assert any(all(words in prompt for words in spoken) for prompt in told)
    names = [{name for name, _ in observation["talk"]} for observation, *_ in found]
    assert {"Mina Stone", "Otto Stone"} in names  # the served model speaks


def test_a_judge_that_writes_rubbish_is_one_failure(factory, address, tmp_path):
    environment = factory(address, max_steps=1)()
    environment.reset(seed=0)
    with pytest.raises(EndpointError, match=f"judge at {address}.*its answer could not be parsed or was blank .tried 2 times"):
        environment.step("Please?")
    kept = Judgements(str(tmp_path / "cache"))
    (waiting,) = kept.pending()
    assert 'said: "Please?"' in waiting["history"]
    with make_pool(pool("sotopia"), factory(address)) as environments:
        (failure,) = talk(environments, [1])
        assert isinstance(failure, EnvironmentFailure) and "the judge at" in str(failure)
        assert environments.failures == 1 and len(kept.pending()) == 2
        environments.call(0, "reset", seed=1)  # a fresh environment


def test_a_rollout_masks_a_conversation_without_a_judgement(run, factory, address, stub, tmp_path):
    judge = Endpoint("judge", address, "talker", timeout_s=60)

    def judged(prompt):
        """The run itself judges one conversation, the script the others."""
        mine = "fence number 1." in prompt
        return judge.complete([{"role": "user", "content": prompt}], str) if mine else judges()

    stub.judge = judged
    played = load_checkpoint(run, None, "policy")
    with make_pool(pool("sotopia"), factory(stub.url, seat=0)) as environments:
        collector = dataclasses.replace(played.parts.collector, pool=environments)
        tasks = [Task(seed, "train", seed) for seed in range(4)]
        number = {seed: environments.call(0, "reset", seed=seed)[1]["task"].split("number ")[1][:2] for seed in range(4)}
        episodes = collector.collect(played.model.join(played.params), tasks, jax.random.key(0))
        assert environments.failures == 1
    failures = {number[episode.task.seed]: episode.failure for episode in episodes}
    assert [key for key, failure in failures.items() if failure is not None] == ["1."] and "the judge at" in failures["1."]
    good = [episode for episode in episodes if episode.failure is None]
    assert {(episode.score, episode.success, bool(episode.steps)) for episode in good} == {(0.8, True, True)}
    assert len(Judgements(str(tmp_path / "cache")).pending()) == 1


def test_a_conversation_that_is_too_long_is_named(factory, run):
    with running(load_run(run, max_length=64), Settings(port=0)) as short:
        environment = factory(f"{short}/v1", partner_url=f"{short}/v1", seat=0)()
        environment.reset(seed=0)
        with pytest.raises(EndpointError, match="status 400 .context_length_exceeded"):
            environment.step("Red?")
