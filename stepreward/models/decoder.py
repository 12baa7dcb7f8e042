"""One decoder for Llama 3.x, Qwen2.5 and Qwen3, and for tiny models trained from scratch.

Pre-norm transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU. Switches: `qkv_bias` (Qwen2.5), `qk_norm`
(Qwen3), `rope_scaling` (Llama 3.1), `tie_embeddings`. Written with `flax.nnx` and split at the edge into a static graph and a
parameter pytree (`build`), so that policy, old policy, reference and process reward model are pytrees that pass through
the same pure functions.

Shape suffixes: B rows, T new tokens, S cache slots, E embedding, N query heads, K key/value heads, G = N / K, H head width,
F hidden width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from stepreward.models.rotary import RopeScaling, apply_rotary, rotary_angles

Array = jax.Array
_MASKED = -1e30  # finite, so that a row without any visible key stays finite


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and switches of a decoder."""

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = True
    norm_eps: float = 1e-6
    compute_dtype: Any = jnp.float32
    remat: bool = False

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}.")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: rotary positions turn pairs of channels.")


class LayerCache(NamedTuple):
    """Keys and values of one layer, `[B, K, S, H]`: rows and heads outside, so that a decode step reads memory in order."""

    key: Array
    value: Array


class RMSNorm(nnx.Module):
    """y = x / sqrt(mean(x²) + ε) · scale, computed in fp32."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        variance = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        return (x32 * jax.lax.rsqrt(variance + self.eps) * self.scale[...]).astype(x.dtype)


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> nnx.Param:
    return nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions, over its own tokens or over a cache."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        c = self.config = config
        self.query = _normal(rngs, (c.embed_dim, c.num_heads, c.head_dim), c.embed_dim)
        self.key = _normal(rngs, (c.embed_dim, c.num_kv_heads, c.head_dim), c.embed_dim)
        self.value = _normal(rngs, (c.embed_dim, c.num_kv_heads, c.head_dim), c.embed_dim)
        self.output = _normal(rngs, (c.num_heads, c.head_dim, c.embed_dim), c.num_heads * c.head_dim * 2 * c.num_layers)
        if c.qkv_bias:
            self.query_bias = nnx.Param(jnp.zeros((c.num_heads, c.head_dim), jnp.float32))
            self.key_bias = nnx.Param(jnp.zeros((c.num_kv_heads, c.head_dim), jnp.float32))
            self.value_bias = nnx.Param(jnp.zeros((c.num_kv_heads, c.head_dim), jnp.float32))
        if c.qk_norm:
            self.query_norm = RMSNorm(c.head_dim, c.norm_eps)
            self.key_norm = RMSNorm(c.head_dim, c.norm_eps)

    def __call__(self, x_BxQxE, x_BxTxE, angles_q, angles, mask_BxQxS, cache: LayerCache | None, start_B: Array | None):
        c = self.config
        dtype = x_BxTxE.dtype
        query = _project(x_BxQxE, self.query[...].astype(dtype))
        key, value = (_project(x_BxTxE, w[...].astype(dtype)) for w in (self.key, self.value))
        if c.qkv_bias:
            query += self.query_bias[...].astype(dtype)[None, :, None]
            key += self.key_bias[...].astype(dtype)[None, :, None]
            value += self.value_bias[...].astype(dtype)[None, :, None]
        if c.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = apply_rotary(query, angles_q), apply_rotary(key, angles)
        if cache is not None:
            cache = LayerCache(_write(cache.key, key, start_B), _write(cache.value, value, start_B))
            key, value = cache.key.astype(dtype), cache.value.astype(dtype)
        batch, _, time, _ = query.shape
        query = query.reshape(batch, c.num_kv_heads, c.num_heads // c.num_kv_heads, time, c.head_dim)
        scores = jnp.einsum("bkgth,bksh->bkgts", query, key).astype(jnp.float32) * c.head_dim**-0.5
        scores = jnp.where(mask_BxQxS[:, None, None], scores, _MASKED)
        weights = jax.nn.softmax(scores, axis=-1).astype(dtype)
        mixed = jnp.einsum("bkgts,bksh->bkgth", weights, value).reshape(batch, c.num_heads, time, c.head_dim)
        mixed = mixed.transpose(0, 2, 1, 3).reshape(batch * time, c.num_heads * c.head_dim)
        out = mixed @ self.output[...].astype(dtype).reshape(c.num_heads * c.head_dim, c.embed_dim)
        return out.reshape(batch, time, c.embed_dim), cache


def _project(x_BxTxE: Array, weight_ExNxH: Array) -> Array:
    """x · W as `[B, N, T, H]`. One flat matrix product: on CPU its weight gradient is several times faster than the
    gradient of a three-dimensional contraction."""
    batch, time, width = x_BxTxE.shape
    _, heads, head_dim = weight_ExNxH.shape
    out = x_BxTxE.reshape(batch * time, width) @ weight_ExNxH.reshape(width, heads * head_dim)
    return out.reshape(batch, time, heads, head_dim).transpose(0, 2, 1, 3)


def _write(cache_BxKxSxH: Array, new_BxKxTxH: Array, start_B: Array) -> Array:
    """Writes T new slots from `start_B` on, row by row. Slots past a row's true length hold padding until overwritten."""
    def write_row(row, new, start):
        return jax.lax.dynamic_update_slice(row, new, (0, start, 0))

    return jax.vmap(write_row)(cache_BxKxSxH, new_BxKxTxH.astype(cache_BxKxSxH.dtype), start_B)


