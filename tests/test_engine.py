"""The engine: cached decoding equals recomputation, rows are independent, nothing retraces, and exceeded limits are errors."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepreward import parallel
from stepreward.models import decoder
from stepreward.models.adapters import LoraConfig, split_adapters
from stepreward.models.decoder import DecoderConfig
from stepreward.models.log_probs import token_log_probs
from stepreward.rollout import engine as engine_module
from stepreward.rollout.engine import Engine
from stepreward.rollout.sampling import Sampling

CONFIG = DecoderConfig(vocab_size=13, num_layers=1, embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24, qk_norm=True)
STOP, LONGEST = (1, 2, 3), 4


@pytest.fixture(scope="module")
def params():
    return decoder.build(CONFIG, 0)[1]


def make_engine(max_length=64, buckets=(8,), stop_ids=STOP, longest=LONGEST, sharding=None, config=CONFIG, **settings):
    sampling = Sampling(stop_ids, longest, **settings)
    return Engine(decoder.graph(config), config, sampling, max_length, buckets, pad_id=0, sharding=sharding)


@pytest.fixture(scope="module")
def shared():
    """One engine for all tests that need no other, as each engine compiles anew."""
    return make_engine()


@pytest.mark.parametrize("adapted", [False, True])
def test_a_tpu_decodes_with_stacked_layers(monkeypatch, adapted):
    """Only the layout differs: what is drawn is the same."""
    lora = LoraConfig(2, targets=("query", "down")) if adapted else None
    config = dataclasses.replace(CONFIG, num_layers=3, scan_layers=True)
    params = decoder.build(config, 0)[1]
    if adapted:
        adapters = split_adapters(decoder.build(dataclasses.replace(config, lora=lora), 1)[1])[1]
        params = params, jax.tree.map(lambda x: x + 0.1, adapters)
    found = []
    for platform in ("cpu", "tpu"):
        monkeypatch.setattr(Engine, "platform", platform)
        engine = Engine(decoder.graph(config), config, Sampling(STOP, LONGEST), 64, (8,), pad_id=0, lora=lora, stacks=True)
        assert engine.layout.scan_layers == (platform == "tpu")
        prepared, state, talk = engine.prepare(params), engine.start(4), []
        for turn in range(3):
            new = [np.arange(row + turn + 1, dtype=np.int32) + 4 for row in range(4)]
            state, answer = engine.turn(prepared, state, new, row_keys(turn, range(4)))
            talk.append(answer)
        state = engine.select(state, np.array([3, 1]))
        talk.append(engine.turn(prepared, state, [np.arange(5, dtype=np.int32)] * 2, row_keys(3, range(2)))[1])
        found.append(talk)
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_allclose(a.log_prob, b.log_prob, atol=1e-5)


class Talk:
    """Conversations and what was sampled in them: the caller's side of the engine."""

    def __init__(self, rows):
        self.tokens = [np.zeros(0, np.int32) for _ in range(rows)]
        self.log_prob = [np.zeros(0) for _ in range(rows)]  # NaN where the token was not sampled
        self.entropy = [np.zeros(0) for _ in range(rows)]
        self.counts, self.stopped = [], []

    def say(self, row, prompt):
        self.tokens[row] = np.r_[self.tokens[row], prompt].astype(np.int32)
        for values in (self.log_prob, self.entropy):
            values[row] = np.r_[values[row], np.full(len(prompt), np.nan)]

    def hear(self, rows, answer):
        for index, row in enumerate(rows):
            n = answer.count[index]
            self.tokens[row] = np.r_[self.tokens[row], answer.tokens[index, :n]]
            self.log_prob[row] = np.r_[self.log_prob[row], answer.log_prob[index, :n]]
            self.entropy[row] = np.r_[self.entropy[row], answer.entropy[index, :n]]
            if n:
                self.counts.append(int(n))
                self.stopped.append(bool(answer.stopped[index]))


def row_keys(turn, rows, seed=0):
    key = jax.random.fold_in(jax.random.key(seed), turn)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.asarray(rows))


def prompts(turns, rows, seed=0):
    """[turn][row]: ragged prompts of 1 to 6 tokens."""
    draw = np.random.default_rng(seed)
    return [[draw.integers(4, 13, draw.integers(1, 7)) for _ in range(rows)] for _ in range(turns)]


