"""Episodes that start in the middle: from a snapshot or by a replay, with the conversation so far."""

import jax
import numpy as np
import pytest
import restarting
from test_collect import CONFIG, KEY, Script, chat, params, spell  # noqa: F401  (`chat` and `params` are fixtures)

from stepreward.envs import sokoban
from stepreward.models import decoder, presets
from stepreward.models.images import ImageReader, native_settings
from stepreward.models.tokenizer import train_symbol_tokenizer
from stepreward.rollout.chat import Chat
from stepreward.rollout.checked import checked
from stepreward.rollout.engine import Engine
from stepreward.rollout.environments import EnvironmentPool
from stepreward.rollout.episode import Cost, Start, Task
from stepreward.rollout.packing import pack
from stepreward.rollout.play import Collector
from stepreward.rollout.pools import make_pool
from stepreward.rollout.recording import to_recording
from stepreward.rollout.sampling import Sampling

WAYS = ("snapshot", "replay")
TASKS = [Task(seed, "train", group) for group, seed in enumerate((2, 4, 6))]  # all begin at place 0


def starts_of(episodes, turn, way):
    """The state before step `turn` of each episode, to be restored or replayed."""
    found = [Start.before(episode, turn) for episode in episodes]
    return found if way == "snapshot" else [start._replace(snapshot=None) for start in found]


def length(steps):
    """Tokens of the prompts, and of the answers."""
    return sum(len(step.prompt_tokens) for step in steps), sum(len(step.action_tokens) for step in steps)


# --- The real engine on Sokoban ---

GROUPED = [Task(seed, "train", group) for group, seed in enumerate((3, 8)) for _ in range(3)]
CONTEXTS = [("step", True), ("episode", True), ("episode", False)]  # and whether the cache is reused


def on_sokoban(chat, context="episode", reuse_cache=True, max_rows=8):  # noqa: F811
    sampling = Sampling(chat.stop_ids, 3, temperature=1.2)
    buckets = (24,) if reuse_cache else (140,)
    engine = Engine(decoder.graph(CONFIG), CONFIG, sampling, max_length=140, buckets=buckets, pad_id=chat.codec.pad_id)
    pool = EnvironmentPool(checked(sokoban.make("tiny", max_steps=15)))
    return Collector(engine, pool, sokoban.prompts("compact"), chat, context, 0, 5, max_rows, reuse_cache)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("context, reuse_cache", CONTEXTS)
def test_the_same_key_and_index_draw_the_same_rest(chat, params, context, reuse_cache, way):  # noqa: F811
    collector = on_sokoban(chat, context, reuse_cache)
    whole = collector.play(params, [Start(task) for task in GROUPED], KEY, keep=True)
    again = collector.play(params, starts_of(whole, 2, way), KEY)
    assert [episode.prefix for episode in again] == [2] * 6
    for one, other in zip(whole, again, strict=True):
        assert one.steps[:2] == other.steps[:2]  # the same objects
        assert (one.end, one.success, one.score, one.final_observation) == (other.end, other.success, other.score, other.final_observation)
        for step, rest in zip(one.steps[2:], other.steps[2:], strict=True):
            np.testing.assert_array_equal(step.prompt_tokens, rest.prompt_tokens)
            np.testing.assert_array_equal(step.action_tokens, rest.action_tokens)
            assert (step.observation, step.reward, step.distance) == (rest.observation, rest.reward, rest.distance)
            if context == "episode" and reuse_cache:  # the cache was filled in other pieces
                np.testing.assert_allclose(step.log_prob, rest.log_prob, atol=1e-5)
            else:
                np.testing.assert_array_equal(step.log_prob, rest.log_prob)


def test_starts_at_different_turns_draw_with_their_own_turn(chat, params):  # noqa: F811
    collector = on_sokoban(chat)
    whole = collector.play(params, [Start(task) for task in GROUPED], KEY, keep=True)
    again = collector.play(params, [Start.before(episode, turn) for turn, episode in enumerate(whole[:5])], KEY)
    for one, other in zip(whole, again):
        assert [step.action_tokens.tolist() for step in one.steps] == [step.action_tokens.tolist() for step in other.steps]


def test_several_starts_of_one_state_play_on_differently(chat, params):  # noqa: F811
    collector = on_sokoban(chat)
    (whole,) = collector.play(params, [Start(GROUPED[0])], KEY, keep=True)
    again = collector.play(params, [Start.before(whole, 1)] * 4, jax.random.key(5))
    rests = {tuple(tuple(step.action_tokens.tolist()) for step in episode.steps[1:]) for episode in again}
    assert len(rests) == 4


