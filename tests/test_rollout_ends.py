"""Why episodes end, what is truncated, and that both are counted, named and warned about once."""

import logging

import jax
import numpy as np
import pytest
from test_collect import CONFIG, KEY, Counter, Script, Words, chat, spell, tasks  # noqa: F401  (`chat` is a fixture)

from stepreward.models import decoder
from stepreward.report.episode_html import episode_html, plain_board
from stepreward.report.tables import losses_html
from stepreward.rollout.engine import Engine
from stepreward.rollout.environments import EnvironmentPool
from stepreward.rollout.episode import Episode, cuts, to_record
from stepreward.rollout.fitting import _search, cut_text, shorten
from stepreward.rollout.play import Collector
from stepreward.rollout.recording import from_recording, to_recording
from stepreward.rollout.sampling import Sampling

WIDTH = 24  # tokens of a turn


class Talker(Counter):
    """Says "say:<seed> <turn>" and, at the turns that `extra` names, so many more letters."""

    def __init__(self, behaviour, extra):
        super().__init__(behaviour)
        self.extra = extra

    def _observe(self):
        return {"text": f"say:{self.seed} {self.turn}" + "s" * self.extra.get((self.seed, self.turn), 0)}


class Blocked(Counter):
    """Understands every action, and lets none happen."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, info | {"executed": False}


class Sized(Script):
    """A scripted engine with the limits of a real one."""

    def __init__(self, answers, width=WIDTH, most=10**6):
        super().__init__(answers)
        self.buckets, self.max_length, self.sampling = (width,), most, Sampling((3,), self.longest)
        self.keys = []

    def holds(self, tokens, new=0):
        return new <= self.buckets[-1] and tokens + self.longest <= self.max_length

    def turn(self, params, state, new_tokens, keys):
        assert max(map(len, new_tokens)) <= self.buckets[-1], "a turn is longer than its bucket"
        said = [len(new) > 0 for new in new_tokens]
        self.keys.append([tuple(key) for key, talks in zip(np.asarray(jax.random.key_data(keys)), said) if talks])
        return super().turn(params, state, new_tokens, keys)


def collector(chat, *, extra=(), behaviour=(), context="step", mode="end", width=WIDTH, most=10**6, made=None, **more):  # noqa: F811
    engine = Sized(lambda said: [*spell(chat, "up"), chat.codec.end_id], width, most)
    pool = EnvironmentPool(made or (lambda: Talker(dict(behaviour), dict(extra))))
    settings = dict(history=0, max_steps=9, max_rows=4, longest_answer=4) | more
    return Collector(engine, pool, Words(), chat, context=context, long_observation=mode, **settings)


def end_of(episode):
    return episode.end, len(episode.steps), episode.truncated


# --- Why an episode ended ---


@pytest.mark.parametrize("context", ["step", "episode"])
def test_each_end_has_its_name(chat, context):  # noqa: F811
    made = collector(chat, behaviour={1: 2}, extra={(3, 2): 99}, context=context)
    won, stopped, long = made.collect(None, tasks(1, 2, 3), KEY)
    assert end_of(won) == ("terminated", 2, False) and won.success
    assert end_of(stopped) == ("environment_limit", 6, True)  # its own, at 6
    assert end_of(long) == ("too_long", 2, True) and not long.success
    (limited,) = collector(chat, context=context, max_steps=4).collect(None, tasks(2), KEY)
    assert end_of(limited) == ("step_limit", 4, True)
    (both,) = collector(chat, context=context, max_steps=6).collect(None, tasks(2), KEY)
    assert end_of(both) == ("step_limit", 6, True)


def test_a_full_conversation_is_not_a_long_prompt(chat):  # noqa: F811
    (free,) = collector(chat, context="episode").collect(None, tasks(1), KEY)
    most = sum(len(s.prompt_tokens) + len(s.action_tokens) for s in free.steps[:3]) + len(free.steps[3].prompt_tokens) + 3
    for mode in ("end", "cut"):
        (full,) = collector(chat, context="episode", most=most, mode=mode).collect(None, tasks(1), KEY)
        assert end_of(full) == ("row_full", 3, True) and full.needs == {"rollout.max_row_tokens": most + 1}


def test_what_a_long_prompt_needs_is_what_makes_it_fit(chat):  # noqa: F811
    (ended,) = collector(chat, extra={(1, 2): 99}).collect(None, tasks(1), KEY)
    (wanted,) = ended.needs.values()
    assert list(ended.needs) == ["rollout.max_prompt_tokens"]
    (fits,) = collector(chat, extra={(1, 2): 99}, width=wanted).collect(None, tasks(1), KEY)
    assert fits.end == "environment_limit" and not fits.needs
    (short,) = collector(chat, extra={(1, 2): 99}, width=wanted - 1).collect(None, tasks(1), KEY)
    assert short.end == "too_long"


def test_in_a_step_s_row_the_answer_needs_room_too(chat):  # noqa: F811
    (ended,) = collector(chat, extra={(1, 2): 9}, width=60, most=20).collect(None, tasks(1), KEY)
    assert ended.end == "too_long" and list(ended.needs) == ["rollout.max_row_tokens"]
    (fits,) = collector(chat, extra={(1, 2): 9}, width=60, most=ended.needs["rollout.max_row_tokens"]).collect(None, tasks(1), KEY)
    assert fits.end == "environment_limit"


def test_a_first_prompt_that_is_too_long_says_the_length_it_needs(chat):  # noqa: F811
    long, other = collector(chat, extra={(1, 0): 99}).collect(None, tasks(1, 2), KEY)
    needed = long.needs["rollout.max_prompt_tokens"]
    assert long.failure == f"the first prompt has {needed} tokens: set rollout.max_prompt_tokens to at least {needed}"
    assert not long.steps and other.failure is None
    (cut, _) = collector(chat, extra={(1, 0): 99}, mode="cut", width=44).collect(None, tasks(1, 2), KEY)
    assert cut.failure is None and cut.steps[0].cut > 0


# --- Cutting ---


@pytest.mark.parametrize("context", ["step", "episode"])
def test_a_long_observation_is_cut_and_the_episode_goes_on(chat, context):  # noqa: F811
    made = collector(chat, extra={(1, 2): 99}, context=context, mode="cut", width=44)
    (cut,) = made.collect(None, tasks(1), KEY)
    assert end_of(cut) == ("environment_limit", 6, True)
    assert [step.cut > 0 for step in cut.steps] == [False, False, True, False, False, False]
    step = cut.steps[2]
    shown = 44 - (context == "episode")
    assert shown - 1 <= len(step.prompt_tokens) <= shown  # as much of it as fits; the answer's last token is sent again
    kept = len("say:1 2") + 99 - step.cut
    text = cut_text("say:1 2" + "s" * 99, kept)
    np.testing.assert_array_equal(step.prompt_tokens, chat.user_turn(text, first=context == "step"))
    assert f"[… {step.cut:,} characters cut …]" in text and step.observation == "say:1 2" + "s" * 99
    assert cut.needs["rollout.max_prompt_tokens"] > 99


def test_nothing_changes_where_nothing_is_too_long(chat):  # noqa: F811
    for context in ("step", "episode"):
        one, other = (collector(chat, context=context, mode=mode, history=2).collect(None, tasks(1, 2), KEY) for mode in ("end", "cut"))
        for a, b in zip(one, other, strict=True):
            for s, t in zip(a.steps, b.steps, strict=True):
                np.testing.assert_array_equal(s.prompt_tokens, t.prompt_tokens)
            assert (a.end, a.needs, b.needs) == (b.end, {}, {})


def real_engine(chat, longest=1):  # noqa: F811
    """An engine in which every token ends an answer."""
    sampling = Sampling(tuple(range(CONFIG.vocab_size)), longest)
    return Engine(decoder.graph(CONFIG), CONFIG, sampling, 256, (WIDTH,), chat.codec.pad_id)


@pytest.mark.parametrize("tokens, end", [(WIDTH - 1, "environment_limit"), (WIDTH, "too_long"), (WIDTH + 1, "too_long")])
def test_a_later_prompt_of_exactly_the_largest_bucket_ends_the_episode_and_never_raises(chat, tokens, end):  # noqa: F811
    """In a conversation the answer's last token is sent again before it, so that the turn has one token more."""
    extra = tokens - len(chat.user_turn("say:1 2", first=False))
    made = collector(chat, extra={(1, 2): extra}, context="episode")
    made.engine = real_engine(chat)
    (episode,) = made.collect(decoder.build(CONFIG, 1)[1], tasks(1), KEY)
    assert (episode.end, len(episode.steps)) == (end, 6 if end == "environment_limit" else 2)
    assert len(episode.steps[0].prompt_tokens) < WIDTH