def play(engine, params, said, *, idle=(), keep=None, fresh=False):
    """Plays every turn of `said`; `idle` holds (turn, row) pairs, `keep` is (turn, rows to go on with, in order)."""
    talk, rows = Talk(len(said[0])), list(range(len(said[0])))
    state = engine.start(len(rows))
    for turn, texts in enumerate(said):
        if keep is not None and turn == keep[0]:
            state = engine.select(state, np.array([rows.index(row) for row in keep[1]]))
            rows = list(keep[1])
        if fresh:
            state = engine.reset(state)
        for row in rows:
            if (turn, row) not in idle:
                talk.say(row, texts[row])
        new = [talk.tokens[row][0 if (turn, row) in idle else state.length[i] :] for i, row in enumerate(rows)]
        new = [np.zeros(0, np.int32) if (turn, row) in idle else n for row, n in zip(rows, new)]
        state, answer = engine.turn(params, state, new, row_keys(turn, rows))
        talk.hear(rows, answer)
    return talk


def recompute(params, talk, temperature, config=CONFIG):
    """Log-probability and entropy of every token, by one forward pass over the padded conversations."""
    length = max(map(len, talk.tokens))
    tokens, segment_ids = np.zeros((2, len(talk.tokens), length), np.int32)
    for row, said in enumerate(talk.tokens):
        tokens[row, : len(said)], segment_ids[row, : len(said)] = said, 1
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    score = jax.jit(token_log_probs, static_argnums=0, static_argnames="temperature")
    found = score(decoder.graph(config), params, tokens, positions, segment_ids, temperature=temperature)
    return tuple(np.asarray(x) for x in found)


def test_cached_play_equals_recomputation_over_ragged_turns():
    config = dataclasses.replace(CONFIG, num_layers=2)
    params = decoder.build(config, 0)[1]
    engine = make_engine(max_length=130, temperature=0.8, config=config)  # the cache grows on the way
    idle = {(1, 2), (3, 0), (4, 3), (5, 3)}
    talk = play(engine, params, prompts(14, 5), idle=idle, keep=(6, (3, 0)))
    log_prob, entropy = recompute(params, talk, 0.8, config)
    assert set(talk.counts) == {1, 2, 3, 4} and set(talk.stopped) == {True, False}
    assert len({len(t) for t in talk.tokens}) > 3 and max(map(len, talk.tokens)) > engine.slot_buckets[0]
    for row, tokens in enumerate(talk.tokens):
        sampled = ~np.isnan(talk.log_prob[row])
        assert sampled.sum() >= 6
        np.testing.assert_allclose(talk.log_prob[row][sampled], log_prob[row, : len(tokens)][sampled], atol=1e-5)
        np.testing.assert_allclose(talk.entropy[row][sampled], entropy[row, : len(tokens)][sampled], atol=1e-5)


def test_a_kept_cache_gives_what_prefilling_everything_gives(params, shared):
    said = prompts(5, 4, seed=1)
    kept = play(shared, params, said)
    again = play(make_engine(buckets=(64,)), params, said, fresh=True)
    for row in range(4):
        np.testing.assert_array_equal(kept.tokens[row], again.tokens[row])
        np.testing.assert_allclose(kept.log_prob[row], again.log_prob[row], atol=1e-5)


def test_a_row_draws_the_same_alone_and_among_others(params, shared):
    said = prompts(4, 4, seed=2)
    together = play(shared, params, said)
    for turn in range(4):
        said[turn][0] = np.array([5])  # other neighbours
    alone = play(shared, params, said, idle={(t, r) for t in range(4) for r in (0, 1, 3)})
    np.testing.assert_array_equal(together.tokens[2], alone.tokens[2])
    single = Talk(1)
    state = shared.start(1)
    for turn in range(4):
        single.say(0, said[turn][2])
        state, answer = shared.turn(params, state, [single.tokens[0][state.length[0] :]], row_keys(turn, [2]))
        single.hear([0], answer)
    np.testing.assert_array_equal(together.tokens[2], single.tokens[0])
    np.testing.assert_allclose(together.log_prob[2], single.log_prob[0], atol=1e-5)