def test_an_empty_prefix_is_no_prefix(chat, params):  # noqa: F811
    collector = on_sokoban(chat)
    plain = collector.collect(params, GROUPED, KEY)
    kept = collector.play(params, [Start(task, prefix=[]) for task in GROUPED], KEY, keep=True)
    restored = collector.play(params, starts_of(kept, 0, "snapshot"), KEY)
    for one, *others in zip(plain, kept, restored, strict=True):
        for other in others:
            assert other.prefix == 0 and other.cost == one.cost
            for step, rest in zip(one.steps, other.steps, strict=True):
                np.testing.assert_array_equal(step.log_prob, rest.log_prob)
                np.testing.assert_array_equal(step.action_tokens, rest.action_tokens)


def test_a_player_s_parameters_are_prepared_once(chat, params, monkeypatch):  # noqa: F811
    collector, prepared = on_sokoban(chat), []
    prepare = collector.engine.prepare
    monkeypatch.setattr(collector.engine, "prepare", lambda params: prepared.append(1) or prepare(params))
    play = collector.player(params)
    assert len(play([Start(GROUPED[0])], KEY)) == len(play([Start(GROUPED[1])], KEY)) == 1 and prepared == [1]


# --- A scripted engine on a walk ---


class Reading(Script):
    """A scripted engine that can read conversations again, and counts what it read."""

    def __init__(self, answers):
        super().__init__(answers)
        self.read = []

    def extend(self, params, state, new_tokens):  # noqa: F811
        self.read.append([len(tokens) for tokens in new_tokens])
        caches = [np.r_[cache, tokens] for cache, tokens in zip(state.caches, new_tokens, strict=True)]
        return state._replace(caches=caches, length=np.array([len(cache) for cache in caches], np.int32))


class Told:
    """A prompt that shows the task and the whole window, and writes down what it showed."""

    def __init__(self):
        self.windows = []

    def first(self, observation):
        return "0" + observation["text"]

    def later(self, observation):
        return observation["text"]

    def window(self, observation, history):
        self.windows.append([(view["text"], view["task"], answer) for view, answer in history])
        return observation["text"]

    def parse(self, text):
        return text if text in ("up", "down") else None


def walking(chat, words=("up",), *, context="episode", history=0, max_steps=9, pool=None, **settings):  # noqa: F811
    """A collector whose answers at turn t are words[t % len(words)]: the turn is the observation's last digit."""
    digits = {int(chat.codec.encode(str(digit))[0]): digit for digit in range(10)}

    def answer(said):
        word = words[digits[int(said[-2])] % len(words)]
        return [*spell(chat, word), chat.codec.end_id] if word != "uu" else spell(chat, *"uuuu")

    pool = EnvironmentPool(checked(restarting.make(**settings))) if pool is None else pool
    return Collector(Reading(answer), pool, Told(), chat, context, history, max_steps, 4)


def played(chat, **settings):  # noqa: F811
    """Whole walks of a healthy environment, with snapshots: up, down, up, down, …"""
    collector = walking(chat, ("up", "down"), **settings)
    return collector.play(None, [Start(task) for task in TASKS], KEY, keep=True)


@pytest.mark.parametrize("way", WAYS)
def test_a_conversation_goes_on_as_it_was(chat, way):  # noqa: F811
    whole = played(chat)
    collector = walking(chat, ("up", "down"))
    again = collector.play(None, starts_of(whole, 3, way), KEY)
    for one, other in zip(whole, again, strict=True):
        assert [step.prompt_tokens.tolist() for step in one.steps] == [step.prompt_tokens.tolist() for step in other.steps]
        assert [step.action for step in other.steps] == ["up", "down"] * 3


@pytest.mark.parametrize("way", WAYS)
def test_the_next_prompt_closes_an_answer_that_was_cut(chat, way):  # noqa: F811
    words = ("up", "uu", "down")
    whole = walking(chat, words).play(None, [Start(TASKS[0])], KEY, keep=True)
    (again,) = walking(chat, words).play(None, starts_of(whole, 2, way), KEY)
    assert not again.steps[1].stopped and again.steps[2].prompt_tokens[0] == chat.codec.end_id
    np.testing.assert_array_equal(again.steps[2].prompt_tokens, whole[0].steps[2].prompt_tokens)


@pytest.mark.parametrize("way", WAYS)
def test_a_window_shows_the_turns_of_the_prefix(chat, way):  # noqa: F811
    setting = dict(context="step", history=2)
    collector = walking(chat, ("up", "down"), **setting)
    whole = collector.play(None, [Start(TASKS[0])], KEY, keep=True)
    restarted = walking(chat, ("up", "down"), **setting)
    restarted.play(None, starts_of(whole, 3, way), KEY)
    assert restarted.prompt.windows == collector.prompt.windows[3:]
    assert restarted.prompt.windows[0] == [("say:1 1", "seed 2", "down"), ("say:0 2", "seed 2", "up")]


