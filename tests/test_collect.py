"""Playing episodes: tokens stay as sampled, a fault affects only its own episode, and any output is legal."""

import dataclasses

import jax
import numpy as np
import pytest

from stepreward.envs import sokoban
from stepreward.models import decoder, presets
from stepreward.models.log_probs import token_log_probs
from stepreward.models.tokenizer import SPECIAL_TOKENS, train_symbol_tokenizer
from stepreward.rollout.chat import Chat
from stepreward.rollout.engine import Answer, Engine, EngineState
from stepreward.rollout.environments import EnvironmentPool
from stepreward.rollout.episode import Start, Task
from stepreward.rollout.packing import pack
from stepreward.rollout.play import Collector
from stepreward.rollout.sampling import Sampling

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """Words up, down, left, right, and the symbols of a board with their letters."""
    words = ("up", "down", "left", "right")
    return Chat(train_symbol_tokenizer(["#_OX√PS 0123456789say:"], words, tmp_path_factory.mktemp("tokenizer")))


# A scripted engine and environment: what is checked is the loop between them.


class Script:
    """An engine that writes given answers; its `caches` are the conversations themselves."""

    def __init__(self, answers, longest=4, most=10**6):
        self.answers, self.longest, self.most = answers, longest, most  # (row's conversation) -> tokens
        self.batches = []

    def prepare(self, params):
        return params

    def start(self, rows):
        return EngineState([np.zeros(0, np.int32)] * rows, np.zeros(rows, np.int32))

    def reset(self, state):
        return EngineState([x[:0] for x in state.caches], np.zeros_like(state.length))

    def select(self, state, index):
        return EngineState([state.caches[i] for i in index], state.length[index])

    def holds(self, tokens, new=0):
        return tokens + self.longest <= self.most

    def row_bucket(self, rows, most):
        return most if rows > most // 2 else max(1, most // 2)

    batch_rows = row_bucket

    def turn(self, params, state, new_tokens, keys):
        assert len(new_tokens) == len(state.length) == len(keys)
        self.batches.append(sum(len(n) > 0 for n in new_tokens) + 1j * len(new_tokens))
        caches, rows = list(state.caches), len(new_tokens)
        tokens, count = np.zeros((rows, self.longest), np.int32), np.zeros(rows, np.int32)
        stopped = np.zeros(rows, bool)
        for row, new in enumerate(new_tokens):
            if len(new):
                caches[row] = np.r_[caches[row], new]
                answer = np.asarray(self.answers(caches[row]), np.int32)
                tokens[row, : len(answer)], count[row] = answer, len(answer)
                stopped[row] = answer[-1] == 3  # <|end|>
                caches[row] = np.r_[caches[row], answer[:-1]]
        length = np.array([len(c) for c in caches], np.int32)
        log_prob = -tokens / 10.0
        return EngineState(caches, length), Answer(tokens, log_prob, log_prob * 2, count, stopped)


class Counter:
    """Says "say:<seed> <turn>"; ends when `behaviour[seed]` says so. A seed's behaviour: last turn, or what raises."""

    capabilities = frozenset()
    made = 0

    def __init__(self, behaviour):
        Counter.made += 1
        self.behaviour, self.actions, self.closed = behaviour, [], False

    def _observe(self):
        return {"text": f"say:{self.seed} {self.turn}"}

    def reset(self, *, seed, options):
        assert not self.closed
        self.seed, self.turn, self.split = seed, 0, options["split"]
        if self.behaviour.get(seed) == "reset":
            raise OSError("no such task")
        return self._observe(), {"won": False, "executed": True, "state_key": f"{seed}/0"}

    def step(self, action):
        assert not self.closed
        self.actions.append(action)
        self.turn += 1
        how = self.behaviour.get(self.seed, 99)
        if how == ("step", self.turn):
            raise RuntimeError("lost the connection")
        terminated = how == self.turn
        info = {"won": terminated, "executed": action is not None, "state_key": f"{self.seed}/{self.turn}"}
        return self._observe(), float(self.turn), terminated, self.turn == 6, info

    def close(self):
        self.closed = True