def test_an_engine_holds_what_its_turn_takes(chat):  # noqa: F811
    engine = real_engine(chat, longest=3)
    assert engine.holds(WIDTH, WIDTH) and not engine.holds(WIDTH, WIDTH + 1)
    assert engine.holds(253, 1) and not engine.holds(254, 1)


def test_a_cut_prompt_leaves_room_for_the_answer_in_its_row(chat):  # noqa: F811
    (cut,) = collector(chat, extra={(1, 2): 99}, width=60, most=50, mode="cut").collect(None, tasks(1), KEY)
    assert cut.end == "environment_limit" and 44 <= len(cut.steps[2].prompt_tokens) <= 46


def test_the_history_is_cut_before_the_present():
    write = lambda view, history: np.zeros(len(view["text"]) + sum(len(seen["text"]) + len(said) for seen, said in history), np.int32)
    page, now = {"text": "p" * 200}, {"text": "n" * 30}
    history = [(page, "up"), ({"text": "q" * 10}, "up")]
    assert len(write(now, history)) == 244
    found = shorten(write, now, history, 120)
    assert len(found.tokens) <= 120 and found.cut > 0
    kept = 200 - found.cut
    expected = write(now, [({"text": cut_text("p" * 200, kept)}, "up"), history[1]])
    assert kept > 10 and len(found.tokens) == len(expected)  # the short one is whole
    assert len(shorten(write, now, history, 60).tokens) <= 60
    alone = shorten(write, now, history, 30)  # no room for the past
    assert (len(alone.tokens), alone.cut) == (30, 210)
    assert shorten(write, {"text": "n" * 300}, history, 60).cut >= 210 + 240
    assert shorten(lambda view, _: np.zeros(99), now, [], 60) is None  # the rules are too long