def test_a_snapshot_whose_history_was_not_kept_is_refused(chat):  # noqa: F811
    whole = played(chat, context="step", history=2)
    start = Start.before(whole[0], 3)
    start.prefix[-1].snapshot = None
    with pytest.raises(ValueError, match="that was not kept: play with keep=True"):
        walking(chat, context="step", history=2).play(None, [start], KEY)
    assert walking(chat, context="step").play(None, [start], KEY)[0].failure is None  # nothing of it is shown


def test_a_snapshot_is_kept_only_where_it_is_asked_for(chat):  # noqa: F811
    collector = walking(chat, ("up", "down"))
    kept = collector.play(None, [Start(TASKS[0])], KEY, keep=True)[0]
    assert all(step.snapshot is not None for step in kept.steps)
    assert all(step.snapshot is None for step in collector.collect(None, TASKS[:1], KEY)[0].steps)
    assert all(step.snapshot is None for step in collector.play(None, [Start.before(kept, 2)], KEY)[0].steps[2:])


def test_an_environment_that_only_replays_keeps_nothing(chat):  # noqa: F811
    collector = walking(chat, ("up", "down"), capabilities=("replay",))
    (episode,) = collector.play(None, [Start(TASKS[0])], KEY, keep=True)
    assert all(step.snapshot is None for step in episode.steps)
    assert collector.play(None, [Start.before(episode, 2)], KEY)[0].cost.replayed_steps == 2


def test_later_steps_do_not_change_a_snapshot(chat):  # noqa: F811
    """The walk gives its state itself away; what is kept is a copy."""
    whole = played(chat)
    places = [step.observation for step in whole[0].steps]
    for turn in range(len(places)):
        (again,) = walking(chat).play(None, [Start.before(whole[0], turn)], KEY)
        assert again.steps[turn].observation == places[turn] and again.failure is None


# --- Where an episode ends ---


@pytest.mark.parametrize("way", WAYS)
def test_the_limit_counts_the_steps_of_the_prefix(chat, way):  # noqa: F811
    (again, *_) = walking(chat, ("up", "down"), max_steps=5).play(None, starts_of(played(chat), 3, way), KEY)
    assert (len(again.steps), again.end, again.truncated) == (5, "step_limit", True)


@pytest.mark.parametrize("way", WAYS)
def test_a_prefix_as_long_as_the_limit_is_the_whole_episode(chat, way):  # noqa: F811
    collector = walking(chat, max_steps=3)
    again = collector.play(None, starts_of(played(chat), 3, way), KEY)
    assert [(len(e.steps), e.end, e.truncated, e.cost.env_steps) for e in again] == [(3, "step_limit", True, 0)] * 3
    assert again[0].final_observation == "say:1 3" and collector.engine.batches == []


def test_a_prefix_longer_than_the_limit_is_refused(chat):  # noqa: F811
    with pytest.raises(ValueError, match="a prefix of 3 steps, more than rollout.max_steps=2"):
        walking(chat, max_steps=2).play(None, starts_of(played(chat), 3, "replay"), KEY)


def test_a_replay_of_a_whole_episode_ends_as_it_did(chat):  # noqa: F811
    (won,) = walking(chat).collect(None, TASKS[:1], KEY)
    (again,) = walking(chat).play(None, [Start(won.task, prefix=won.steps)], KEY)
    assert won.success and (again.end, again.success, again.cost.env_steps) == (won.end, True, 0)


@pytest.mark.parametrize("way", WAYS)
def test_a_start_whose_conversation_has_no_more_room_ends_there(chat, way):  # noqa: F811
    whole = played(chat)
    collector = walking(chat, ("up", "down"))
    collector.engine.most = sum(length(whole[0].steps[:3])) + len(whole[0].steps[3].prompt_tokens) + collector.engine.longest - 1
    (again, *_) = collector.play(None, starts_of(whole, 3, way), KEY)
    assert (len(again.steps), again.end, again.truncated, again.failure) == (3, "row_full", True, None)
    assert again.cost.prompt_tokens == 0  # nothing was read


# --- Faults ---