def test_answers_end_at_their_stop_token_or_at_the_limit(params, shared):
    new = [np.array([4 + row], np.int32) for row in range(3)] + [np.zeros(0, np.int32)]
    state, answer = shared.turn(params, shared.start(4), new, row_keys(0, range(4)))
    assert 0 < answer.stopped[:3].sum() < 3
    for row in range(3):
        n = answer.count[row]
        ends = np.isin(answer.tokens[row, :n], STOP)
        assert not ends[:-1].any() and ends[-1] == answer.stopped[row] and (answer.stopped[row] or n == LONGEST)
        assert (answer.tokens[row, n:] == 0).all() and (answer.log_prob[row, n:] == 0).all()
        assert (answer.log_prob[row, :n] < 0).all() and (answer.entropy[row, :n] > 0).all()
        assert state.length[row] == n  # one token of prompt, all but the last of the answer
    assert answer.count[3] == 0 and not answer.stopped[3] and state.length[3] == 0


@pytest.mark.parametrize("stop_ids, longest, count, stopped", [((), 3, 3, False), (tuple(range(13)), 1, 1, True), ((), 1, 1, False)])
def test_endless_and_immediate_answers(params, stop_ids, longest, count, stopped):
    engine = make_engine(stop_ids=stop_ids, longest=longest)
    state, answer = engine.turn(params, engine.start(2), [np.array([4, 5]), np.array([6])], row_keys(0, [0, 1]))
    np.testing.assert_array_equal(answer.count, [count] * 2)
    np.testing.assert_array_equal(answer.stopped, [stopped] * 2)
    np.testing.assert_array_equal(state.length, [2 + count - 1, 1 + count - 1])


def test_greedy_answers_are_the_best_tokens_of_a_recomputation(params):
    engine, hidden_states = make_engine(temperature=0.0), jax.jit(decoder.hidden_states, static_argnums=0)
    talk = play(engine, params, prompts(2, 3, seed=3))
    log_prob, _ = recompute(params, talk, 1.0)
    for row, tokens in enumerate(talk.tokens):
        padded = np.zeros((1, 24), np.int32)
        padded[0, : len(tokens)] = tokens
        hidden, head = hidden_states(
            decoder.graph(CONFIG), params, padded, np.arange(24)[None], (np.arange(24) < len(tokens))[None].astype(int)
        )
        best = np.asarray(jnp.argmax(hidden[0] @ head, axis=-1))
        sampled = np.flatnonzero(~np.isnan(talk.log_prob[row]))
        np.testing.assert_array_equal(tokens[sampled], best[sampled - 1])
        np.testing.assert_allclose(talk.log_prob[row][sampled], log_prob[row, sampled], atol=1e-5)


def test_nothing_retraces_after_warm_up(params, monkeypatch):
    monkeypatch.setattr(engine_module, "_turn", chex.assert_max_traces(engine_module._turn, n=4))
    engine = make_engine(max_length=130, sharding=parallel.row_sharding(parallel.make_mesh(1, 1, 1)))
    assert engine.slot_buckets == (71, 142)
    for rows in (4, 2):
        state = engine.start(rows)
        for length in (0, 100):
            state = state._replace(length=np.full(rows, length, np.int32))
            state, _ = engine.turn(params, state, [np.array([5])] * rows, row_keys(0, range(rows)))
    compiled = engine._turn._cache_size()
    for seed in (5, 6):  # any other shape would trace a fifth time, which raises
        talk = play(engine, params, prompts(13, 4, seed), idle={(2, 1)}, keep=(7, (3, 0)))
        assert max(map(len, talk.tokens)) > 71
    assert engine._turn._cache_size() == compiled


def test_shapes_come_from_buckets():
    engine = make_engine(max_length=500, buckets=(32, 8, 32))
    assert engine.buckets == (8, 32) and [engine.bucket(n) for n in (0, 8, 9, 32)] == [8, 8, 32, 32]
    assert engine.slot_buckets == (67, 134, 201, 268, 335, 402, 469, 536)
    assert engine.start(2).caches[0].key.shape == (2, 2, 67, 4)
    assert [engine.row_bucket(n, 64) for n in (64, 33, 32, 9, 8, 3, 2, 1)] == [64, 64, 32, 32, 8, 8, 2, 2]
    assert [engine.row_bucket(n, 7) for n in (7, 4, 1)] == [7, 4, 1]
    assert [engine.batch_rows(n, 64) for n in (64, 33, 32, 16, 9, 4, 2, 1)] == [64, 64, 32, 16, 16, 4, 2, 1]
    engine.rows_multiple = 4
    assert [engine.batch_rows(n, 64) for n in (33, 9, 5, 1)] == [64, 16, 8, 4]
    assert [engine.row_bucket(n, 64) for n in (33, 9, 8, 5, 1)] == [64, 32, 8, 8, 4]