def test_a_text_is_cut_in_the_middle_and_says_how_much():
    text = "".join(chr(ord("a") + i % 26) for i in range(3_000))
    assert cut_text(text, 3_000) == text
    cut = cut_text(text, 30)
    assert cut == text[:20] + "[… 2,970 characters cut …]" + text[-10:]
    assert cut_text(text, 0) == "[… 3,000 characters cut …]"


# --- What is told ---


def test_what_was_cut_is_counted(chat):  # noqa: F811
    episodes = collector(chat, extra={(1, 2): 99, (2, 3): 50}).collect(None, tasks(1, 2, 3), KEY)
    found = cuts(episodes)
    assert (found["too_long"], found["environment_limit"], found["step_limit"], found["row_full"]) == (2, 1, 0, 0)
    assert found["longest_prompt"] == max(e.needs.get("rollout.max_prompt_tokens", 0) for e in episodes) > 99
    episodes = collector(chat, extra={(1, 2): 99, (1, 3): 50}, mode="cut", width=44).collect(None, tasks(1, 2), KEY)
    assert cuts(episodes)["observations_cut"] == 2 and cuts(episodes)["too_long"] == 0


def test_answers_that_were_cut_are_counted(chat):  # noqa: F811
    made = collector(chat)
    made.engine.answers = lambda said: spell(chat, "u") * 4
    (episode,) = made.collect(None, tasks(1), KEY)
    assert not any(step.stopped for step in episode.steps) and cuts([episode])["answers_cut"] == 6
    assert cuts(collector(chat).collect(None, tasks(1), KEY))["answers_cut"] == 0


def test_each_kind_is_warned_of_once_with_what_it_needs(chat, caplog):  # noqa: F811
    made = collector(chat, extra={(1, 0): 99, (2, 1): 70, (3, 2): 80})
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            episodes = made.collect(None, tasks(1, 2, 3), KEY)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("stepreward.rollout")]
    assert len(said) == 2
    first, long = said
    assert (
        "1 of 3 episodes failed" in first
        and f"rollout.max_prompt_tokens to at least {episodes[0].needs['rollout.max_prompt_tokens']}" in first
    )
    assert "2 of 3 episodes ended early" in long and "rollout.long_observation='cut'" in long
    assert f"rollout.max_prompt_tokens to at least {episodes[2].needs['rollout.max_prompt_tokens']}" in long
    caplog.clear()
    made = collector(chat, extra={(2, 1): 70}, mode="cut", width=44)
    with caplog.at_level(logging.WARNING):
        made.collect(None, tasks(2), KEY)
        made.collect(None, tasks(2), KEY)
    (cut,) = [record.getMessage() for record in caplog.records]
    assert "were cut to fit" in cut and "rollout.max_prompt_tokens to at least" in cut