class Words:
    """A prompt that records what `window` was shown."""

    def __init__(self):
        self.windows = []

    def first(self, observation):
        return "0" + observation["text"]

    def later(self, observation):
        return observation["text"]

    def window(self, observation, history):
        self.windows.append((observation["text"], [(o["text"], answer) for o, answer in history]))
        return observation["text"] + "".join(answer for _, answer in history)

    def parse(self, text):
        return text if text in ("up", "down") else None


def scripted(chat, answers, behaviour=None, *, context="episode", history=0, max_steps=9, max_rows=4):
    behaviour = {} if behaviour is None else behaviour
    engine, prompt = Script(answers), Words()
    pool = EnvironmentPool(lambda: Counter(behaviour))
    return Collector(engine, pool, prompt, chat, context, history, max_steps, max_rows)


def spell(chat, *words):
    """One token a word."""
    return [int(chat.codec.encode(word)[0]) for word in words]


def tasks(*seeds):
    return [Task(seed, "train", group) for group, seed in enumerate(seeds)]


@pytest.mark.parametrize("context", ["step", "episode"])
def test_rows_hold_the_tokens_that_were_sampled(chat, context):
    u, p, up = spell(chat, "u", "p", "up")
    end, user, assistant = chat.codec.end_id, chat.codec.user_id, chat.codec.assistant_id
    answers = {0: [u, p, end], 1: [up, end], 2: [u, u, p, p]}  # spelt, as a word, cut off

    def answer(said):
        turn = np.sum(said == assistant) - 1 if context == "episode" else said[-2] - spell(chat, "0")[0]
        return answers[int(turn)]

    collector = scripted(chat, answer, {5: 3}, context=context)
    episode = collector.collect(None, tasks(5), KEY)[0]
    assert chat.text([u, p, end]) == "up" and list(chat.codec.encode("up")) == [up]  # a round trip would change it
    assert [list(s.action_tokens) for s in episode.steps] == [answers[0], answers[1], answers[2]]
    assert [s.output for s in episode.steps] == ["up", "up", "uupp"]
    assert [s.action for s in episode.steps] == ["up", "up", None]
    assert [s.executed for s in episode.steps] == [True, True, False]
    for step in episode.steps:
        np.testing.assert_allclose(step.log_prob, -step.action_tokens / 10.0)
        np.testing.assert_allclose(step.entropy, step.log_prob * 2)
    says = [chat.codec.encode(("0" if context == "episode" and t == 0 else "") + f"say:5 {t}") for t in range(3)]
    batch = pack([episode], context=context, max_steps=9, row_length=64, row_multiple=1, pad_id=0)
    parts = [np.r_[user, says[t], assistant, answers[t]] for t in range(3)]
    rows = parts if context == "step" else [np.concatenate(parts)]
    for row, expected in zip(batch.tokens, rows, strict=True):
        np.testing.assert_array_equal(row, np.r_[expected, np.zeros(64 - len(expected))])


def test_waiting_episodes_take_the_rows_of_those_that_ended(chat):
    """Of 8 episodes 4 are played at once: no row is idle while an episode waits."""
    up, lengths = [*spell(chat, "up"), chat.codec.end_id], (1, 4, 2, 3, "reset", ("step", 1), 1, 3)
    behaviour = dict(enumerate(lengths))
    collector = scripted(chat, lambda said: up, behaviour, context="step")
    episodes = collector.collect(None, tasks(*range(8)), KEY)
    assert [len(episode.steps) for episode in episodes] == [1, 4, 2, 3, 0, 0, 1, 3]
    assert [episode.failure is None for episode in episodes] == [True] * 4 + [False] * 2 + [True] * 2
    assert collector.engine.batches == [4 + 4j, 4 + 4j, 4 + 4j, 2 + 2j, 1 + 2j]  # 0 1 2 3; 1 2 3 5, as 4 failed at once; 1 3 6 7; 1 7; 7


