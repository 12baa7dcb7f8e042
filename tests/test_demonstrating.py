"""Demonstrations: played side by side, kept with what prompts see, laid out as a rollout shows them."""

import dataclasses
import types

import numpy as np
import pytest

from stepreward.data.demonstrations import read_demonstrations, write_demonstrations
from stepreward.envs.protocol import EXPERT
from stepreward.rollout.environments import EnvironmentPool
from stepreward.training.demonstrating import demonstration_episodes, load_demonstrations, make_demonstrations


class Doors:
    """Open `seed mod 4` doors; doors stuck for ever where that is 3; reset breaks where it is 2."""

    capabilities = frozenset({EXPERT})

    def reset(self, *, seed, options):
        assert options == {"split": "train"}
        self.left = seed % 4
        if self.left == 2:
            raise OSError("no such door")
        return self._turn()

    def _turn(self):
        info = {"won": not self.left, "executed": True, "state_key": str(self.left), "admissible": ("open", "wait"), "task": "open all"}
        return {"text": f"{self.left} doors"}, info

    def expert(self, rng):
        assert isinstance(rng, np.random.Generator)
        return ["open"] * max(self.left, 1)

    def step(self, action):
        self.left = max(0, self.left - (self.left < 3))
        observation, info = self._turn()
        return observation, 0.5, not self.left, False, info

    def close(self):
        pass


class Echo:
    def first(self, view):
        return f"{view['task']}: {view['text']} ({', '.join(view['admissible'])})"

    later = first

    def window(self, view, history):
        return self.first(view)

    def answer(self, action):
        return action


def made(episodes=8):
    return make_demonstrations(EnvironmentPool(Doors), episodes, 0, lambda seed, stream, index: index)


def parts(context="step", most=64):
    chat = types.SimpleNamespace(
        user_turn=lambda text, first: np.array([ord(c) for c in text], np.int32), answer=lambda text: np.zeros(len(text), np.int32)
    )
    engine = types.SimpleNamespace(
        buckets=(most,), sampling=types.SimpleNamespace(max_answer_tokens=8), holds=lambda tokens, new=0: tokens <= 120
    )
    collector = types.SimpleNamespace(engine=engine, reader=None, context=context, history=0, long_observation="end")
    return types.SimpleNamespace(collector=collector, chat=chat, prompt=Echo(), factory=Doors)


def test_only_what_the_expert_wins_is_kept_and_failures_are_left_out():
    records = made()
    assert [r.task for r in records] == ["0", "1", "4", "5"] and all(r.success for r in records)
    assert records[1].observations == ["1 doors", "0 doors"] and records[1].actions == ["open"] and records[1].outcome == 0.5
    assert records[1].view(0) == {"text": "1 doors", "admissible": ("open", "wait"), "task": "open all"}


def test_views_come_back_from_disk(tmp_path):
    records = made()
    write_demonstrations(tmp_path / "d", records, {})
    (back, _) = read_demonstrations(tmp_path / "d")
    assert back[1].view(1) == {"text": "0 doors", "admissible": ["open", "wait"], "task": "open all"}


def test_steps_show_the_whole_view():
    (episode, *_) = demonstration_episodes(made(), parts())
    shown = "".join(map(chr, episode.steps[0].prompt_tokens))
    assert shown == "open all: 0 doors (open, wait)" and episode.steps[0].action == "open"


def test_demonstrations_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="4 of 4 demonstrations do not fit: .*rollout.max_prompt_tokens must be at least 30"):
        demonstration_episodes(made(), parts(most=20))


def test_demonstrations_that_are_too_long_are_cut_as_a_rollout_would(caplog):
    made_of = parts(most=70)
    made_of.collector.engine.max_length, made_of.collector.long_observation = 128, "cut"
    records = [dataclasses.replace(record, observations=["d" * 400, *record.observations[1:]]) for record in made()]
    episodes = demonstration_episodes(records, made_of)
    assert len(episodes) == len(records) == 4
    shown = "".join(map(chr, episodes[1].steps[0].prompt_tokens))
    assert len(shown) in (69, 70) and f"[… {episodes[1].steps[0].cut} characters cut …]" in shown and shown.startswith("open all: dd")
    assert "observations that were cut" in caplog.text
    with pytest.raises(ValueError, match="rollout.max_prompt_tokens must be at least 4"):
        demonstration_episodes(records, parts(most=70))


def test_an_expert_that_wins_nothing_is_an_error():
    with pytest.raises(ValueError, match="won none of 2 tasks.*no such door"):
        make_demonstrations(EnvironmentPool(Doors), 2, 0, lambda seed, stream, index: 2 + index)


def test_an_environment_that_always_fails_is_not_asked_for_every_task(caplog):
    """Damaged data, say: one round shows it, in one line of the log."""
    pool = EnvironmentPool(Doors)
    with pytest.raises(ValueError, match="failed on all of the first 32 tasks: .*no such door"):
        make_demonstrations(pool, 1000, 0, lambda *_: 2)
    assert pool.failures == 32
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["32 environments failed"]


def test_a_published_model_that_imitates_nothing_asks_for_no_expert(tmp_path):
    config = types.SimpleNamespace(model=types.SimpleNamespace(path="folder"), sft=types.SimpleNamespace(updates=0))
    assert load_demonstrations(config, None, tmp_path / "demonstrations", None) == [] and not any(tmp_path.iterdir())
