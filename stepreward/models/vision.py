"""The vision tower of Qwen2.5-VL: turns patches of images into embeddings that replace those of placeholder tokens.

It is a transformer encoder over patches with RMSNorm, rotary positions of height and width, and a gated MLP. Most layers attend
within a window of the image, a few (`full_attention_layers`) within the whole image. At the end each square of `merge × merge`
patches becomes one embedding.

Shapes are static. The patches of a row's images are placed in G blocks of K slots. A window never spans two blocks, and small
windows share a block (`vision_inputs.lay_out`). Attention within windows is then masked attention within blocks, and one compiled
shape serves every set of images that fits.

Shape suffixes: B rows, G blocks, K slots of a block, P = G·K, U values of a patch, D embedding, N heads, H head width, F hidden
width, O width of the decoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jax.sharding import Mesh

from stepreward.models.norm import RMSNorm
from stepreward.models.rotary import apply_rotary
from stepreward.parallel import constrain

Array = jax.Array
_MASKED = -1e30
_EPS = 1e-6  # epsilon of every norm in the tower


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Shape of a vision tower, and the token that its embeddings replace.

    Attributes:
      depth, embed_dim, num_heads, mlp_dim: layers, width, attention heads and hidden MLP width of the encoder.
      out_dim: width of the decoder.
      full_attention_layers: indices of layers that attend within a whole image; the others attend within windows.
      patch_size: side of a patch, in pixels.
      temporal_patch: frames of a patch; a still image is repeated.
      merge: side, in patches, of the square that becomes one embedding.
      window_size: side of a window, in pixels.
      channels: colour channels.
      rope_theta: base of the rotary frequencies.
      image_token_id: id of the placeholder token.

    Raises:
      ValueError: if the sizes do not fit together.
    """

    depth: int
    embed_dim: int
    num_heads: int
    mlp_dim: int
    out_dim: int
    full_attention_layers: tuple[int, ...]
    patch_size: int = 14
    temporal_patch: int = 2
    merge: int = 2
    window_size: int = 112
    channels: int = 3
    rope_theta: float = 10_000.0
    image_token_id: int = 151_655

    def __post_init__(self):
        if self.embed_dim % (4 * self.num_heads):
            raise ValueError(
                f"vision embed_dim={self.embed_dim} must be a multiple of 4 × num_heads={self.num_heads}: rotary positions split a head's "
                "channel pairs between height and width."
            )
        if self.window_size // (self.patch_size * self.merge) < 1:
            raise ValueError(f"vision window_size={self.window_size} must be at least {self.merge} patches of {self.patch_size} pixels.")
        if any(not 0 <= layer < self.depth for layer in self.full_attention_layers):
            raise ValueError(f"vision full_attention_layers={self.full_attention_layers} must be at least 0 and below depth={self.depth}.")

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def patch_dim(self) -> int:
        """U: channels × frames × height × width of a patch."""
        return self.channels * self.temporal_patch * self.patch_size**2

    @property
    def window_side(self) -> int:
        """Side of a window, in merged squares."""
        return self.window_size // self.merge // self.patch_size

    @property
    def window_patches(self) -> int:
        """Number of patches in a full window."""
        return (self.window_side * self.merge) ** 2


@struct.dataclass
class VisionInputs:
    """The images of a batch of rows, laid out by `vision_inputs.vision_inputs`; B rows of T tokens.

    Attributes:
      patches: float32 `[B, G, K, U]`, normalised pixels; 0 at padding.
      window_id: int32 `[B, G, K]`, the same for all patches of a window, unique within a block; 0 at padding.
      image_id: int32 `[B, G, K]`, the same for all patches of an image, unique within a row; 0 at padding.
      place: int32 `[B, G, K, 2]`, row and column of a patch in its image.
      source: int32 `[B, T]`, at a placeholder token the index of its embedding among the row's G·K / merge²; −1 elsewhere.
      positions: int32 `[B, 3, T]`, rotary positions (time, height, width) of the tokens.
      offset: int32 `[B]`, at most 0: after the row's last image, the text token with index t has the rotary position
        start + t + offset.
    """

    patches: Array
    window_id: Array
    image_id: Array
    place: Array
    source: Array
    positions: Array
    offset: Array


