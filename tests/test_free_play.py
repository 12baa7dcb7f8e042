"""Rows that wait for nobody play the same episodes, bit for bit, as rows that wait for each other."""

import dataclasses
import time

import jax
import numpy as np
import pytest
from test_play import CONFIG, GROUPED, KEY, chat, on_sokoban, params, starts_of  # noqa: F401

from stepreward.envs import sokoban
from stepreward.models import decoder, layerwise
from stepreward.rollout import rows
from stepreward.rollout.engine import Engine
from stepreward.rollout.environments import ThreadPool
from stepreward.rollout.episode import Start, Task
from stepreward.rollout.rows import Rows
from stepreward.rollout.sampling import Sampling

CONTEXTS = ("step", "episode")


@pytest.fixture(params=[99, 1], ids=["whole", "layerwise"])
def layers(request, monkeypatch):
    """Rows run the whole model in a program, or one layer."""
    monkeypatch.setattr(layerwise, "MANY", request.param)


TASKS = [Task(seed, "train", group) for group, seed in enumerate((3, 8, 11, 12)) for _ in range(3)]


class Slow(sokoban.SokobanEnv):
    """A room whose steps take times that depend on the seed and on nothing else."""

    delays = ()

    def reset(self, *, seed=None, options=None):
        self.turn, self.rng = 0, np.random.default_rng([seed, len(self.delays)])
        return super().reset(seed=seed, options=options)

    def step(self, action):
        if self.delays:
            time.sleep(self.rng.choice(self.delays))
        return super().step(action)


def slow(*delays):
    settings = sokoban.settings("tiny", max_steps=15)
    kind = type("Slow", (Slow,), {"delays": delays})
    return lambda: kind(settings)


def played(collector, params, schedule, starts=None, **options):  # noqa: F811
    starts = [Start(task) for task in TASKS] if starts is None else starts
    return dataclasses.replace(collector, schedule=schedule).play(params, starts, KEY, **options)


def assert_same(some, others, exactly=True):
    assert len(some) == len(others)
    for one, other in zip(some, others):
        facts = ("task", "success", "end", "truncated", "failure", "score", "final_observation", "prefix", "cost")
        assert [getattr(one, name) for name in facts] == [getattr(other, name) for name in facts]
        for a, b in zip(one.steps, other.steps, strict=True):
            assert (a.observation, a.output, a.action, a.reward, a.state_key, a.distance, a.stopped) == (
                b.observation, b.output, b.action, b.reward, b.state_key, b.distance, b.stopped,
            )  # fmt: skip
            np.testing.assert_array_equal(a.prompt_tokens, b.prompt_tokens)
            np.testing.assert_array_equal(a.action_tokens, b.action_tokens)
            check = np.testing.assert_array_equal if exactly else lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5)
            check(a.log_prob, b.log_prob)
            check(a.entropy, b.entropy)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("max_rows", [4, 8, 16])
def test_free_is_lockstep_is_batch(chat, params, context, max_rows, layers):  # noqa: F811
    collector = on_sokoban(chat, context, max_rows=max_rows)
    free, lockstep, batch = (played(collector, params, schedule) for schedule in ("free", "lockstep", "batch"))
    assert_same(free, lockstep)
    assert_same(free, batch, exactly=False)
    assert len({tuple(step.action_tokens) for episode in free for step in episode.steps}) > 2


@pytest.mark.parametrize("context", CONTEXTS)
def test_delays_change_no_bit_and_chunks_nothing_but_rounding(chat, params, context, monkeypatch, layers):  # noqa: F811
    collector = on_sokoban(chat, context, max_rows=4)
    one = played(collector, params, "lockstep")
    for chunk, delays in ((1, (0.0, 0.01)), (2, (0.001, 0.03)), (8, (0.0, 0.0, 0.05))):
        monkeypatch.setattr(Rows.__init__, "__kwdefaults__", {"chunk": chunk})
        expected = played(collector, params, "lockstep")
        with ThreadPool(slow(*delays)) as pool:
            assert_same(played(dataclasses.replace(collector, pool=pool), params, "free"), expected)
        assert_same(expected, one, exactly=False)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("way", ["snapshot", "replay"])
