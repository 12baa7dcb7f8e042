"""One decoder for Llama 3.x, Qwen2.5 and Qwen3, and for tiny models trained from scratch.

Pre-norm transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU. Switches: `qkv_bias` (Qwen2.5), `qk_norm`
(Qwen3), `rope_scaling` (Llama 3.1), `tie_embeddings`. It is written with `flax.nnx`, and `build` splits it into a static graph and
a parameter pytree. Policy, old policy, reference and process reward model are therefore pytrees for the same pure functions.

Layers are a list or, with `scan_layers`, one module whose stacked parameters have a leading axis, so that a deep model compiles
one layer and not twenty-eight. Decoding with a cache needs the list (`unstack`).

On a mesh, rows of activations are split over `data` and `fsdp`. A pass over one new token a row gathers the rows instead and
leaves the weights where they are, because one token a row is much less data than the weights.

Shape suffixes: B rows, T new tokens, C cache slots, D embedding, N query heads, K key/value heads, G = N / K, H head width,
F hidden width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from stepreward.models.adapters import Adapted, LoraConfig, add_adapter, low_rank, wide_product
from stepreward.models.attention import (
    cached_attention,
    causal_attention,
    piece_attention,
    resolve,
    selected_attention,
    tail_attention,
)
from stepreward.models.cache import LayerCache, Piece, Tail
from stepreward.models.norm import RMSNorm
from stepreward.models.rotary import RopeScaling, apply_rotary, rotary_angles
from stepreward.models.vision import VisionConfig, VisionInputs, VisionTower, merge_image_embeddings
from stepreward.parallel import DECODING, constrain, parameter_sharding

Array = jax.Array

REMAT = ("none", "layer", "dots")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and switches of a decoder.

    Attributes:
      rope_scaling: the frequency scaling of Llama 3.1, or None.
      mrope_sections: how many channel pairs rotate by time, row and column (M-RoPE, Qwen2.5-VL), or None.
      vision: the config of the vision tower, or None.
      compute_dtype: dtype of activations; weights are cast to it at each use.
      param_dtype: dtype of the trained parameters; by default float32 master weights.
      scan_layers: whether the layers' parameters are stacked, see the module's docstring.
      remat: what the backward pass recomputes: "none", "layer" (all of a layer) or "dots" (all but its matrix products).
      attention: the implementation of attention, see `attention.py`.
      packed_rows: whether a row may hold several segments. False promises that none does, so that cuDNN's kernel needs no mask.
      causal: whether a token attends to itself and earlier tokens only. False also attends to the later tokens of its segment; such a
        model reads whole rows, and cannot decode.
      lora: the config of the adapters, or None.
      mesh: the device mesh that activations are split over, or None.

    Raises:
      ValueError: if heads, channels, M-RoPE sections or the vision tower do not fit together, or `remat` is unknown.
    """

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
    mrope_sections: tuple[int, int, int] | None = None
    vision: VisionConfig | None = None
    compute_dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    scan_layers: bool = False
    remat: str = "none"
    attention: str = "auto"
    packed_rows: bool = True
    causal: bool = True
    lora: LoraConfig | None = None
    mesh: Mesh | None = None

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}.")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: rotary positions rotate pairs of channels.")
        if self.mrope_sections is not None and sum(self.mrope_sections) * 2 != self.head_dim:
            raise ValueError(f"mrope_sections={self.mrope_sections} must add up to head_dim / 2 = {self.head_dim // 2}.")
        if self.vision is not None and (self.vision.out_dim != self.embed_dim or self.mrope_sections is None):
            raise ValueError(
                f"a decoder with a vision tower needs mrope_sections (got {self.mrope_sections}) and embed_dim={self.embed_dim} equal to "
                f"the tower's out_dim={self.vision.out_dim}."
            )
        if self.remat not in REMAT:
            raise ValueError(f"model.remat={self.remat!r} is not one of {', '.join(REMAT)}.")


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, dtype) -> nnx.Param:
    return nnx.Param((jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5).astype(dtype))