class FeedForward(nnx.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        c = config
        self.gate = _normal(rngs, (c.embed_dim, c.mlp_dim), c.embed_dim)
        self.up = _normal(rngs, (c.embed_dim, c.mlp_dim), c.embed_dim)
        self.down = _normal(rngs, (c.mlp_dim, c.embed_dim), c.mlp_dim * 2 * c.num_layers)

    def __call__(self, x_BxTxE: Array) -> Array:
        gate_ExF, up_ExF, down_FxE = (w[...].astype(x_BxTxE.dtype) for w in (self.gate, self.up, self.down))
        x = x_BxTxE.reshape(-1, x_BxTxE.shape[-1])  # flat for the same reason as `_project`
        return ((jax.nn.silu(x @ gate_ExF) * (x @ up_ExF)) @ down_FxE).reshape(x_BxTxE.shape)


class Layer(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.mlp = FeedForward(config, rngs)

    def __call__(self, x, angles, mask, cache, start, keep_BxQ=None):
        """With `keep_BxQ`, only those positions go on: keys and values come from all, queries and the rest from these."""
        normed = self.attention_norm(x)
        asking, angles_q = normed, angles
        if keep_BxQ is not None:
            take = lambda a: jnp.take_along_axis(a, keep_BxQ[:, :, None], axis=1)
            x, asking, mask = take(x), take(normed), take(mask)
            angles_q = tuple(take(a) for a in angles)
        mixed, cache = self.attention(asking, normed, angles_q, angles, mask, cache, start)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), cache


class Decoder(nnx.Module):
    """Tokens to final hidden states; `head_V` turns those into logits (see `log_probs.py`)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.embedding = _normal(rngs, (config.vocab_size, config.embed_dim), config.embed_dim)
        self.layers = nnx.List([Layer(config, rngs) for _ in range(config.num_layers)])
        self.final_norm = RMSNorm(config.embed_dim, config.norm_eps)
        if not config.tie_embeddings:
            self.head = _normal(rngs, (config.embed_dim, config.vocab_size), config.embed_dim)

    def __call__(self, tokens_BxT, positions_BxT, mask_BxTxS, caches=None, start_B=None, keep_BxQ=None):
        """Hidden states `[B, T, E]`, or `[B, Q, E]` at the positions `keep_BxQ`: the last layer then skips the others, which
        halves the work of a two-layer model whose answers are short."""
        c = self.config
        x = self.embedding[...][tokens_BxT].astype(c.compute_dtype)
        angles = rotary_angles(positions_BxT, c.head_dim, c.rope_theta, c.rope_scaling)
        new_caches = []
        for index, layer in enumerate(self.layers):
            call = nnx.remat(Layer.__call__) if c.remat and caches is None else Layer.__call__
            keep = keep_BxQ if index == c.num_layers - 1 else None
            x, cache = call(layer, x, angles, mask_BxTxS, None if caches is None else caches[index], start_B, keep)
            new_caches.append(cache)
        return self.final_norm(x), (None if caches is None else tuple(new_caches))

    def head_ExV(self) -> Array:
        """The vocabulary head `[E, V]`."""
        return self.embedding[...].T if self.config.tie_embeddings else self.head[...]


def build(config: DecoderConfig, seed_or_key) -> tuple[nnx.GraphDef, Any]:
    """Returns the static graph and freshly initialised fp32 parameters (a pytree)."""
    key = jax.random.key(seed_or_key) if isinstance(seed_or_key, int) else seed_or_key
    create = jax.jit(lambda key: nnx.split(Decoder(config, nnx.Rngs(params=key)))[1])
    return graph(config), create(key)


def graph(config: DecoderConfig) -> nnx.GraphDef:
    """The static graph alone, without allocating parameters."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(params=jax.random.key(0)))))[0]


def hidden_states(
    graphdef, params, tokens_RxL, positions_RxL, segment_ids_RxL, keep_RxQ=None
) -> tuple[Array, Array]:
    """Final hidden states `[R, L, E]` (`[R, Q, E]` at `keep_RxQ`) and the head `[E, V]`: causal within each non-zero segment."""
    model = nnx.merge(graphdef, params)
    length = tokens_RxL.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    same = segment_ids_RxL[:, :, None] == segment_ids_RxL[:, None, :]
    mask = causal[None] & same & (segment_ids_RxL > 0)[:, None, :]
    hidden, _ = model(tokens_RxL, positions_RxL, mask, keep_BxQ=keep_RxQ)
    return hidden, model.head_ExV()


def empty_cache(config: DecoderConfig, batch: int, slots: int, dtype=None) -> tuple[LayerCache, ...]:
    """Zeroed key/value caches, one `LayerCache` a layer."""
    shape = (batch, config.num_kv_heads, slots, config.head_dim)
    dtype = dtype or config.compute_dtype
    return tuple(LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.num_layers))


def cached_hidden_states(graphdef, params, tokens_BxT, length_B, caches, keep_BxQ=None):
    """Runs T new tokens of each row behind the `length_B` tokens that its cache holds.

    Rows may be ragged: tokens past a row's true count write slots that nothing attends to, since a query at position p
    sees slots 0…p only, and those slots are overwritten by the row's next tokens.

    Returns hidden states `[B, T, E]` (`[B, Q, E]` at `keep_BxQ`), the head `[E, V]` and the caches.
    """
    model = nnx.merge(graphdef, params)
    positions = length_B[:, None] + jnp.arange(tokens_BxT.shape[1])[None]
    slots = caches[0].key.shape[2]
    mask = jnp.arange(slots)[None, None, :] <= positions[:, :, None]
    hidden, caches = model(tokens_BxT, positions, mask, caches, length_B, keep_BxQ)
    return hidden, model.head_ExV(), caches