def test_episodes_that_begin_in_the_middle_and_pause(chat, params, context, way):  # noqa: F811
    collector = on_sokoban(chat, context)
    whole = played(collector, params, "batch", [Start(task) for task in GROUPED], keep=True)
    starts = starts_of(whole, 2, way)
    for options in ({}, {"turns": 1}, {"keep": True}):
        free, lockstep, batch = (played(collector, params, s, starts, **options) for s in ("free", "lockstep", "batch"))
        assert_same(free, lockstep)
        assert_same(free, batch, exactly=False)
        assert [(e.pause is None, e.steps[-1].snapshot is None) for e in free] == [
            (e.pause is None, e.steps[-1].snapshot is None) for e in batch
        ]


class Broken(Slow):
    def reset(self, *, seed=None, options=None):
        if seed == 8:
            raise OSError("no such room")
        self.seed = seed
        return super().reset(seed=seed, options=options)

    def step(self, action):
        if self.seed == 11 and self.turn == 1:
            raise RuntimeError("the floor is gone")
        self.turn += 1
        return super().step(action)


def test_a_bad_environment_costs_its_own_episodes(chat, params):  # noqa: F811
    collector = on_sokoban(chat, max_rows=4)
    good = played(collector, params, "lockstep")
    collector = dataclasses.replace(collector, pool=ThreadPool(lambda: Broken(sokoban.settings("tiny", max_steps=15))))
    for schedule in ("free", "lockstep"):
        found = played(collector, params, schedule)
        assert [episode.failure for episode in found[3:6]] == ["OSError: no such room"] * 3
        assert all(len(e.steps) == 1 and "the floor is gone" in e.failure for e in found[6:9])
        assert_same(found[:3] + found[9:], good[:3] + good[9:])
    collector.pool.close()


def test_no_row_waits_for_a_slow_environment(chat, params):  # noqa: F811
    """One room takes a second a step; all others are over long before it."""
    ended = {}

    class Timed(Slow):
        def reset(self, *, seed=None, options=None):
            self.seed = seed
            return super().reset(seed=seed, options=options)

        def step(self, action):
            if self.seed == 3:
                time.sleep(0.6)
            found = super().step(action)
            ended[self.seed] = time.monotonic()
            return found

    collector = on_sokoban(chat, "step", max_rows=4)
    collector = dataclasses.replace(collector, pool=ThreadPool(lambda: Timed(sokoban.settings("tiny", max_steps=15))))
    tasks = [Start(Task(seed, "train", seed)) for seed in (3, 8, 11, 12, 13, 14, 15)]
    played(collector, params, "free", tasks)
    assert ended[3] == max(ended.values()) and ended[3] - max(time for seed, time in ended.items() if seed != 3) > 1.0
    collector.pool.close()


def test_an_interrupt_leaves_no_call_behind(chat, params):  # noqa: F811
    collector = on_sokoban(chat, max_rows=4)
    pool = collector.pool
    expected = played(collector, params, "free")

    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Rows, "_decode", interrupted)
        played(collector, params, "free")
    assert pool.arrived() == {}
    assert_same(played(collector, params, "free"), expected)


def test_what_cannot_be_free_plays_in_a_batch(chat, params, monkeypatch):  # noqa: F811
    """Reference answers are scored in the batch's own pass."""
    collector = on_sokoban(chat, max_rows=4)
    monkeypatch.setattr(rows, "Rows", None)
    assert len(played(collector, params, "free", score_answers=True)) == len(TASKS)


def test_an_unknown_schedule_is_refused(chat):  # noqa: F811
    with pytest.raises(ValueError, match="rollout.schedule='later' is not one of free, lockstep, batch"):
        dataclasses.replace(on_sokoban(chat), schedule="later")


# --- Rows ---


def make_rows(count=4, longest=6, max_length=96, buckets=(4, 8, 16), **options):
    engine = Engine(decoder.graph(CONFIG), CONFIG, Sampling((5,), longest), max_length=max_length, buckets=buckets, pad_id=0)
    return engine, Rows(engine, decoder.build(CONFIG, 0)[1], count, **options)


def keys(number, seed=0):
    return np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed), number)))


def answers(found, wanted):
    got = {}
    while len(got) < wanted:
        got.update(dict(found.run()))
    return got


def prompt(length, seed=0):
    return np.random.default_rng(seed).integers(6, CONFIG.vocab_size, length).astype(np.int32)