def _weight(rngs: nnx.Rngs, dtype, shape: tuple[int, ...], fan_in: int) -> nnx.Param:
    return nnx.Param((jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5).astype(dtype))


def _bias(dtype, *shape: int) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape, dtype))


def _linear(x: Array, weight: nnx.Param, bias: nnx.Param, inputs: int = 1) -> Array:
    """x · W + b as one flat matrix product; the weight's first `inputs` axes are contracted, the others are kept."""
    weight, bias = weight[...].astype(x.dtype), bias[...].astype(x.dtype)
    width = int(np.prod(weight.shape[:inputs]))
    lead = x.shape[: x.ndim - inputs]
    out = x.reshape(-1, width) @ weight.reshape(width, -1) + bias.reshape(-1)
    return out.reshape(*lead, *weight.shape[inputs:])


class VisionAttention(nnx.Module):
    """Attention of patches within their windows or within their images."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs, dtype):
        c = self.config = config
        self.qkv = _weight(rngs, dtype, (c.embed_dim, 3, c.num_heads, c.head_dim), c.embed_dim)  # query, key and value
        self.qkv_bias = _bias(dtype, 3, c.num_heads, c.head_dim)
        self.output = _weight(rngs, dtype, (c.num_heads, c.head_dim, c.embed_dim), c.embed_dim * 2 * c.depth)
        self.output_bias = _bias(dtype, c.embed_dim)

    def __call__(self, x_BxPxD: Array, inputs: VisionInputs, angles: tuple[Array, Array], whole: Array) -> Array:
        query, key, value = _linear(x_BxPxD, self.qkv, self.qkv_bias).transpose(2, 0, 3, 1, 4)
        query, key = apply_rotary(query, angles), apply_rotary(key, angles)
        image_id_Bx1xP = inputs.image_id.reshape(x_BxPxD.shape[0], 1, -1)
        in_images, in_windows = (partial(_grouped_attention, ids) for ids in (image_id_Bx1xP, inputs.window_id))
        mixed = jax.lax.cond(whole, in_images, in_windows, query, key, value)
        return _linear(mixed, self.output, self.output_bias, inputs=2)


def _grouped_attention(ids_BxGxK: Array, query_BxNxPxH: Array, key_BxNxPxH: Array, value_BxNxPxH: Array) -> Array:
    """Attention among equal ids within each of the G groups that P is split into, `[B, P, N, H]`; softmax in fp32."""
    rows, heads, patches, width = query_BxNxPxH.shape
    query, key, value = (x.reshape(rows, heads, *ids_BxGxK.shape[1:], width) for x in (query_BxNxPxH, key_BxNxPxH, value_BxNxPxH))
    scores = jnp.einsum("bngkh,bnglh->bngkl", query, key).astype(jnp.float32) * width**-0.5
    scores = jnp.where((ids_BxGxK[..., :, None] == ids_BxGxK[..., None, :])[:, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    return jnp.einsum("bngkl,bnglh->bgknh", weights, value).reshape(rows, patches, heads, width)


class VisionMLP(nnx.Module):
    """down(silu(gate(x)) · up(x)), each with a bias."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs, dtype):
        c = config
        self.gate, self.gate_bias = _weight(rngs, dtype, (c.embed_dim, c.mlp_dim), c.embed_dim), _bias(dtype, c.mlp_dim)
        self.up, self.up_bias = _weight(rngs, dtype, (c.embed_dim, c.mlp_dim), c.embed_dim), _bias(dtype, c.mlp_dim)
        self.down = _weight(rngs, dtype, (c.mlp_dim, c.embed_dim), c.mlp_dim * 2 * c.depth)
        self.down_bias = _bias(dtype, c.embed_dim)

    def __call__(self, x: Array) -> Array:
        gated = jax.nn.silu(_linear(x, self.gate, self.gate_bias)) * _linear(x, self.up, self.up_bias)
        return _linear(gated, self.down, self.down_bias)


class VisionLayer(nnx.Module):
    def __init__(self, config: VisionConfig, rngs: nnx.Rngs, dtype):
        self.attention_norm = RMSNorm(config.embed_dim, _EPS, dtype)
        self.attention = VisionAttention(config, rngs, dtype)
        self.mlp_norm = RMSNorm(config.embed_dim, _EPS, dtype)
        self.mlp = VisionMLP(config, rngs, dtype)

    def __call__(self, x: Array, inputs: VisionInputs, angles: tuple[Array, Array], whole: Array) -> Array:
        x = x + self.attention(self.attention_norm(x), inputs, angles, whole)
        return x + self.mlp(self.mlp_norm(x))


