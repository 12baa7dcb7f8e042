"""Demonstrations: played in parallel, stored with what prompts see, and laid out like a rollout."""

import dataclasses
import types

import numpy as np
import pytest

from stepreward.data.demonstrations import Demonstration, read_demonstrations, write_demonstrations
from stepreward.envs.protocol import EXPERT
from stepreward.models.tokenizer import load_tokenizer
from stepreward.rollout.environments import EnvironmentPool
from stepreward.training import streams
from stepreward.training.demonstrating import demonstration_episodes, load_demonstrations, look_around, make_demonstrations
from stepreward.training.words import make_codec


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


@pytest.fixture(autouse=True)
def numbered(monkeypatch):
    """The seed of a task is its index."""
    monkeypatch.setattr(streams, "task", lambda seed, stream, index: index)


def made(episodes=8):
    return make_demonstrations(EnvironmentPool(Doors), episodes, 0)


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


def test_what_fails_is_counted_and_logged(caplog):
    made()
    assert "2 of 8 demonstrations were left out, because their environments failed: OSError: no such door" in caplog.text


def test_without_an_expert_one_line_says_what_to_do():
    class Alone(Doors):
        capabilities = frozenset()

    with pytest.raises(ValueError, match="no expert .* expert.. method, .*sft.updates=0 --config.model.path=FOLDER.*random weights"):
        make_demonstrations(EnvironmentPool(Alone), 4, 0)


class Listed(Doors):
    """No expert; two actions are listed, of which both open a door."""

    capabilities = frozenset()


def test_an_environment_without_an_expert_is_looked_at(caplog):
    records = look_around(EnvironmentPool(Listed), 8, 2, 0)
    assert [len(r.actions) for r in records] == [1, 1, 2, 1, 1, 2]  # doors stuck for ever end at max_steps
    assert {action for r in records for action in r.actions} == {"open", "wait"} and not all(r.success for r in records)
    assert [len(r.observations) for r in records] == [2, 2, 3, 2, 2, 3]
    assert "2 of 8 environments failed while observations for the tokenizer were recorded: OSError: no such door" in caplog.text
    again = look_around(EnvironmentPool(Listed), 8, 2, 0)
    assert again == records


def test_looking_at_an_environment_that_always_fails_ends_at_once(monkeypatch):
    monkeypatch.setattr(streams, "task", lambda *_: 2)
    with pytest.raises(ValueError, match="failed on all of the first 32 tasks: .*no such door"):
        look_around(EnvironmentPool(Listed), 1000, 2, 0)


def test_a_tokenizer_without_demonstrations_has_every_listed_action(tmp_path):
    records = [Demonstration("0", "train", ["3 doors"], [], False, 0.0, [{"admissible": ("open", "shut")}])]
    prompt = types.SimpleNamespace(
        first=lambda view: view["text"], later=lambda view: view["text"], window=lambda view, history: view["text"], answer=lambda a: a
    )
    make_codec(tmp_path / "t", [(records, prompt)])
    codec = load_tokenizer(tmp_path / "t")
    assert [len(codec.encode(word)) for word in ("open", "shut", "wait")] == [1, 1, 4]
    assert codec.decode(codec.encode("Any ASCII text ~ {}")) == "Any ASCII text ~ {}"


def test_pictures_that_cannot_be_had_cost_their_demonstrations(caplog):
    class Pictured(Doors):
        def _turn(self):
            observation, info = super()._turn()
            return observation | {"image": self.left}, info

        def reset(self, *, seed, options):
            if seed == 4:
                raise OSError("no picture")
            return super().reset(seed=seed, options=options)

    def read(left):
        if left > 2:
            raise ValueError("a picture of 9 × 9 pixels is too large")
        return left

    some = parts()
    some.chat.user_turn = lambda text, first, image_tokens: np.zeros(3, np.int32)
    some.collector.reader = types.SimpleNamespace(read=read, tokens=lambda images: [1])
    some.collector.pool = EnvironmentPool(Pictured)
    episodes = demonstration_episodes(made(), some)
    assert [e.task.seed for e in episodes] == [0, 1, 5] and [s.images for e in episodes for s in e.steps] == [0, 1, 1]
    assert "1 of 4 demonstrations were left out, because their pictures cannot be shown: OSError: no picture" in caplog.text


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
    with pytest.raises(ValueError, match="4 of 4 demonstrations cannot be used: .*rollout.max_prompt_tokens must be at least 30"):
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


def test_an_expert_that_wins_nothing_is_an_error(monkeypatch):
    monkeypatch.setattr(streams, "task", lambda seed, stream, index: 2 + index)
    with pytest.raises(ValueError, match="won none of 2 tasks.*no such door"):
        make_demonstrations(EnvironmentPool(Doors), 2, 0)


def test_an_environment_that_always_fails_is_not_asked_for_every_task(caplog, monkeypatch):
    """Damaged data, say: one round shows it, in one line of the log."""
    monkeypatch.setattr(streams, "task", lambda *_: 2)
    pool = EnvironmentPool(Doors)
    with pytest.raises(ValueError, match="failed on all of the first 32 tasks: .*no such door"):
        make_demonstrations(pool, 1000, 0)
    assert pool.failures == 32
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["32 environments failed"]


def test_a_published_model_that_imitates_nothing_asks_for_no_expert(tmp_path):
    config = types.SimpleNamespace(model=types.SimpleNamespace(path="folder"), sft=types.SimpleNamespace(updates=0))
    assert load_demonstrations(config, None, tmp_path / "demonstrations") == [] and not any(tmp_path.iterdir())
