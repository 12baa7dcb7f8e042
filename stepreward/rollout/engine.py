"""Batched decoding with a KV cache that stays on the device across turns.

A row is one conversation. `turn` appends new tokens to each row (ragged), samples an answer token by token until every row
has stopped, and keeps the cache, so that a turn costs only its new tokens. Token in, token out: nothing is ever decoded and
tokenised again. Shapes come from a few buckets (numbers of rows, of new tokens and of cache slots), so nothing retraces
after warm-up. The cache grows with the conversations, by an eighth of its largest size at a time, so that attention costs what the
conversations hold and not what they could hold.

With several processes the cache holds the rows of all processes, one block each. On the host, each process sees only its own block of a
batch (lengths, new tokens, keys, answers), and every process calls the same methods in the same order.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stepreward import parallel, processes
from stepreward.models.adapters import Adapted, LoraConfig
from stepreward.models.cache import cache_slots, cached_rows, empty_cache, with_slots
from stepreward.models.decoder import DecoderConfig, cached_hidden_states, config_of, in_compute_dtype, unstack
from stepreward.models.decoder import graph as decoder_graph
from stepreward.models.images import ImageReader
from stepreward.models.log_probs import chosen_log_probs, log_softmax
from stepreward.models.vision_inputs import Images
from stepreward.programs import Program
from stepreward.rollout.reference import Spoken
from stepreward.rollout.sampling import Sampling, sample

Array = jax.Array


class Halted(Exception):
    """A rollout was ended by another thread."""


class EngineState(NamedTuple):
    """The cache of one batch of conversations.

    Attributes:
      caches: one `LayerCache` a layer, `[B, K, C, H]`.
      length: host int32 `[B / processes]`, how many tokens of each row of this process the cache holds.
      offset: host int32, for the same rows: add it to a token's place in the cache to get its rotary position, since images take
        fewer positions than tokens. None in an engine without images.
    """

    caches: Any
    length: np.ndarray
    offset: np.ndarray | None = None


class Answer(NamedTuple):
    """What each row sampled in a turn, as arrays on the host.

    Attributes:
      tokens: int32 `[B, A]`; the first `count` tokens of a row are its answer.
      log_prob: float32 `[B, A]`, log-probability at the sampling temperature, before top-k / top-p truncation.
      entropy: float32 `[B, A]`, of the same distribution, in nats.
      count: int32 `[B]`, how many tokens were sampled, with the stop token.
      stopped: bool `[B]`, False if the answer was cut at `max_answer_tokens`.
    """

    tokens: np.ndarray
    log_prob: np.ndarray
    entropy: np.ndarray
    count: np.ndarray
    stopped: np.ndarray


def draw_token(hidden_BxD: Array, head_DxV: Array, keys_B: Array, index, sampling: Sampling) -> tuple[Array, Array]:
    """Draws the `index`-th token of each row's answer (one index, or `[B]`); returns the log-probabilities `[B, V]` and the tokens."""
    log_p = log_softmax(hidden_BxD, head_DxV, sampling.temperature)
    return log_p, sample(log_p, jax.vmap(jax.random.fold_in)(keys_B, jnp.broadcast_to(index, keys_B.shape)), sampling)