def test_the_report_names_the_end_and_what_was_not_shown(chat):  # noqa: F811
    (ended,) = collector(chat, extra={(1, 2): 99}).collect(None, tasks(1), KEY)
    page = episode_html(1, to_record(ended), plain_board)
    assert ">prompt too long</span>" in page and "step limit" not in page and "rollout.max_prompt_tokens of at least" in page
    (cut,) = collector(chat, extra={(1, 2): 1_500}, mode="cut", width=44).collect(None, tasks(1), KEY)
    page = episode_html(1, to_record(cut), plain_board)
    assert f"{cut.steps[2].cut:,} characters not shown to the model" in page and "stopped by the environment" in page
    (limited,) = collector(chat, max_steps=2).collect(None, tasks(1), KEY)
    assert ">step limit</span>" in episode_html(1, to_record(limited), plain_board)


def test_the_report_sums_up_what_was_cut():
    records = [
        {"tick": i, "iteration": i, "rollout/too_long": 2.0, "rollout/answers_cut": 0.0, "rollout/longest_prompt": 90.0 + i} for i in (1, 2)
    ]
    page = losses_html(records)
    assert "because a prompt was too long" in page and "<td>4</td>" in page and "92 tokens" in page and "answers" not in page
    assert losses_html([{"iteration": 1, "rollout/too_long": 0.0}]) == ""


def test_a_recording_keeps_why_and_what(chat):  # noqa: F811
    for mode in ("end", "cut"):
        (episode,) = collector(chat, extra={(1, 2): 99}, mode=mode, width=44).collect(None, tasks(1), KEY)
        again = from_recording(to_recording(episode))
        assert (again.end, again.needs) == (episode.end, episode.needs)
        assert [(s.cut, s.stopped) for s in again.steps] == [(s.cut, s.stopped) for s in episode.steps]


def test_an_unknown_way_with_long_observations_is_refused(chat):  # noqa: F811
    with pytest.raises(ValueError, match="rollout.long_observation='drop' is not one of cut, end"):
        collector(chat, mode="drop")


def test_an_episode_s_needs_are_the_largest():
    episode = Episode(tasks(1)[0])
    for count in (5, 9, 7):
        episode.need(max_prompt_tokens=count)
    assert episode.needs == {"rollout.max_prompt_tokens": 9}


# --- The loop itself ---


def test_every_turn_and_every_row_draws_with_another_key(chat):  # noqa: F811
    made = collector(chat, max_rows=2)
    made.collect(None, tasks(1, 2, 3), KEY)  # two rows, then the third task alone
    keys = [key for turn in made.engine.keys for key in turn]
    assert len(keys) == 3 * 6 == len(set(keys))


def test_an_action_that_is_understood_and_blocked_costs_no_penalty(chat):  # noqa: F811
    made = collector(chat, made=lambda: Blocked({1: 3}), invalid_penalty=0.25)
    (episode,) = made.collect(None, tasks(1), KEY)
    assert [(s.action, s.executed, s.reward) for s in episode.steps] == [("up", False, 1.0), ("up", False, 2.0), ("up", False, 3.0)]


@pytest.mark.parametrize("longest", range(6))
@pytest.mark.parametrize("room", range(6))
def test_as_many_characters_are_kept_as_there_is_room_for(longest, room):
    """A text of `longest` characters that is too long, with two tokens besides it."""
    written = []

    def write(kept):
        written.append(kept)
        return np.zeros(2 + kept)

    found = _search(write, longest, room)
    if longest == 0 or room < 2:
        assert found is None
    else:
        tokens, kept = found
        assert kept == min(longest - 1, room - 2) and len(tokens) == 2 + kept
    assert len(set(written)) == len(written) and all(0 <= kept < longest for kept in written)