class PatchMerger(nnx.Module):
    """Joins the patches of a square, which are in consecutive slots, into one embedding of the decoder's width."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs, dtype):
        c = config
        self.width = c.embed_dim * c.merge**2
        self.norm = RMSNorm(c.embed_dim, _EPS, dtype)
        self.up, self.up_bias = _weight(rngs, dtype, (self.width, self.width), self.width), _bias(dtype, self.width)
        self.down, self.down_bias = _weight(rngs, dtype, (self.width, c.out_dim), self.width), _bias(dtype, c.out_dim)

    def __call__(self, x_BxPxD: Array) -> Array:
        x = self.norm(x_BxPxD).reshape(x_BxPxD.shape[0], -1, self.width)
        return _linear(jax.nn.gelu(_linear(x, self.up, self.up_bias), approximate=False), self.down, self.down_bias)


class VisionTower(nnx.Module):
    """Turns patches in blocks into embeddings, one for each `merge²` consecutive slots. The layers are stacked: their parameters
    have a leading layer axis."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs, dtype=jnp.float32):
        c = self.config = config
        self.patch_embedding = _weight(rngs, dtype, (c.patch_dim, c.embed_dim), c.patch_dim)
        make = nnx.vmap(lambda rngs: VisionLayer(c, rngs, dtype), in_axes=0, out_axes=0)
        self.layers = nnx.split_rngs(splits=c.depth)(make)(rngs)
        self.merger = PatchMerger(c, rngs, dtype)

    def __call__(self, inputs: VisionInputs, *, dtype=jnp.float32, remat: bool = False, mesh: Mesh | None = None) -> Array:
        """Returns embeddings `[B, G·K / merge², O]`, in the order of the slots; values at padding are arbitrary but finite.

        Args:
          inputs: the images of the rows, see `VisionInputs`.
          dtype: dtype of the computation.
          remat: whether the backward pass recomputes each layer instead of storing its activations.
          mesh: the device mesh that rows are split over, or None.
        """
        c = self.config
        rows, blocks, slots, _ = inputs.patches.shape
        x = inputs.patches.reshape(rows * blocks * slots, c.patch_dim).astype(dtype) @ self.patch_embedding[...].astype(dtype)
        x = constrain(x.reshape(rows, blocks * slots, c.embed_dim), mesh, "rows")
        angles = place_angles(inputs.place.reshape(rows, blocks * slots, 2), c.head_dim, c.rope_theta)
        graphdef, stacked = nnx.split(self.layers)

        def layer(x, state_and_whole):
            state, whole = state_and_whole
            return constrain(nnx.merge(graphdef, state)(x, inputs, angles, whole), mesh, "rows"), None

        whole = np.isin(np.arange(c.depth), c.full_attention_layers)
        x, _ = jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, (stacked, whole))
        return constrain(self.merger(x), mesh, "rows")