@dataclasses.dataclass
class Engine:
    """Samples answers for a batch of conversations.

    Attributes:
      graphdef, config: the decoder.
      sampling: temperature, truncation, stop tokens and the longest answer.
      max_length: tokens that a conversation may hold in all.
      buckets: allowed numbers of new tokens a turn, ascending; a turn is padded to the smallest that fits.
      pad_id: token used as padding.
      cache_dtype: storage type of the cache (None: the compute type).
      sharding: of arrays with a leading row axis (None: the default device).
      rows_multiple: batches hold a multiple of this many rows (what the sharding divides by).
      lora: the adapters of the parameters that `prepare` is given, or None.
      reader: lays images out for a model that sees; None: the engine knows no images.
      stacks: whether a TPU runs the layers of a model in a loop, if they are stacked in training. `rows.Rows` needs them listed.
      slot_buckets: numbers of slots that a cache may have, ascending (derived from the lengths above).
      layout: the decoder as it decodes: without adapters, its layers listed or, on a TPU, stacked if they are so in training.
    """

    graphdef: Any
    config: DecoderConfig
    sampling: Sampling
    max_length: int
    buckets: tuple[int, ...]
    pad_id: int
    cache_dtype: Any = None
    sharding: Any = None
    rows_multiple: int = 1
    lora: LoraConfig | None = None
    reader: ImageReader | None = None
    stacks: bool = False

    draw = staticmethod(draw_token)  # subclasses that draw in another way replace this
    draws = staticmethod(jax.random.wrap_key_data)  # inside jit: what `draw` takes, of the data of each row's key, `[B, …]`

    def __post_init__(self):
        # A TPU runs a layer again and again as fast as all layers in a row, and compiles it in a fraction of the time.
        stacked = self.stacks and self.config.scan_layers and self.platform == "tpu"
        self.layout = dataclasses.replace(self.config, scan_layers=stacked, lora=None)
        if self.layout != self.config:
            self.graphdef = decoder_graph(self.layout)
        self.buckets = tuple(sorted(set(self.buckets)))
        if not self.buckets or self.buckets[-1] > self.max_length:
            raise ValueError(f"buckets {self.buckets} must be non-empty and fit max_length={self.max_length}.")
        # A padded turn may write past a row's true end, never past the cache.
        most = self.max_length + self.buckets[-1] + self.sampling.max_answer_tokens
        parts = max(1, min(8, most // 64))
        self.slot_buckets = tuple(-(-most * part // parts) for part in range(1, parts + 1))
        # Outputs have the sharding of the arrays that `start` makes; with another one a turn would compile again.
        self.cache_sharding = self.sharding
        if self.config.mesh is not None:
            shape, axes = (self.rows_multiple, self.config.num_kv_heads, 1, 1), ("rows", "kv_heads", None, None)
            extra = int(stacked)
            self.cache_sharding = parallel.named(self.config.mesh, (None,) * extra + axes, (1,) * extra + shape)
        cached = partial(jax.jit, out_shardings=self.cache_sharding)
        outputs = (self.cache_sharding, *5 * (self.sharding,))
        self._turn = jax.jit(
            partial(_turn, self.graphdef, self.sampling, self.pad_id, type(self).draw), donate_argnums=(1,), out_shardings=outputs
        )
        self._extend = cached(partial(_extend, self.graphdef), donate_argnums=1)
        self._said = jax.jit(partial(_said, self.graphdef), out_shardings=self.sharding)
        self._grow = cached(with_slots, static_argnums=1)
        self._select = cached(cached_rows)
        self._empty = cached(lambda rows: empty_cache(self.layout, rows, self.slot_buckets[0], self.cache_dtype), static_argnums=0)
        self.halted = threading.Event()  # set by another thread to end the rollout that is being played
        self._prepare: dict[Any, tuple] = {}  # by the structure of the parameters
        self._shared = self.sharding is not None and not self.sharding.is_fully_addressable

    @property
    def platform(self) -> str:
        """What the engine's device is: "cpu", "gpu" or "tpu"."""
        return jax.default_backend() if self.sharding is None else next(iter(self.sharding.device_set)).platform

    @property
    def whole(self) -> jax.sharding.Sharding | None:
        """The sharding of arrays that every device holds whole."""
        return None if self.sharding is None else parallel.replicated(self.sharding.mesh)

    def prepare(self, params):
        """Makes the parameters of a rollout: layers unstacked, in the compute dtype, sharded for decoding. Call it once a rollout.

        Adapters are not merged into their weights, since weights of 16 bits would round a small update away.

        Args:
          params: as trained, or `(base, adapters)` with the adapters of `lora`.

        Returns:
          The parameters that `turn` takes; the same arrays if nothing has to change.
        """
        return params if self._prepared(params) else self._preparation(params)[0](params)

    def _prepared(self, params) -> bool:
        c = self.config
        return not (c.scan_layers != self.layout.scan_layers or c.mesh or isinstance(params, tuple)) and c.compute_dtype == c.param_dtype

    def _preparation(self, params):
        """The jitted function, and the shapes of what it returns."""
        structure = jax.tree.structure(params)
        if structure not in self._prepare:
            make = partial(_decoding_params, self.layout, self.lora)
            shapes, shardings = jax.eval_shape(make, params), None
            if self.config.mesh is not None:
                shardings = parallel.parameter_sharding(shapes, self.config.mesh, parallel.DECODING)
                shapes = parallel.place(shapes, shardings)
            self._prepare[structure] = jax.jit(make, out_shardings=shardings), shapes
        return self._prepare[structure]

    def preparation(self, params) -> tuple[Program | None, Any]:
        """The program that prepares parameters of these shapes, if there is one, and the shapes of what it returns."""
        if self._prepared(params):
            return None, params
        prepare, prepared = self._preparation(params)
        return Program("rollout/prepare", prepare, (params,)), prepared

    def programs(
        self, params, rows: int, *, turns: int, batches: int, grows: bool, references: bool = False, extends: bool = False
    ) -> Iterator[Program]:
        """The programs of a rollout in batches at their largest shapes: the longest prompt after the longest conversation.

        Args:
          params: shapes of the parameters that `prepare` takes, on a mesh.
          rows: how many conversations there are at once.
          turns: how many turns each conversation has.
          batches: how many batches of `rows` conversations a rollout has.
          grows: whether conversations keep their cache; otherwise every turn starts with an empty one.
          references: whether every turn also scores a reference answer.
          extends: whether conversations begin in the middle, so that their earlier turns are read first.
        """
        prepare, prepared = self.preparation(params)
        if prepare is not None:
            yield prepare
        width, longest = self.buckets[-1], self.sampling.max_answer_tokens
        need = self.max_length + longest if grows else width + longest
        slots = next(size for size in self.slot_buckets if size >= need)
        cache = lambda slots: parallel.place(
            jax.eval_shape(lambda: empty_cache(self.layout, rows, slots, self.cache_dtype)), self.cache_sharding
        )
        row = lambda shape, dtype: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=self.sharding)
        tokens, count = row((width,), jnp.int32), row((), jnp.int32)
        keys = parallel.place(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows)), self.sharding)
        smaller = [size for size in self.slot_buckets if size < slots]
        if smaller:
            yield Program("rollout/grow", self._grow, (cache(smaller[-1]), slots), times=batches)
        seen = () if self.reader is None else (parallel.place(self.reader.shapes(rows, width), self.sharding), count)
        yield Program(
            "rollout/turn", self._turn, (prepared, cache(slots), tokens, count, count, keys, *seen), times=turns * batches,
            trips=longest - 1,
        )  # fmt: skip
        if extends:
            yield Program("rollout/extend", self._extend, (prepared, cache(slots), tokens, count, count), times=turns * batches)
        if references:
            scored = row((width,), jnp.bool_)
            turned = () if self.reader is None else (count,)
            yield Program(
                "rollout/reference", self._said, (prepared, cache(slots), tokens, tokens, scored, count, *turned), times=turns * batches
            )
        run = jax.jit(partial(cached_hidden_states, self.graphdef), donate_argnums=3)
        for name, new, keep in (("prefill", tokens, row((1,), jnp.int32)), ("decode", row((1,), jnp.int32), None)):
            yield Program(f"rollout/turn: {name}", run, (prepared, new, count, cache(slots), keep), detail=True)

    def start(self, rows: int) -> EngineState:
        """Returns `rows` empty conversations, counted over all processes."""
        length = np.zeros(rows // (processes.count() if self._shared else 1), np.int32)
        return EngineState(self._empty(rows), length, None if self.reader is None else np.zeros_like(length))

    def reset(self, state: EngineState) -> EngineState:
        """Forgets every conversation and keeps the memory."""
        return state._replace(length=np.zeros_like(state.length), offset=None if state.offset is None else 0 * state.offset)

    def select(self, state: EngineState, index: np.ndarray) -> EngineState:
        """Keeps the rows `index` of this process, in that order; a row may be repeated as filler."""
        chosen = processes.all_rows(index, len(state.length)) if self._shared else jnp.asarray(index)
        offset = None if state.offset is None else state.offset[index]
        return EngineState(self._select(state.caches, chosen), state.length[index], offset)

    def batch_rows(self, rows: int, most: int) -> int:
        """The rows that a batch of `rows` conversations starts with: the smallest of `most`, its half, its quarter … that holds them."""
        return self._smallest(rows, most, [2**power for power in range(1, most.bit_length())])

    def row_bucket(self, rows: int, most: int) -> int:
        """The rows that a batch shrinks to: the smallest of `most`, its half, its eighth and its 32nd that holds `rows`.

        There are fewer sizes than in `batch_rows`, since each compiles a program.
        """
        return self._smallest(rows, most, [2, 8, 32])

    def _smallest(self, rows: int, most: int, parts: Sequence[int]) -> int:
        sizes = [most] + [-(-most // part // self.rows_multiple) * self.rows_multiple for part in parts]
        return min(size for size in sizes if size >= rows)

    def bucket(self, tokens: int) -> int:
        """The smallest bucket that holds `tokens` new tokens."""
        for size in self.buckets:
            if tokens <= size:
                return size
        raise ValueError(
            f"A turn brings {tokens} new tokens, more than the largest bucket {self.buckets[-1]}; raise "
            "rollout.max_prompt_tokens or shorten the prompt."
        )

    def holds(self, tokens: int, new: int = 0) -> bool:
        """Whether a turn may have `new` new tokens, and a conversation of `tokens` tokens has room for one more answer."""
        return new <= self.buckets[-1] and tokens + self.sampling.max_answer_tokens <= self.max_length

    def turn(
        self, params, state: EngineState, new_tokens: list[np.ndarray], keys: Array, images: Sequence[Images | None] | None = None
    ) -> tuple[EngineState, Answer]:
        """Appends `new_tokens[b]` to each row and samples an answer.

        The last token of an answer is not yet in the cache: the caller sends it again as the first new token of the next
        turn (`new_tokens` are all tokens after `state.length`). A row without new tokens is idle: it samples nothing and
        keeps its conversation.

        Args:
          params: the decoder's parameters, as `prepare` returns them.
          state: the conversations; its cache is donated.
          new_tokens: per row, int32 tokens.
          keys: one PRNG key a row, `[B]`.
          images: per row, the images among its new tokens; for an engine with a reader. None: text only.
        """
        self.check_halted()
        caches, tokens, count = self._lay_out(state, new_tokens, room=self.sampling.max_answer_tokens)
        width = tokens.shape[1]
        seen, offset = (), state.offset
        if self.reader is not None:
            shown = [None] * len(new_tokens) if images is None else images
            # The first token of a conversation that goes on was sampled. It shows no image, even if it is a placeholder.
            sampled = [np.arange(len(new)) < (n > 0) for new, n in zip(new_tokens, state.length)]
            vision = self.reader.inputs(new_tokens, shown, width, start=state.length + state.offset, sampled=sampled)
            offset = state.offset + vision.offset
            seen = (vision, offset)
        elif images is not None:
            raise ValueError("images were given to an engine without a reader, whose model reads text only.")
        arrays = self._place((tokens, count, state.length))
        caches, *answer = self._turn(params, caches, *arrays, self._place(keys), *self._place(seen))
        answer = Answer(*(map(processes.local_rows, answer) if self._shared else (np.asarray(x) for x in jax.device_get(answer))))
        # Idle rows keep their length; others hold all but the last sampled token.
        length = np.where(count > 0, state.length + count + answer.count - 1, state.length).astype(np.int32)
        return EngineState(caches, length, offset), answer

    def check_halted(self) -> None:
        """Raises Halted if another thread has ended the rollout."""
        if self.halted.is_set():
            raise Halted("the rollout was ended before its end.")

    def fits(self, spoken: Spoken, length: int) -> bool:
        """Whether `mean_log_prob` can score a text behind a conversation of `length` tokens."""
        return 0 < spoken.scored and len(spoken.tokens) <= self.buckets[-1] and length + len(spoken.tokens) <= self.max_length

    def mean_log_prob(
        self, params, state: EngineState, length: np.ndarray, last: np.ndarray, spoken: Sequence[Spoken | None]
    ) -> np.ndarray:
        """Scores a text in place of each row's last answer, float32 `[B]`; NaN for a row without one.

            1/K · Σ_k log p(x_k | conversation up to the last prompt, lead-in, x_1 … x_{k−1}),   k = 1 … K scored tokens, in nats

        It reads the cache that the turn has filled up to the prompt's end and runs the text behind it in one pass over all rows.
        Nothing is kept: the state is as it was, and so is all that later turns draw. The distribution is the model's own, at
        temperature 1 and without truncation, whatever the sampling settings.

        Args:
          params: the decoder's parameters, as `prepare` returns them.
          state: what `turn` has just returned; its cache is not donated.
          length: int32 `[B]`, tokens of each conversation up to the end of the last prompt.
          last: int32 `[B]`, the last token of that prompt, which is text.
          spoken: per row, a text for which `fits` holds, or None.
        """
        rows = len(spoken)
        longest = max((len(text.tokens) for text in spoken if text is not None), default=0)
        longest = int(processes.agree_max(longest)) if self._shared else longest
        if not longest:
            return np.full(rows, np.nan, np.float32)
        tokens, targets = np.full((2, rows, self.bucket(longest)), self.pad_id, np.int32)
        scored = np.zeros(tokens.shape, bool)
        for row, text in enumerate(spoken):
            if text is not None:
                count = len(text.tokens)
                tokens[row, :count] = [last[row], *text.tokens[:-1]]  # the prompt's last token predicts the first one
                targets[row, :count] = text.tokens
                scored[row, count - text.scored : count] = True
        start = np.maximum(np.asarray(length, np.int32) - 1, 0)
        turned = () if state.offset is None else (state.offset,)
        found = self._said(params, state.caches, *self._place((tokens, targets, scored, start, *turned)))
        found = processes.local_rows(found) if self._shared else np.asarray(jax.device_get(found))
        return np.where(scored.any(axis=1), found, np.nan).astype(np.float32)

    def extend(self, params, state: EngineState, new_tokens: Sequence[np.ndarray]) -> EngineState:
        """Appends `new_tokens[b]` of text to each row and samples nothing, for conversations that begin in the middle.

        Any number of tokens may be given: they are read in pieces of at most the largest bucket.

        Args:
          params: the decoder's parameters, as `prepare` returns them.
          state: the conversations; its cache is donated.
          new_tokens: per row, int32 tokens; a row may have none.

        Raises:
          ValueError: the engine sees images, which a conversation that is read again cannot show.
        """
        if self.reader is not None:
            raise ValueError("an engine that sees images cannot extend a conversation: play it with rollout.context='step'.")
        longest = max(map(len, new_tokens))
        longest = int(processes.agree_max(longest)) if self._shared else longest
        for first in range(0, longest, self.buckets[-1]):
            piece = [tokens[first : first + self.buckets[-1]] for tokens in new_tokens]
            caches, tokens, count = self._lay_out(state, piece)
            caches = self._extend(params, caches, *self._place((tokens, count, state.length)))
            state = state._replace(caches=caches, length=(state.length + count).astype(np.int32))
        return state

    def _lay_out(self, state: EngineState, new_tokens: Sequence[np.ndarray], room: int = 0):
        """The caches with room for the new tokens and `room` more, the tokens `[B, T]` in a bucket, and how many each row has."""
        count = np.array([len(x) for x in new_tokens], np.int32)
        reach = np.array([count.max(), state.length.max(), (state.length + count).max()])
        most, held, longest = (int(x) for x in (processes.agree_max(reach) if self._shared else reach))
        width = self.bucket(most)
        if longest > self.max_length:
            raise ValueError(f"A conversation grew past max_length={self.max_length} tokens.")
        caches, need = state.caches, held + width + room
        if need > cache_slots(caches):
            caches = self._grow(caches, next(size for size in self.slot_buckets if size >= need))
        tokens = np.full((len(new_tokens), width), self.pad_id, np.int32)
        for row, new in enumerate(new_tokens):
            tokens[row, : len(new)] = new
        return caches, tokens, count

    def _place(self, tree):
        if self._shared:
            return jax.tree.map(lambda x: processes.place_rows(x, self.sharding), tree)
        return jax.device_put(tree, self.sharding)


def _decoding_params(layout: DecoderConfig, lora: LoraConfig | None, params):
    if isinstance(params, tuple):
        base, adapters = params
        return Adapted(_decoding_params(layout, lora, base), _laid_out(layout, adapters), lora)
    return in_compute_dtype(layout, _laid_out(layout, params))


def _laid_out(layout: DecoderConfig, params):
    return params if layout.scan_layers else unstack(params, layout.num_layers)


def _said(graphdef, params, caches, tokens_BxT, targets_BxT, scored_BxT, start_B, offset_B=None):
    """Mean log-probability `[B]` of the scored targets, where `tokens` stand from place `start` on; the caches are not changed."""
    slots = cache_slots(caches) + tokens_BxT.shape[1]  # a padded text may end behind the last slot
    hidden, head, _ = cached_hidden_states(graphdef, params, tokens_BxT, start_B, with_slots(caches, slots), offset_B=offset_B)
    log_prob = chosen_log_probs(hidden, targets_BxT, head, mesh=config_of(graphdef).mesh)
    return jnp.sum(jnp.where(scored_BxT, log_prob, 0.0), axis=1) / jnp.maximum(jnp.sum(scored_BxT, axis=1), 1)


def _extend(graphdef, params, caches, tokens_BxT, count_B, length_B):
    last = jnp.maximum(count_B - 1, 0)[:, None]
    return cached_hidden_states(graphdef, params, tokens_BxT, length_B, caches, last)[2]


def _turn(
    graphdef, sampling: Sampling, pad_id: int, draw_token, params, caches, tokens_BxT, count_B, length_B, keys_B, vision=None,
    offset_B=None,
):  # fmt: skip
    last = jnp.maximum(count_B - 1, 0)[:, None]
    hidden, head, caches = cached_hidden_states(graphdef, params, tokens_BxT, length_B, caches, last, vision=vision)
    rows, longest = tokens_BxT.shape[0], sampling.max_answer_tokens
    stop = jnp.asarray(sampling.stop_ids, jnp.int32)

    def draw(index, hidden_BxD, done_B, out):
        log_p, token = draw_token(hidden_BxD, head, keys_B, index, sampling)
        token = jnp.where(done_B, pad_id, token)
        chosen = jnp.take_along_axis(log_p, token[:, None], axis=-1)[:, 0]
        entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
        values = (token, jnp.where(done_B, 0.0, chosen), jnp.where(done_B, 0.0, entropy))
        out = tuple(jax.lax.dynamic_update_index_in_dim(o, v, index, axis=1) for o, v in zip(out, values))
        stopped = jnp.any(token[:, None] == stop[None], axis=-1) & ~done_B
        return token, stopped, out

    def body(carry):
        index, token_B, position_B, answered_B, stopped_B, caches, out = carry
        done = stopped_B | (count_B == 0)
        hidden, _, caches = cached_hidden_states(graphdef, params, token_B[:, None], position_B, caches, offset_B=offset_B)
        token, now, out = draw(index, hidden[:, 0], done, out)
        answered = answered_B + ~done
        return index + 1, token, position_B + ~done, answered, stopped_B | now, caches, out

    idle = count_B == 0
    out = (jnp.full((rows, longest), pad_id, jnp.int32), jnp.zeros((rows, longest)), jnp.zeros((rows, longest)))
    token, stopped, out = draw(0, hidden[:, 0], idle, out)
    carry = (1, token, length_B + count_B, (~idle).astype(jnp.int32), stopped, caches, out)
    if longest > 1:
        going = lambda c: (c[0] < longest) & ~jnp.all(c[4] | idle)
        carry = jax.lax.while_loop(going, body, carry)
    _, _, _, answered, stopped, caches, out = carry
    return caches, *out, answered, stopped