def test_rows_equal_the_engine_over_two_turns(layers):
    engine, found = make_rows()
    params = decoder.build(CONFIG, 0)[1]  # noqa: F811
    first, later = [prompt(n, n) for n in (5, 11, 1, 16)], [prompt(n, n) for n in (2, 7, 15, 1)]
    state, one = engine.turn(params, engine.start(4), first, jax.random.wrap_key_data(keys(4)))
    for row in range(4):
        found.ask(row, first[row], keys(4)[row])
    got = answers(found, 4)
    new = [np.r_[one.tokens[row, one.count[row] - 1], later[row]].astype(np.int32) for row in range(4)]
    np.testing.assert_array_equal(found.length, state.length)
    _, two = engine.turn(params, state, new, jax.random.wrap_key_data(keys(4, 1)))
    for row in range(4):
        found.ask(row, np.r_[got[row].tokens[-1:], later[row]], keys(4, 1)[row])
    for mine, whole in ((got, one), (answers(found, 4), two)):
        for row in range(4):
            n = whole.count[row]
            np.testing.assert_array_equal(mine[row].tokens, whole.tokens[row, :n])
            np.testing.assert_allclose(mine[row].log_prob, whole.log_prob[row, :n], atol=1e-5)
            np.testing.assert_allclose(mine[row].entropy, whole.entropy[row, :n], atol=1e-5)
            assert mine[row].stopped == whole.stopped[row]


@pytest.mark.parametrize("piece", [4, 256])
def test_equal_prompts_are_read_once(monkeypatch, piece, layers):
    monkeypatch.setattr(rows, "PIECE", piece)
    engine, found = make_rows(6)
    read = []
    programs = found._programs
    found._programs = programs._replace(read=lambda *args: read.append(int((args[5] > 0).sum())) or programs.read(*args))
    same, other = prompt(11), prompt(11, 1)
    for row, tokens in enumerate((same, other, same, same, other, same)):
        found.ask(row, tokens, keys(6)[row])
    got = answers(found, 6)
    assert sum(read) == 2 * -(-11 // min(piece, 16))
    for row, tokens in ((2, same), (4, other)):  # as if each had been alone
        _, alone = make_rows(6)
        alone.ask(0, tokens, keys(6)[row])
        np.testing.assert_array_equal(answers(alone, 1)[0].log_prob, got[row].log_prob)


def test_a_long_prompt_is_read_in_pieces(monkeypatch):
    whole = []
    for piece in (4, 8, 256):
        monkeypatch.setattr(rows, "PIECE", piece)
        _, found = make_rows()
        found.ask(2, prompt(75), keys(1)[0])
        whole.append(answers(found, 1)[2])
    for one in whole[1:]:
        np.testing.assert_array_equal(one.tokens, whole[0].tokens)
        np.testing.assert_allclose(one.log_prob, whole[0].log_prob, atol=1e-5)


def test_longer_rows_change_no_bit(layers):
    """Attention reads as many tiles of the cache as the longest row fills."""
    answered = []
    for others in ((), (150,), (380, 20)):
        _, found = make_rows(max_length=400)
        for row, length in enumerate(others, 1):
            found.ask(row, prompt(length, row), keys(4)[row])
        found.ask(0, prompt(9), keys(4)[0])
        answered.append(answers(found, 1 + len(others))[0])
    for one in answered[1:]:
        np.testing.assert_array_equal(one.tokens, answered[0].tokens)
        np.testing.assert_array_equal(one.log_prob, answered[0].log_prob)


def test_a_row_that_is_forgotten_answers_as_a_new_one():
    _, found = make_rows()
    found.ask(1, prompt(9), keys(1)[0])
    first = answers(found, 1)[1]
    found.ask(1, np.r_[first.tokens[-1:], prompt(3)], keys(1)[0])
    found.forget(1)  # in the middle of an answer
    assert not found.busy
    found.ask(1, prompt(9), keys(1)[0])
    np.testing.assert_array_equal(answers(found, 1)[1].log_prob, first.log_prob)


def test_what_a_row_refuses():
    _, found = make_rows()
    with pytest.raises(ValueError, match="0 tokens behind 0"):
        found.ask(0, prompt(0), keys(1)[0])
    with pytest.raises(ValueError, match="91 tokens behind 0 and an answer of 6 must be some, and fit max_length=96"):
        found.ask(0, prompt(91), keys(1)[0])
    found.ask(0, prompt(90), keys(1)[0])
    with pytest.raises(ValueError, match="the row 0 is still answering"):
        found.ask(0, prompt(1), keys(1)[0])
    assert len(answers(found, 1)[0].tokens) <= 6
