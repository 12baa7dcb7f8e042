"""Environments of the package verifiers through their adapter: single-turn, multi-turn, and with an evaluation set."""

import pytest

vf = pytest.importorskip("verifiers")
pytest.importorskip("verifiers.envs.multiturn_env", exc_type=ImportError)

from datasets import Dataset

from stepreward.envs.adapters.verifiers import make
from stepreward.rollout.checking import breaches

NUMBERS = [{"question": f"number {n}", "answer": str(n), "info": {"secret": n}} for n in range(10)]


class Guess(vf.MultiTurnEnv):
    """Says higher or lower, and stops at the number."""

    async def env_response(self, messages, state, **_):
        said, number = str(messages[-1].content), state["info"]["secret"]
        if said == str(number):
            state["final_env_response"] = [{"role": "user", "content": "right"}]
            return state["final_env_response"]
        guessed = int(said) if said.isdecimal() else -1
        return [{"role": "user", "content": "higher" if guessed < number else "lower"}]


def found(completion, answer, **_):
    return float(any(m.content == answer for m in completion if m.role == "assistant"))


def guessing(turns=4, **more):
    return Guess(
        dataset=Dataset.from_list(NUMBERS), rubric=vf.Rubric(funcs=[found]), system_prompt="Guess the number.", max_turns=turns, **more
    )


def sums():
    rows = lambda numbers: Dataset.from_list([{"question": f"{n} + 1", "answer": str(n + 1)} for n in numbers])
    return vf.SingleTurnEnv(dataset=rows(range(8)), eval_dataset=rows(range(100, 104)), rubric=vf.Rubric(funcs=[found]))


GUESS, SUMS = f"{__name__}:guessing", f"{__name__}:sums"


def test_a_conversation_of_several_turns():
    environment = make(GUESS)()
    observation, info = environment.reset(seed=1)
    number = int(observation["text"].removeprefix("number "))
    assert info["task"] == "Guess the number." and "Guess" not in observation["text"]
    observation, reward, terminated, truncated, info = environment.step("-1")
    assert (observation["text"], reward, terminated, truncated, info["won"]) == ("higher", 0.0, False, False, False)
    observation, reward, terminated, truncated, info = environment.step(str(number))
    assert (observation["text"], reward, terminated, truncated) == ("right", 1.0, True, False)
    assert info["won"] and info["score"] == 1.0
    environment.close()


def test_the_environment_s_own_limit_truncates():
    environment = make(GUESS, kwargs={"turns": 2})()
    environment.reset(seed=1)
    assert environment.step("x")[2:4] == (False, False)
    _, reward, terminated, truncated, info = environment.step("x")
    assert (reward, terminated, truncated, info["won"], info["score"]) == (0.0, False, True, False, 0.0)
    environment.close()


def test_one_turn_is_scored_by_the_rubric():
    environment = make(SUMS)()
    seen = {split: set() for split in ("train", "held_out")}
    for split, texts in seen.items():
        for seed in range(12):
            text = environment.reset(seed=seed, options={"split": split})[0]["text"]
            texts.add(text)
            assert text == environment.reset(seed=seed, options={"split": split})[0]["text"]
            right = str(int(text.split()[0]) + 1)
            _, reward, terminated, truncated, info = environment.step(right if seed % 2 else "0")
            assert terminated + truncated == 1 and reward == info["score"] == seed % 2 == info["won"]
    assert all(text.startswith("10") for text in seen["held_out"]) and not seen["train"] & seen["held_out"]


def test_without_an_evaluation_set_half_of_the_rows_are_held_out():
    environment = make(GUESS)()
    of = lambda split: {environment.reset(seed=seed, options={"split": split})[0]["text"] for seed in range(40)}
    assert of("train") == {f"number {n}" for n in range(0, 10, 2)} and of("held_out") == {f"number {n}" for n in range(1, 10, 2)}


@pytest.mark.parametrize("preset", [GUESS, SUMS])
def test_it_keeps_to_the_protocol(preset):
    assert breaches(make(preset), seeds=(0, 1), steps=5, actions=("3", "hello")) == []


def test_mistakes_are_errors():
    for preset, words in (
        ("no-such-env", "cannot be imported"),
        (f"{__name__}:gone", "cannot be imported"),
        ("builtins:dict", "made a dict"),
    ):
        with pytest.raises(ValueError, match=words):
            make(preset)()