REPLAYS = {
    "step 2: raise": "RuntimeError: the server is gone",
    "step 2: elsewhere": "the replay led to another state after 2 of 3 actions",
    "step 3: elsewhere": "the replay led to another state after 3 of 3 actions",
    "reset: elsewhere": "the replay led to another state after 0 of 3 actions",
    "step 2: over": "the replay was over after 2 of 3 actions",
    "step 1: nonsense": "step returned None, not (observation, reward, terminated, truncated, info)",
    "reset: raise": "RuntimeError: the server is gone",
}


def check_that_one_failed(episodes, words, context="episode"):
    """The second of three episodes has failed, keeps its prefix, and is masked."""
    assert [episode.failure for episode in episodes] == [None, words, None]
    assert [len(episode.steps) for episode in episodes] == [6, 3, 6] and episodes[1].cost.env_steps == 0
    batch = pack(episodes, context=context, max_steps=9, row_length=90, row_multiple=1, pad_id=0)
    assert batch.episode_mask.tolist() == [True, False, True]


@pytest.mark.parametrize("context", ["step", "episode"])
@pytest.mark.parametrize("fault", REPLAYS)
def test_a_replay_that_fails_costs_its_episode(chat, fault, context):  # noqa: F811
    whole = played(chat, context=context)
    collector = walking(chat, ("up", "down"), context=context, fault=fault, only_seed=TASKS[1].seed)
    check_that_one_failed(collector.play(None, starts_of(whole, 3, "replay"), KEY), REPLAYS[fault], context)


@pytest.mark.parametrize("context", ["step", "episode"])
def test_a_restore_that_raises_costs_its_episode(chat, context):  # noqa: F811
    whole = played(chat, context=context)
    collector = walking(chat, ("up", "down"), context=context, fault="restore: raise", only_seed=TASKS[1].seed)
    check_that_one_failed(collector.play(None, starts_of(whole, 3, "snapshot"), KEY), "RuntimeError: the server is gone", context)


def test_a_snapshot_that_cannot_be_pickled_costs_its_episode(chat):  # noqa: F811
    collector = walking(chat, ("up", "down"), fault="snapshot: unpicklable", only_seed=TASKS[1].seed)
    episodes = collector.play(None, [Start(task) for task in TASKS], KEY, keep=True)
    assert [episode.failure is None for episode in episodes] == [True, False, True]
    assert episodes[1].failure.startswith("what snapshot returned cannot be pickled: ")


def test_a_reset_to_another_state_than_the_known_one_costs_its_episode(chat):  # noqa: F811
    start = Start(TASKS[0], state_key="9 at 0")
    (episode,) = walking(chat).play(None, [start], KEY)
    assert episode.failure == "the replay led to another state after 0 of 0 actions"


def test_an_environment_without_either_is_named(chat):  # noqa: F811
    start = starts_of(played(chat), 3, "replay")[0]
    collector = walking(chat, capabilities=())
    for ask in (dict(starts=[start]), dict(starts=[Start(TASKS[0])], keep=True)):
        with pytest.raises(ValueError, match="the environment Walk offers neither 'snapshot' nor 'replay'.*declare one of them"):
            collector.play(None, key=KEY, **ask)
    assert collector.play(None, [Start(TASKS[0])], KEY)[0].failure is None


def test_a_snapshot_for_an_environment_that_only_replays_is_refused(chat):  # noqa: F811
    with pytest.raises(ValueError, match="the environment Walk offers no 'snapshot': give starts without a snapshot"):
        walking(chat, capabilities=("replay",)).play(None, starts_of(played(chat), 3, "snapshot"), KEY)


def test_a_prefix_for_an_environment_without_replays_is_refused(chat):  # noqa: F811
    with pytest.raises(ValueError, match="the environment Walk offers no 'replay': play with keep=True"):
        walking(chat, capabilities=("snapshot",)).play(None, starts_of(played(chat), 3, "replay"), KEY)


# --- Pictures ---


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_sees_is_shown_the_same_pictures(way, tmp_path):
    class Seeing(Reading):
        def turn(self, params, state, new_tokens, keys, images):  # noqa: F811
            shown.append(images[0].patches)
            return super().turn(params, state, new_tokens, keys)

    class Shows(Told):
        def window(self, observation, history):
            return "<image>"

    shown, chat = [], Chat(train_symbol_tokenizer(["x"], ("up",), tmp_path / "t", images=True))  # noqa: F811
    up = [int(chat.codec.encode("up")[0]), chat.codec.end_id]
    vision = presets.PRESETS["tiny-vision"].vision  # an embedding for each tile
    with make_pool("inline", checked(sokoban.make("tiny_image", max_steps=4))) as pool:
        reader = ImageReader.sized(vision, native_settings(vision), [np.zeros((96, 96, 3), np.uint8)])
        collector = Collector(Seeing(lambda said: up), pool, Shows(), chat, "step", 1, 9, 4, reader=reader)
        whole = collector.play(None, [Start(TASKS[0])], KEY, keep=True)
        once, shown = shown, []
        collector.play(None, starts_of(whole, 2, way), KEY)
    np.testing.assert_array_equal(once[2:], shown)
    assert len(once) == 4 and not np.array_equal(once[0], once[2])