def place_angles(place: Array, head_dim: int, theta: float) -> tuple[Array, Array]:
    """cos and sin of the angles, fp32 `[…, head_dim / 2]`: the first half depends on the row, the second half on the column.

    The angle is place · θ^(−4i/head_dim), i = 0 … head_dim/4 − 1. `place` is int32 `[…, 2]`.
    """
    frequency = jnp.asarray(theta ** (-np.arange(0, head_dim, 4, dtype=np.float64) / head_dim), jnp.float32)
    angle = (place[..., None].astype(jnp.float32) * frequency).reshape(*place.shape[:-1], head_dim // 2)
    return jnp.cos(angle), jnp.sin(angle)


def merge_image_embeddings(x_BxTxD: Array, source_BxT: Array, embeddings_BxPxD: Array) -> Array:
    """Replaces the embeddings of placeholder tokens by the embeddings of images.

    Args:
      x_BxTxD: the embeddings of the tokens.
      source_BxT: int32, at a placeholder the index of its image embedding in the row; −1 elsewhere. The token id is not used,
        because a model may sample the placeholder token without meaning an image.
      embeddings_BxPxD: the output of the tower.
    """
    chosen = jnp.take_along_axis(embeddings_BxPxD, jnp.maximum(source_BxT, 0)[:, :, None], axis=1)
    return jnp.where((source_BxT >= 0)[:, :, None], chosen.astype(x_BxTxD.dtype), x_BxTxD)


# --- Published models ---

# Our path, the checkpoint's name, and `the file's axes -> ours`; axes in brackets are merged. `{}` is the index of a layer. The
# paths of our parameters have no index, because our layers are stacked.
VISION_TENSORS = (
    ("vision/patch_embedding", "visual.patch_embed.proj.weight", "e c t y x -> (c t y x) e"),  # published as a convolution
    *(
        (f"vision/layers/{{}}/{path}", f"visual.blocks.{{}}.{name}", layout)
        for path, name, layout in (
            ("attention_norm/scale", "norm1.weight", "e -> e"),
            ("attention/qkv", "attn.qkv.weight", "(t n h) e -> e t n h"),
            ("attention/qkv_bias", "attn.qkv.bias", "(t n h) -> t n h"),
            ("attention/output", "attn.proj.weight", "e (n h) -> n h e"),
            ("attention/output_bias", "attn.proj.bias", "e -> e"),
            ("mlp_norm/scale", "norm2.weight", "e -> e"),
            ("mlp/gate", "mlp.gate_proj.weight", "f e -> e f"),
            ("mlp/gate_bias", "mlp.gate_proj.bias", "f -> f"),
            ("mlp/up", "mlp.up_proj.weight", "f e -> e f"),
            ("mlp/up_bias", "mlp.up_proj.bias", "f -> f"),
            ("mlp/down", "mlp.down_proj.weight", "e f -> f e"),
            ("mlp/down_bias", "mlp.down_proj.bias", "e -> e"),
        )
    ),
    ("vision/merger/norm/scale", "visual.merger.ln_q.weight", "e -> e"),
    ("vision/merger/up", "visual.merger.mlp.0.weight", "f m -> m f"),
    ("vision/merger/up_bias", "visual.merger.mlp.0.bias", "f -> f"),
    ("vision/merger/down", "visual.merger.mlp.2.weight", "o f -> f o"),
    ("vision/merger/down_bias", "visual.merger.mlp.2.bias", "o -> o"),
)
# The prefixes above are those of the published checkpoints. Recent versions of `transformers` write others: theirs -> the table's.
OTHER_PREFIXES = {"model.visual.": "visual.", "model.language_model.": "model."}


def vision_config(source: Mapping, where: str = "config.json") -> VisionConfig:
    """Reads the config of the vision tower from the `config.json` of a Qwen2.5-VL model.

    Args:
      source: the contents of the whole file.
      where: the name of the file in errors.

    Raises:
      ValueError: if there is no tower, a size is not a positive whole number, or the activation is not SiLU.
    """
    found = source.get("vision_config")
    if not isinstance(found, Mapping):
        raise ValueError(f"{where} has no vision_config: this model cannot read images.")
    if found.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{where}: vision_config.hidden_act={found['hidden_act']!r} is not supported; only silu is.")
    found = {"in_chans": found.get("in_channels", 3), **_PUBLISHED_DEFAULTS, **found}
    sizes = {ours: found.get(theirs) for ours, theirs in _SIZES.items()}
    sizes["image_token_id"] = source.get("image_token_id", 151_655)
    for ours, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{where}: vision_config.{_SIZES.get(ours, ours)}={size!r} must be a positive whole number.")
    theta = (found.get("rope_parameters") or {}).get("rope_theta", 10_000.0)
    return VisionConfig(**sizes, full_attention_layers=tuple(found["fullatt_block_indexes"]), rope_theta=float(theta))


_SIZES = {
    "depth": "depth",
    "embed_dim": "hidden_size",
    "num_heads": "num_heads",
    "mlp_dim": "intermediate_size",
    "out_dim": "out_hidden_size",
    "patch_size": "patch_size",
    "temporal_patch": "temporal_patch_size",
    "merge": "spatial_merge_size",
    "window_size": "window_size",
    "channels": "in_chans",
}
_PUBLISHED_DEFAULTS = {
    "num_heads": 16, "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2, "window_size": 112,
    "fullatt_block_indexes": (7, 15, 23, 31),
}  # fmt: skip