def test_three_processes_share_the_rows(chat, monkeypatch):
    """Of 8 tasks the first process has 3; all run programs of 9 rows, 3 a process, as long as any of them plays 3."""
    asked, up = [], [*spell(chat, "up"), chat.codec.end_id]
    monkeypatch.setattr("stepreward.processes.count", lambda: 3)
    monkeypatch.setattr("stepreward.processes.index", lambda: 0)
    monkeypatch.setattr("stepreward.processes.agree_max", lambda number: number)
    monkeypatch.setattr("stepreward.processes.gather_objects", lambda mine: [mine])
    collector = scripted(chat, lambda said: up, {0: 1, 1: 2, 2: 3}, max_rows=12)
    engine = collector.engine
    for name in ("batch_rows", "row_bucket"):
        monkeypatch.setattr(engine, name, lambda rows, most: asked.append((rows, most)) or rows)
    start = engine.start
    monkeypatch.setattr(engine, "start", lambda rows: start(rows // 3))
    episodes = collector._play_batch(None, {i: Start(task) for i, task in enumerate(tasks(*range(8)))}, KEY)
    assert [len(episode.steps) for episode in episodes] == [1, 2, 3]
    assert asked == [(9, 12), (9, 12), (6, 12), (3, 12)] and engine.batches == [3 + 3j, 2 + 2j, 1 + 1j]


def test_an_answer_that_was_cut_is_closed_by_the_next_turn(chat):
    u, end = spell(chat, "u")[0], chat.codec.end_id
    collector = scripted(chat, lambda said: [u] * 4 if np.sum(said == 2) % 2 else [u, end], {5: 4})
    steps = collector.collect(None, tasks(5), KEY)[0].steps
    assert [list(s.action_tokens) for s in steps] == [[u] * 4, [u, end]] * 2
    assert [s.prompt_tokens[0] == end for s in steps] == [False, True, False, True]
    assert [int(np.sum(s.prompt_tokens == end)) for s in steps] == [0, 1, 0, 1]


def test_what_the_engine_was_sent_is_what_the_row_holds(chat):
    u, p, end = *spell(chat, "u", "p"), chat.codec.end_id
    seen = []

    def answer(said):
        seen.append(said)
        return [u, p, end]

    collector = scripted(chat, answer, {5: 3})
    episode = collector.collect(None, tasks(5), KEY)[0]
    whole = np.concatenate([np.r_[s.prompt_tokens, s.action_tokens] for s in episode.steps])
    np.testing.assert_array_equal(seen[-1], whole[:-3])
    collector.reuse_cache, seen[:] = False, []
    again = collector.collect(None, tasks(5), KEY)[0]
    np.testing.assert_array_equal(seen[-1], whole[:-3])
    for a, b in zip(episode.steps, again.steps, strict=True):
        np.testing.assert_array_equal(a.action_tokens, b.action_tokens)


def test_order_groups_ends_and_the_shrinking_batch(chat):
    colon = spell(chat, ":")[0]

    def answer(said):
        return [said[np.flatnonzero(said == colon)[0] + 1], chat.codec.end_id]  # the seed that the first turn told

    collector = scripted(chat, answer, {1: 1, 2: 5, 3: 2, 4: 1, 6: 3}, max_steps=4)
    asked = [Task(seed, "held_out", group) for seed, group in ((1, 0), (2, 0), (3, 7), (4, 7), (5, 1), (6, 1))]
    episodes = collector.collect(None, asked, KEY)
    assert [e.task for e in episodes] == asked
    assert [len(e.steps) for e in episodes] == [1, 4, 2, 1, 4, 3]
    assert all(step.output == str(e.task.seed) for e in episodes for step in e.steps)
    assert [e.success for e in episodes] == [True, False, True, True, False, True]
    assert [e.truncated for e in episodes] == [False, True, False, False, True, False]  # max_steps cuts
    assert [e.episode_return for e in episodes] == [1, 10, 3, 1, 10, 6]
    assert episodes[1].steps[3].observation == "say:2 3" and episodes[1].final_observation == "say:2 4"
    assert [s.state_key for s in episodes[2].steps] == ["3/0", "3/1"]
    # Four rows, then two play in a batch of two, then one with a filler; the second chunk is two rows from the start.
    assert collector.engine.batches == [4 + 4j, 2 + 2j, 1 + 2j, 1 + 2j, 2 + 2j, 2 + 2j, 2 + 2j, 1 + 2j]


def test_answers_without_an_action_cost_the_penalty(chat):
    silent = scripted(chat, lambda said: [chat.codec.end_id], {2: 2})  # nothing is said, so nothing is an action
    collector = dataclasses.replace(silent, invalid_penalty=0.25)
    (episode,) = collector.collect(None, tasks(2), KEY)
    assert [step.reward for step in episode.steps] == [0.75, 1.75] and episode.episode_return == 2.5
    collector.prompt.parse = lambda text: "up"
    assert collector.collect(None, tasks(2), KEY)[0].episode_return == 3.0


def test_the_benchmarks_score_is_that_of_the_end(chat):
    collector = scripted(chat, lambda said: [chat.codec.end_id], {2: 3})
    (won,) = collector.collect(None, tasks(2), KEY)
    assert won.score == 1.0  # an environment that tells no score is won or lost


def test_an_environment_may_truncate_by_itself(chat):
    collector = scripted(chat, lambda said: [chat.codec.end_id], {2: 6})
    cut, won = collector.collect(None, tasks(1, 2), KEY)
    assert (len(cut.steps), cut.truncated, cut.success) == (6, True, False)
    assert (len(won.steps), won.truncated, won.success) == (6, False, True)  # the end counts, not the limit


@pytest.mark.parametrize("context", ["step", "episode"])
def test_an_environment_that_raises_fails_its_episode_alone(chat, context):
    up, end = [*spell(chat, "up"), chat.codec.end_id]
    behaviour = {1: 3, 2: "reset", 3: ("step", 2), 4: 2}
    collector = scripted(chat, lambda said: [up, end], behaviour, context=context)
    made = Counter.made
    episodes = collector.collect(None, tasks(1, 2, 3, 4), KEY)
    assert [e.failure for e in episodes] == [None, "OSError: no such task", "RuntimeError: lost the connection", None]
    assert [len(e.steps) for e in episodes] == [3, 0, 1, 2]
    assert [e.success for e in episodes] == [True, False, False, True]
    assert collector.pool.failures == 2 and Counter.made - made == 3  # the pool already held one
    batch = pack(episodes, context=context, max_steps=9, row_length=80, row_multiple=4, pad_id=0)
    np.testing.assert_array_equal(batch.episode_mask, [True, False, False, True])
    assert set(np.unique(batch.step_id)) == {-1, 0, 1, 2, 27, 28}
    behaviour.clear()  # the slots hold fresh environments that work
    again = collector.collect(None, tasks(1, 2, 3, 4), KEY)
    assert [e.failure for e in again] == [None] * 4 and [len(e.steps) for e in again] == [6] * 4
    assert Counter.made - made == 3 + 2


def test_when_every_reset_fails_nothing_is_sampled(chat):
    collector = scripted(chat, lambda said: [chat.codec.end_id], {1: "reset", 2: "reset"})
    episodes = collector.collect(None, tasks(1, 2), KEY)
    assert [e.failure for e in episodes] == ["OSError: no such task"] * 2
    assert not any(e.truncated or e.steps for e in episodes) and collector.engine.batches == []


def test_history_windows(chat):
    up, end = [*spell(chat, "up"), chat.codec.end_id]
    seen = {}
    for history in (0, 2):
        collector = scripted(chat, lambda said: [up, end], {5: 4}, context="step", history=history)
        steps = collector.collect(None, tasks(5), KEY)[0].steps
        seen[history] = collector.prompt.windows
        for step, (text, pairs) in zip(steps, collector.prompt.windows, strict=True):
            np.testing.assert_array_equal(step.prompt_tokens, chat.user_turn(text + "up" * len(pairs), first=True))
    texts = [f"say:5 {t}" for t in range(4)]
    assert seen[0] == [(text, []) for text in texts]
    assert seen[2] == [(text, [(texts[k], "up") for k in range(max(0, t - 2), t)]) for t, text in enumerate(texts)]


def test_an_unknown_context_is_refused(chat):
    with pytest.raises(ValueError, match="rollout.context='window' is not one of step, episode"):
        scripted(chat, None, context="window")


# The real engine on Sokoban.


CONFIG = presets.decoder_config("tiny-micro", vocab_size=40)


@pytest.fixture(scope="module")
def params():
    return decoder.build(CONFIG, 1)[1]


@pytest.fixture(scope="module")
def engine(chat):
    sampling = Sampling(chat.stop_ids, 3, temperature=1.2)
    return Engine(decoder.graph(CONFIG), CONFIG, sampling, max_length=140, buckets=(24,), pad_id=chat.codec.pad_id)


def on_sokoban(chat, engine, context, max_rows=4, max_steps=5):
    pool = EnvironmentPool(sokoban.make("tiny", max_steps=15))
    return Collector(engine, pool, sokoban.prompts("compact"), chat, context, 0, max_steps, max_rows)


GROUPED = [Task(seed, "train", group) for group, seed in enumerate((3, 8)) for _ in range(3)]


@pytest.mark.parametrize("context", ["step", "episode"])
def test_sokoban_is_played_and_scored_alike(chat, engine, params, context):
    episodes = on_sokoban(chat, engine, context).collect(params, GROUPED, KEY)
    assert [e.task for e in episodes] == GROUPED and all(e.failure is None for e in episodes)
    starts = [e.steps[0].state_key for e in episodes]
    assert starts[0] == starts[1] == starts[2] != starts[3] == starts[4] == starts[5]
    assert all(np.isfinite(e.steps[0].distance) and 4 <= e.steps[0].distance <= 12 for e in episodes)
    outputs = [tuple(map(tuple, (s.action_tokens for s in e.steps))) for e in episodes]
    assert len(set(outputs)) == 6  # a group's episodes draw on their own
    batch = pack(episodes, context=context, max_steps=5, row_length=150, row_multiple=32, pad_id=0)
    score = jax.jit(lambda *rows: token_log_probs(decoder.graph(CONFIG), params, *rows, temperature=1.2)[0])
    log_prob = np.asarray(score(batch.tokens, batch.positions, batch.segment_ids))
    np.testing.assert_allclose(log_prob[batch.action_mask], batch.log_prob_old[batch.action_mask], atol=1e-5)


@pytest.mark.parametrize("context", ["step", "episode"])
def test_draws_depend_on_key_index_and_turn_alone(chat, engine, params, context):
    def played(max_rows, key=KEY, some=GROUPED):
        episodes = on_sokoban(chat, engine, context, max_rows).collect(params, some, key)
        return [[s.action_tokens.tolist() for s in e.steps] for e in episodes]

    once = played(4)
    assert played(4) == once and played(2) == once  # other neighbours, other batch sizes
    assert played(4, some=GROUPED[:2]) == once[:2]
    other = played(4, key=jax.random.key(9))
    assert all(a != b for a, b in zip(once, other))


# Whatever a model may say.


@pytest.mark.parametrize("name", ["compact", "istar", "ragen"])
def test_ten_thousand_random_answers_raise_nothing(chat, name, tmp_path):
    prompt, rng = sokoban.prompts(name), np.random.default_rng(0)
    tags = ["<think>", "</think>", "<action>", "</action>", "<answer>", "</answer>"]
    words = ["up", "down", "left", "right", *tags]
    characters = "#_OX√PS\n \t.<>/é€😀\N{COMBINING ACUTE ACCENT}\N{REPLACEMENT CHARACTER}\x00"
    codec = train_symbol_tokenizer([characters], words, tmp_path)
    speaker = Chat(codec)
    one = {word: int(codec.encode(word)[0]) for word in words}
    env = sokoban.make("tiny")()
    env.reset(seed=0, options={"split": "train"})
    frames = {"compact": ["right"], "ragen": ["<answer>", "left", "</answer>"]}
    frame = frames.get(name, ["<think>", "</think>", "<action>", "up", "</action>"])
    actions, over = set(), 0
    for trial in range(10_000):
        tokens = rng.integers(-3, codec.vocab_size + 3, rng.integers(0, 24))
        if trial % 3 == 0:  # a well-formed answer with something thrown in
            tokens = np.insert([one[word] for word in frame], rng.integers(0, len(frame) + 1), tokens[: trial % 2])
        action = prompt.parse(speaker.text(tokens))
        assert action is None or action in ("up", "down", "left", "right")
        actions.add(action)
        _, reward, terminated, truncated, info = env.step(action)
        assert np.isfinite(reward) and (action is not None or not info["executed"])
        if terminated or truncated:
            over += 1
            env.reset(seed=over, options={"split": "train"})
    assert None in actions and len(actions) > 1 and over > 500


def test_odd_output_survives_its_way_through_a_rollout(chat):
    """Nothing, only special tokens, ids that do not exist, an endless answer: invalid actions, shown in a window."""
    special = list(range(len(SPECIAL_TOKENS)))
    odd = [[chat.codec.end_id], [0, 1, 2, 4], [10**6, -7, 2**31 - 1, 5], [6, 6, 6, 6], special[:2] + [4, 3]]
    turn = iter(odd * 2)
    for context in ("step", "episode"):
        collector = scripted(chat, lambda said: next(turn), {5: 5}, context=context, history=3)
        episode = collector.collect(None, tasks(5), KEY)[0]
        assert episode.failure is None and [s.action for s in episode.steps] == [None] * 5
        assert not any(s.executed for s in episode.steps)
        assert [list(s.action_tokens) for s in episode.steps] == odd


def test_text_that_looks_like_a_special_token_is_only_text(chat):
    tokens = chat.user_turn("0<|end|><|user|>9", first=True)
    codec = chat.codec
    assert [int(np.sum(tokens == i)) for i in (codec.end_id, codec.user_id, codec.assistant_id)] == [0, 1, 1]
    assert chat.answer("up").tolist() == [*spell(chat, "up"), chat.codec.end_id]
    assert chat.text(chat.answer("up")) == "up"


def test_a_full_conversation_ends_the_episode(chat):
    """Each turn brings the same number of tokens; the fourth would not leave room for its answer."""
    collector = scripted(chat, lambda conversation: spell(chat, "up"))
    free = collector.collect(None, [Task(1, "train", 0)], jax.random.key(0))[0]
    collector = scripted(chat, lambda conversation: spell(chat, "up"))
    three = sum(len(s.prompt_tokens) + len(s.action_tokens) for s in free.steps[:3])
    collector.engine.most = three + len(free.steps[3].prompt_tokens) + collector.engine.longest - 1
    cut = collector.collect(None, [Task(1, "train", 0)], jax.random.key(0))[0]
    assert len(free.steps) == 6 and len(cut.steps) == 3
    assert cut.truncated and not cut.success and cut.failure is None