def test_too_many_tokens_are_one_clear_error(params):
    engine = make_engine(max_length=10, longest=1)
    state = engine.start(2)
    with pytest.raises(ValueError, match="brings 9 new tokens, more than the largest bucket 8; raise"):
        engine.turn(params, state, [np.zeros(9, np.int32), np.zeros(1, np.int32)], row_keys(0, [0, 1]))
    state, _ = engine.turn(params, state, [np.full(8, 5), np.full(1, 5)], row_keys(0, [0, 1]))
    with pytest.raises(ValueError, match="past max_length=10"):
        engine.turn(params, state, [np.full(4, 5), np.full(1, 5)], row_keys(1, [0, 1]))
    for buckets in ((), (4, 16)):
        with pytest.raises(ValueError, match="non-empty and fit max_length=10"):
            make_engine(max_length=10, buckets=buckets)


def test_a_smaller_cache_type_is_kept(params):
    engine = Engine(decoder.graph(CONFIG), CONFIG, Sampling(STOP, 1), 16, (4,), 0, cache_dtype=jnp.bfloat16)
    state, answer = engine.turn(params, engine.start(1), [np.array([4, 5])], row_keys(0, [0]))
    chex.assert_type([state.caches[0].key, answer.log_prob], [jnp.bfloat16, jnp.float32])
    assert np.isfinite(answer.log_prob).all()


def test_a_conversation_that_is_read_again_goes_on_as_it_was(params):
    """In pieces of the largest bucket; an idle row and a row that begins here are as they would be."""
    engine, keys = make_engine(), row_keys(0, range(3))
    draw = np.random.default_rng(1)
    long, short = draw.integers(4, 13, 21), draw.integers(4, 13, 5)
    none, last = np.zeros(0, np.int32), [draw.integers(4, 13, n) for n in (4, 3, 6)]
    state = engine.extend(params, engine.start(3), [long, short, none])
    assert state.length.tolist() == [21, 5, 0]
    found = engine.turn(params, state, last, keys)[1]
    whole = make_engine(buckets=(32,))
    said = [np.r_[long, last[0]], np.r_[short, last[1]], last[2]]
    expected = whole.turn(params, whole.start(3), said, keys)[1]
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.log_prob, expected.log_prob, atol=1e-5)


def test_a_conversation_is_read_again_behind_what_is_there(params):
    engine, keys = make_engine(), row_keys(0, range(2))
    rows = [np.arange(4, 10), np.arange(5, 12)]
    once = engine.extend(params, engine.start(2), rows)
    twice = engine.extend(params, engine.extend(params, engine.start(2), [row[:3] for row in rows]), [row[3:] for row in rows])
    assert once.length.tolist() == twice.length.tolist()
    one, other = (engine.turn(params, state, [np.array([4]), np.array([5])], keys)[1] for state in (once, twice))
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_allclose(one.log_prob, other.log_prob, atol=1e-5)


def test_a_conversation_longer_than_a_row_cannot_be_read_again(params):
    engine = make_engine(max_length=16)
    with pytest.raises(ValueError, match="grew past max_length=16"):
        engine.extend(params, engine.start(1), [np.full(17, 4)])


def test_an_engine_that_sees_reads_nothing_again(params):
    engine = dataclasses.replace(make_engine(), reader=object())
    with pytest.raises(ValueError, match="an engine that sees images cannot extend a conversation"):
        engine.extend(params, None, [np.full(3, 4)])


def test_reading_again_compiles_once_for_a_bucket(params):
    engine = make_engine()
    for length in (3, 20, 8):
        engine.extend(params, engine.start(2), [np.full(length, 4), np.full(2, 5)])
    assert engine._extend._cache_size() == 1