def _apply(module: nnx.Module, name: str, x_MxI: Array, lora: LoraConfig | None, dropout_key) -> Array:
    """x · W, plus the output of W's adapter if it has one. It is one flat matrix product, because on a CPU its weight gradient is
    several times faster than that of a three-dimensional contraction."""
    weight = getattr(module, name)[...].astype(x_MxI.dtype).reshape(x_MxI.shape[-1], -1)
    if lora is None or name not in lora.targets:
        return x_MxI @ weight
    return (wide_product(x_MxI, weight) + low_rank(module, name, x_MxI, lora, dropout_key)).astype(x_MxI.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions; the caller's `attend` computes the attention itself."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        c = self.config = config
        query, kv = (c.num_heads, c.head_dim), (c.num_kv_heads, c.head_dim)
        self.query = _normal(rngs, (c.embed_dim, *query), c.embed_dim, c.param_dtype)
        self.key = _normal(rngs, (c.embed_dim, *kv), c.embed_dim, c.param_dtype)
        self.value = _normal(rngs, (c.embed_dim, *kv), c.embed_dim, c.param_dtype)
        self.output = _normal(rngs, (*query, c.embed_dim), c.num_heads * c.head_dim * 2 * c.num_layers, c.param_dtype)
        if c.qkv_bias:
            self.query_bias = nnx.Param(jnp.zeros(query, c.param_dtype))
            self.key_bias = nnx.Param(jnp.zeros(kv, c.param_dtype))
            self.value_bias = nnx.Param(jnp.zeros(kv, c.param_dtype))
        if c.qk_norm:
            self.query_norm = RMSNorm(c.head_dim, c.norm_eps, c.param_dtype)
            self.key_norm = RMSNorm(c.head_dim, c.norm_eps, c.param_dtype)
        for name, shape in (("query", query), ("key", kv), ("value", kv)):
            add_adapter(self, name, (c.embed_dim,), shape, c.lora, rngs)
        add_adapter(self, "output", query, (c.embed_dim,), c.lora, rngs)

    def __call__(
        self, x_BxQxD, x_BxTxD, angles_q, angles, attend, cache: LayerCache | Piece | Tail | None, start_B: Array | None, dropout_key
    ):
        c = self.config
        query = self._heads("query", x_BxQxD, dropout_key)
        key, value = (self._heads(name, x_BxTxD, dropout_key) for name in ("key", "value"))
        if c.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = apply_rotary(query, angles_q), apply_rotary(key, angles)
        if cache is not None:
            cache, key, value = cache.write(key, value, start_B)
        mixed = attend(query, key, value)
        batch, _, time, _ = mixed.shape
        mixed = mixed.transpose(0, 2, 1, 3).reshape(batch * time, c.num_heads * c.head_dim)
        if _one_token(c, time):
            mixed = constrain(mixed, c.mesh)
        out = _apply(self, "output", mixed, c.lora, dropout_key)
        return out.reshape(batch, time, c.embed_dim), cache

    def _heads(self, name: str, x_BxTxD: Array, dropout_key) -> Array:
        """x · W + b as `[B, N, T, H]`."""
        c = self.config
        batch, time, width = x_BxTxD.shape
        _, heads, head_dim = getattr(self, name).shape
        if _one_token(c, time):  # a flat product would gather the weight's heads, which are split over devices
            x_BxD, weight = x_BxTxD[:, 0], getattr(self, name)[...].astype(x_BxTxD.dtype)
            if c.lora is None or name not in c.lora.targets:
                out = jnp.einsum("be,enh->bnh", x_BxD, weight)
            else:
                wide = jnp.einsum("be,enh->bnh", x_BxD, weight, preferred_element_type=jnp.float32)
                out = (wide + low_rank(self, name, x_BxD, c.lora, dropout_key, flat=False)).astype(x_BxTxD.dtype)
            out = constrain(out, c.mesh, None, "heads" if name == "query" else "kv_heads", "head_dim", table=DECODING)[:, :, None]
        else:
            out = _apply(self, name, x_BxTxD.reshape(batch * time, width), c.lora, dropout_key)
            out = out.reshape(batch, time, heads, head_dim).transpose(0, 2, 1, 3)
        if c.qkv_bias:
            out += getattr(self, f"{name}_bias")[...].astype(out.dtype)[None, :, None]
        return constrain(out, c.mesh, "rows", "heads" if name == "query" else "kv_heads")


def _one_token(c: DecoderConfig, time: int) -> bool:
    """Whether the pass has one token a row on a mesh: then the rows are sent to the weights, not the weights to the rows."""
    return c.mesh is not None and time == 1


class FeedForward(nnx.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        c = self.config = config
        self.gate = _normal(rngs, (c.embed_dim, c.mlp_dim), c.embed_dim, c.param_dtype)
        self.up = _normal(rngs, (c.embed_dim, c.mlp_dim), c.embed_dim, c.param_dtype)
        self.down = _normal(rngs, (c.mlp_dim, c.embed_dim), c.mlp_dim * 2 * c.num_layers, c.param_dtype)
        for name in ("gate", "up"):
            add_adapter(self, name, (c.embed_dim,), (c.mlp_dim,), c.lora, rngs)
        add_adapter(self, "down", (c.mlp_dim,), (c.embed_dim,), c.lora, rngs)

    def __call__(self, x_BxTxD: Array, dropout_key=None) -> Array:
        apply = partial(_apply, lora=self.config.lora, dropout_key=dropout_key)
        x = x_BxTxD.reshape(-1, x_BxTxD.shape[-1])  # flat for the same reason as `_apply`
        return apply(self, "down", jax.nn.silu(apply(self, "gate", x)) * apply(self, "up", x)).reshape(x_BxTxD.shape)


class Layer(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.attention_norm = RMSNorm(config.embed_dim, config.norm_eps, config.param_dtype)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.embed_dim, config.norm_eps, config.param_dtype)
        self.mlp = FeedForward(config, rngs)

    def __call__(self, x, angles, attend, cache, start, dropout_key, keep_BxQ=None):
        """Runs the layer. With `keep_BxQ`, it returns only those positions: keys and values come from all positions, while
        queries and the feed-forward part are computed for the kept ones alone."""
        normed = self.attention_norm(x)
        asking, angles_q = normed, angles
        if keep_BxQ is not None:
            take = lambda a: jnp.take_along_axis(a, keep_BxQ[:, :, None], axis=1)
            x, asking = take(x), take(normed)
            angles_q = tuple(take(a) for a in angles)
        mixed, cache = self.attention(asking, normed, angles_q, angles, attend, cache, start, dropout_key)
        x = _place(self.config, x + mixed)
        return _place(self.config, x + self.mlp(self.mlp_norm(x), dropout_key)), cache


def _place(c: DecoderConfig, x_BxTxD: Array) -> Array:
    """Constrains the residual stream: rows are split, or gathered in a pass of one token a row."""
    return constrain(x_BxTxD, c.mesh) if _one_token(c, x_BxTxD.shape[1]) else constrain(x_BxTxD, c.mesh, "rows")


class Decoder(nnx.Module):
    """Maps tokens to final hidden states; `head_ExV` is the matrix that maps those to logits (see `log_probs.py`)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        c = self.config = config
        self.embedding = _normal(rngs, (c.vocab_size, c.embed_dim), c.embed_dim, c.param_dtype)
        if c.scan_layers:
            make = nnx.vmap(lambda rngs: Layer(c, rngs), in_axes=0, out_axes=0)
            self.layers = nnx.split_rngs(splits=c.num_layers)(make)(rngs)
        else:
            self.layers = nnx.List([Layer(c, rngs) for _ in range(c.num_layers)])
        self.final_norm = RMSNorm(c.embed_dim, c.norm_eps, c.param_dtype)
        if not c.tie_embeddings:
            self.head = _normal(rngs, (c.embed_dim, c.vocab_size), c.embed_dim, c.param_dtype)
        if c.vision is not None:
            self.vision = VisionTower(c.vision, rngs, c.param_dtype)

    def __call__(
        self, tokens_BxT, positions_BxT, attend, attend_kept, caches=None, start_B=None, keep_BxQ=None, dropout_key=None,
        vision=None,
    ):  # fmt: skip
        """Returns hidden states `[B, T, D]`, or `[B, Q, D]` at the positions `keep_BxQ`, and the new caches.

        With `keep_BxQ`, the last of listed layers skips the other positions, which halves the work of a two-layer model whose
        answers are short.

        Args:
          attend: `(query, key, value) -> [B, N, T, H]`.
          attend_kept: the same for the queries at `keep_BxQ`.
          vision: `VisionInputs` of the rows, or None.

        Raises:
          ValueError: a model without a vision tower gets images.
        """
        c = self.config
        x, positions = _place(c, self.embedding[...][tokens_BxT].astype(c.compute_dtype)), positions_BxT
        if vision is not None:
            x, positions = self._with_images(x, vision)
        angles = rotary_angles(positions, c.head_dim, c.rope_theta, c.rope_scaling, c.mrope_sections)
        if c.scan_layers:
            x, caches = self._scan(x, angles, attend, caches, start_B, dropout_key)
            if keep_BxQ is not None:
                x = jnp.take_along_axis(x, keep_BxQ[:, :, None], axis=1)
            return self.final_norm(x), caches
        new_caches = []
        for index, layer in enumerate(self.layers):
            last = index == c.num_layers - 1 and keep_BxQ is not None
            graphdef, state = nnx.split(layer)
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
            run = partial(_run_layer, graphdef, angles, attend_kept if last else attend, start_B, keep_BxQ if last else None)
            if caches is None:
                run = _remat(run, c.remat)
            x, cache = run(state, x, None if caches is None else caches[index], key)
            new_caches.append(cache)
        return self.final_norm(x), (None if caches is None else tuple(new_caches))

    def _scan(self, x, angles, attend, caches, start_B, dropout_key):
        """Runs the same layer again and again. The caches of all layers are carried along, so that new slots are written where they lie."""
        c = self.config
        graphdef, stacked = nnx.split(self.layers)
        run = _remat(partial(_run_layer, graphdef, angles, attend, start_B, None), c.remat if caches is None else "none")

        def body(carry, layer):
            x, caches = carry
            index, state = layer
            cache = None if caches is None else caches._replace(layer=index)
            x, cache = run(state, x, cache, None if dropout_key is None else jax.random.fold_in(dropout_key, index))
            return (x, None if caches is None else cache._replace(layer=None)), None

        return jax.lax.scan(body, (x, caches), (jnp.arange(c.num_layers), stacked))[0]

    def _with_images(self, x_BxTxD: Array, vision: VisionInputs) -> tuple[Array, Array]:
        """Replaces the embeddings of placeholders by those of the images; also returns the rotary positions `[3, B, T]`."""
        if self.config.vision is None:
            raise ValueError("the model has no vision tower but got images: omit them, and placeholders are read as ordinary tokens.")
        embeddings = self.vision(vision, dtype=x_BxTxD.dtype, remat=self.config.remat != "none", mesh=self.config.mesh)
        merged = merge_image_embeddings(x_BxTxD, vision.source, embeddings)
        return _place(self.config, merged), jnp.moveaxis(vision.positions, 1, 0)

    def head_DxV(self) -> Array:
        """The vocabulary head `[D, V]`."""
        return self.embedding[...].T if self.config.tie_embeddings else self.head[...]


def _run_layer(graphdef, angles, attend, start_B, keep_BxQ, state, x, cache, dropout_key):
    return nnx.merge(graphdef, state)(x, angles, attend, cache, start_B, dropout_key, keep_BxQ)


def _remat(run, kind: str):
    if kind == "none":
        return run
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if kind == "dots" else None
    return jax.checkpoint(run, policy=policy)


# --- Pure functions of parameters ---


def build(config: DecoderConfig, seed_or_key) -> tuple[nnx.GraphDef, Any]:
    """Returns the static graph and freshly initialised parameters (a pytree), sharded over the config's mesh if it has one."""
    key = jax.random.key(seed_or_key) if isinstance(seed_or_key, int) else seed_or_key
    create = partial(initial_params, config)
    shardings = None if config.mesh is None else parameter_sharding(jax.eval_shape(create, key), config.mesh)
    return graph(config), jax.jit(create, out_shardings=shardings)(key)


def initial_params(config: DecoderConfig, key: jax.Array):
    """Freshly initialised parameters, including adapters if the config asks for them."""
    return nnx.split(Decoder(config, nnx.Rngs(params=key)))[1]


def graph(config: DecoderConfig) -> nnx.GraphDef:
    """The static graph alone, without allocating parameters."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(params=jax.random.key(0)))))[0]


def abstract_params(config: DecoderConfig):
    """Shapes and dtypes of the parameters, without allocating them."""
    return jax.eval_shape(partial(initial_params, config), jax.random.key(0))


def unstack(params, num_layers: int):
    """Converts the parameters of stacked layers to those of a list of layers; listed layers are returned unchanged."""
    flat = []
    for path, leaf in nnx.to_flat_state(params):
        if path[0] == "layers" and not isinstance(path[1], int):
            flat += [(("layers", i, *path[1:]), leaf.replace(leaf[...][i])) for i in range(num_layers)]
        else:
            flat.append((path, leaf))
    return nnx.from_flat_state(flat)


def in_compute_dtype(config: DecoderConfig, params):
    """Casts weights to the compute dtype once; results do not change, because every pass casts them anyway.

    The scales of norms are not cast, since norms read them in float32: around 1, bfloat16 would lose a change of less than 0.004.
    """

    def cast(path, x):
        scale = any(getattr(part, "key", None) == "scale" for part in path)
        return x if scale else x.astype(config.compute_dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def merge(graphdef, params) -> Decoder:
    """The model of a graph with its parameters. These are one tree, a pair `(base, adapters)` for a graph with adapters, or
    `Adapted` for a graph without."""
    if isinstance(params, Adapted):
        return nnx.merge(graph(dataclasses.replace(config_of(graphdef), lora=params.lora)), params.base, params.adapters)
    return nnx.merge(graphdef, *params) if isinstance(params, tuple) else nnx.merge(graphdef, params)


def config_of(graphdef) -> DecoderConfig:
    """The config that a graph was made from."""
    return next(attribute.value for name, attribute in graphdef.attributes if name == "config")


def attention_of(c: DecoderConfig, length: int) -> str:
    """The attention implementation that this decoder uses for rows of `length` tokens on its platform (see `attention.resolve`)."""
    platform = jax.default_backend() if c.mesh is None else c.mesh.devices.flat[0].platform
    return resolve(c.attention, platform, length=length, head_dim=c.head_dim, dtype=c.compute_dtype)


def hidden_states(
    graphdef, params, tokens_RxL, positions_RxL, segment_ids_RxL, keep_RxQ=None, dropout_key=None, vision=None
) -> tuple[Array, Array]:
    """Final hidden states `[R, L, D]` (`[R, Q, D]` at `keep_RxQ`) and the head `[D, V]`, within each non-zero segment; causal unless the
    config says otherwise.

    Args:
      graphdef: the static graph, see `build`.
      params: parameters, or a pair `(base, adapters)`.
      tokens_RxL, positions_RxL, segment_ids_RxL: int32 rows as in `Batch`.
      keep_RxQ: int32, positions to return; None returns all.
      dropout_key: PRNG key of the adapters' dropout in training; None applies no dropout.
      vision: `VisionInputs` of the rows, whose positions replace `positions_RxL`. None reads image placeholders as ordinary
        tokens, which any model can do.
    """
    model, c = merge(graphdef, params), config_of(graphdef)
    kind = attention_of(c, tokens_RxL.shape[1])
    rows = dict(segment_ids_BxT=segment_ids_RxL, causal=c.causal)
    attend = partial(causal_attention, **rows, implementation=kind, mesh=c.mesh, packed=c.packed_rows)
    attend_kept = partial(selected_attention, **rows, at_BxQ=keep_RxQ)
    hidden, _ = model(tokens_RxL, positions_RxL, attend, attend_kept, keep_BxQ=keep_RxQ, dropout_key=dropout_key, vision=vision)
    return hidden, model.head_DxV()


def cached_hidden_states(graphdef, params, tokens_BxT, length_B, caches, keep_BxQ=None, vision=None, offset_B=None, tiled: bool = False):
    """Runs T new tokens of each row after the `length_B` tokens that its cache holds.

    Rows may be ragged. Tokens past a row's true count write to slots that nothing attends to, since a query at position p
    attends to slots 0…p only, and the row's next tokens overwrite those slots.

    Args:
      graphdef, params: as in `hidden_states`.
      tokens_BxT: int32, the new tokens.
      length_B: int32, tokens in each row's cache.
      caches: one `LayerCache` a layer, or that of stacked layers.
      keep_BxQ: int32, which of the T tokens to return; None returns all.
      vision: `VisionInputs` of the new tokens, whose rotary positions start at `length_B + offset_B`. None: they are text.
      offset_B: int32, the rotary position of a text token minus its cache slot: the sum of `VisionInputs.offset` over the cached
        tokens. None means 0.
      tiled: how attention reads the cache, see `attention.cached_attention`.

    Returns:
      Hidden states `[B, T, D]` (`[B, Q, D]` at `keep_BxQ`), the head `[D, V]` and the new caches.

    Raises:
      ValueError: the model is not causal.
    """
    if not config_of(graphdef).causal:
        raise ValueError("a model that attends to later tokens cannot decode with a cache.")
    model = merge(graphdef, params)
    positions = length_B[:, None] + jnp.arange(tokens_BxT.shape[1])[None]
    kept = None if keep_BxQ is None else jnp.take_along_axis(positions, keep_BxQ, axis=1)
    attend, attend_kept = (partial(cached_attention, positions_BxT=p, tiled=tiled) for p in (positions, kept))
    turned = positions if offset_B is None else positions + offset_B[:, None]
    hidden, caches = model(tokens_BxT, turned, attend, attend_kept, caches, length_B, keep_BxQ, vision=vision)
    return hidden, model.head_DxV(), caches


def decoded_hidden_states(graphdef, params, token_B, length_B, index, tails, *, tiled: bool = False):
    """Runs one token of each row, the `index`-th behind the `length_B` tokens that its cache holds.

    Args:
      graphdef, params: of listed layers; otherwise as in `hidden_states`.
      token_B: int32.
      tails: one `Tail` a layer, of which the slots before `index` are filled.
      tiled: how attention reads the caches, see `attention.cached_attention`.

    Returns:
      Hidden states `[B, D]`, and the new tails.
    """
    model = merge(graphdef, params)
    attend = partial(tail_attention, length_B=length_B, index=index, tiled=tiled)
    hidden, tails = model(token_B[:, None], length_B[:, None] + index, attend, None, tails, index)
    return hidden[:, 0], tails


def piece_hidden_states(graphdef, params, tokens_RxT, length_R, rows_R, caches, keep_RxQ, *, tiled: bool = False):
    """`cached_hidden_states` for the rows `rows` of caches with more rows. Returns hidden states `[R, Q, D]` and the new caches.

    Args:
      graphdef, params: of listed layers; otherwise as in `hidden_states`.
      tokens_RxT, length_R: of those rows.
      rows_R: int32, their places in the caches; a row out of bounds is padding.
      keep_RxQ: int32, which of the T tokens to return.
      tiled: how attention reads the caches, see `attention.cached_attention`.
    """
    model = merge(graphdef, params)
    positions = length_R[:, None] + jnp.arange(tokens_RxT.shape[1])[None]
    kept = jnp.take_along_axis(positions, keep_RxQ, axis=1)
    attend, attend_kept = (partial(piece_attention, rows_R=rows_R, positions_RxT=p, tiled=tiled) for p in (positions, kept))
    pieces = tuple(Piece(cache, rows_R) for cache in caches)
    hidden, pieces = model(tokens_RxT, positions, attend, attend_kept, pieces, length_R, keep_RxQ)
    return hidden, tuple(piece.cache for piece in pieces)