# --- Other pools ---


@pytest.mark.parametrize("kind", ["inline", "thread", "process"])
@pytest.mark.parametrize("way", WAYS)
def test_snapshots_and_replays_travel(chat, kind, way):  # noqa: F811
    with make_pool(kind, checked(restarting.make()), timeout_s=20, reset_timeout_s=60) as pool:
        collector = walking(chat, ("up", "down"), pool=pool)
        whole = collector.play(None, [Start(task) for task in TASKS], KEY, keep=True)
        again = collector.play(None, starts_of(whole, 3, way), KEY)
    with make_pool("inline", checked(restarting.make())) as other:  # a snapshot is not bound to the pool that took it
        elsewhere = walking(chat, ("up", "down"), pool=other).play(None, starts_of(whole, 3, way), KEY)
    for one, *others in zip(whole, again, elsewhere, strict=True):
        for episode in others:
            assert [step.observation for step in episode.steps] == [step.observation for step in one.steps] and episode.failure is None


@pytest.mark.parametrize("fault, way, words", [
    ("restore: hang", "snapshot", "restore took longer than 2 s"),
    ("restore: kill", "snapshot", "its process died (signal SIGKILL)"),
    ("step 2: hang", "replay", "step took longer than 1 s"),
    ("step 2: exit", "replay", "its process died (exit code 3)"),
])  # fmt: skip
def test_a_process_that_is_late_or_dies_on_the_way_costs_its_episode(chat, fault, way, words):  # noqa: F811
    whole = played(chat)
    factory = checked(restarting.make(fault=fault, only_seed=TASKS[1].seed))
    with make_pool("process", factory, timeout_s=1, reset_timeout_s=2) as pool:
        for slot in range(3):
            pool.call(slot, "capabilities")  # the processes are there
        check_that_one_failed(walking(chat, ("up", "down"), pool=pool).play(None, starts_of(whole, 3, way), KEY), words)


# --- What it cost ---


def test_a_whole_episode_costs_its_steps_and_tokens(chat):  # noqa: F811
    (episode, *_) = played(chat)
    prompts, answers = length(episode.steps)
    assert episode.cost == Cost(env_steps=6, replayed_steps=0, sampled_tokens=answers, prompt_tokens=prompts)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("context", ["step", "episode"])
def test_a_prefix_costs_what_it_takes_to_come_back(chat, context, way):  # noqa: F811
    """Its actions where they are replayed, and its conversation where it is read again, but for the token that a turn sends anyway."""
    whole = played(chat, context=context)
    collector = walking(chat, ("up", "down"), context=context)
    (episode, *_) = collector.play(None, starts_of(whole, 2, way), KEY)
    prompts, answers = length(episode.steps[2:])
    read = sum(length(episode.steps[:2])) - 1 if context == "episode" else 0
    replayed = 2 if way == "replay" else 0
    assert episode.cost == Cost(env_steps=4, replayed_steps=replayed, sampled_tokens=answers, prompt_tokens=prompts + read)
    assert sum(map(sum, collector.engine.read)) == 3 * read


def test_a_step_whose_environment_fails_is_paid_too(chat):  # noqa: F811
    collector = walking(chat, ("up", "down"), fault="step 2: raise")
    (episode,) = collector.collect(None, TASKS[:1], KEY)
    assert len(episode.steps) == 1 and episode.cost.env_steps == 2
    assert episode.cost.sampled_tokens == 2 * len(episode.steps[0].action_tokens)


# --- What becomes of it ---


@pytest.mark.parametrize("context", ["step", "episode"])
def test_a_batch_holds_the_prefix_as_any_other_steps(chat, context):  # noqa: F811
    whole = played(chat, context=context)
    again = walking(chat, ("up", "down"), context=context).play(None, starts_of(whole, 3, "snapshot"), KEY)
    one, other = (pack(es, context=context, max_steps=9, row_length=90, row_multiple=4, pad_id=0) for es in (whole, again))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_an_episode_that_began_in_the_middle_is_not_recorded(chat):  # noqa: F811
    (again, *_) = walking(chat).play(None, starts_of(played(chat), 2, "replay"), KEY)
    with pytest.raises(ValueError, match="began in the middle"):
        to_recording(again)
