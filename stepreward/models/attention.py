"""Grouped-query attention in four implementations: plain XLA, XLA in blocks, cuDNN's flash kernel and the TPU splash kernel.

All of them use the same mask: a token attends to itself and to earlier tokens of its segment; without causality (`causal=False`), to all
tokens of its segment. Padding (segment 0) attends to padding, so that no softmax is empty, and real tokens never attend to it. Scores are scaled by H^(−1/2); the softmax is in fp32.

Shape suffixes: B rows, T tokens, Q query tokens, C cache slots, N query heads, K key/value heads, G = N / K, H head width.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

Array = jax.Array

KERNELS = ("cudnn", "splash")
IMPLEMENTATIONS = ("auto", "plain", "blocked", *KERNELS)
BLOCK = 256  # queries in a block of the blocked implementations
TILE = 128  # slots of a cache that are read together, where only those in use are read
_MASKED = -1e30  # finite, so that a row without a visible key gives no NaN
_LANES = 128  # a TPU's vector width; blocks of the splash kernel are multiples of it
_NVIDIA = ("gpu", "cuda")


def resolve(implementation: str, platform: str, *, length: int, head_dim: int, dtype) -> str:
    """Chooses the implementation for "auto", and checks that a requested one can run.

    "auto" is cuDNN on an NVIDIA GPU in 16 bits, and splash on a TPU for rows of at least 256 tokens. Otherwise it is plain XLA, in
    blocks if rows are longer than 1,024 tokens.

    Args:
      implementation: one of `IMPLEMENTATIONS`.
      platform: the platform that the program will run on, as `jax.default_backend()` names it: "cpu", "gpu" (or "cuda") or "tpu".
        It may differ from the platform that traces the program.
      length: T, tokens in a row.
      head_dim: H, the head width.
      dtype: dtype of query, key and value.

    Returns:
      The name of an implementation other than "auto".

    Raises:
      ValueError: if the name is unknown, or the kernel cannot run on this platform, head width or dtype.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"model.attention={implementation!r} is unknown; choose one of {', '.join(IMPLEMENTATIONS)}.")
    missing = {"cudnn": _cudnn_misses(platform, head_dim, dtype), "splash": _splash_misses(platform)}
    if missing.get(implementation):
        raise ValueError(f"model.attention={implementation!r} {missing[implementation]}; 'auto' picks one that can run.")
    if implementation != "auto":
        return implementation
    if not missing["cudnn"]:
        return "cudnn"
    if not missing["splash"] and length >= 2 * _LANES:
        return "splash"
    return "plain" if length <= 4 * BLOCK else "blocked"


def _cudnn_misses(platform: str, head_dim: int, dtype) -> str:
    if platform not in _NVIDIA:
        return f"needs an NVIDIA GPU, but this runs on {platform}"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"needs bfloat16 or float16, but model.compute_dtype is {jnp.dtype(dtype)}"
    if head_dim % 8 or head_dim > 128:
        return f"needs a head width that is a multiple of 8 and at most 128, but this model's is {head_dim}"
    return ""


def _splash_misses(platform: str) -> str:
    return "" if platform == "tpu" else f"needs a TPU, but this runs on {platform}"


def causal_attention(
    query_BxNxTxH: Array,
    key_BxKxTxH: Array,
    value_BxKxTxH: Array,
    segment_ids_BxT: Array,
    *,
    implementation: str,
    mesh: Mesh | None = None,
    packed: bool = True,
    interpret: bool = False,
    causal: bool = True,
) -> Array:
    """softmax(q·kᵀ / √H) v over each token and the earlier tokens of its segment, `[B, N, T, H]`.

    Args:
      query_BxNxTxH, key_BxKxTxH, value_BxKxTxH: arrays of one dtype; N is a multiple of K.
      segment_ids_BxT: int32, 0 at padding. The output at padding is finite and arbitrary.
      implementation: "plain" stores the scores `[B, N, T, T]`; "blocked" stores those of 256 queries at a time and recomputes them
        in the backward pass; "cudnn" and "splash" are kernels that store none (`resolve` says where they run).
      mesh: a mesh with the axes of `parallel.make_mesh`. XLA cannot split a kernel, so kernels run on each device's own rows and
        heads. None means that everything is on one device.
      packed: whether a row may hold several segments. False promises one segment a row, starting at its first token. Causality
        alone then hides padding, and cuDNN needs no mask, which would be an array `[B, 1, T, T]`.
      interpret: runs "splash" without a TPU, slowly, for tests.
      causal: False also attends to the later tokens of the segment.

    Raises:
      ValueError: if the implementation is unknown or still "auto".
    """
    arrays = (query_BxNxTxH, key_BxKxTxH, value_BxKxTxH, segment_ids_BxT)
    if implementation == "plain":
        return _attend(*arrays[:3], _visible(segment_ids_BxT, segment_ids_BxT, _every_position(segment_ids_BxT), causal))
    if implementation == "blocked":
        return selected_attention(*arrays, _every_position(segment_ids_BxT), causal=causal)
    if implementation == "cudnn":
        return _per_device(partial(_cudnn, packed=packed, causal=causal), mesh, *arrays)
    if implementation == "splash":
        return _per_device(partial(_splash, interpret=interpret, causal=causal), mesh, *arrays)
    raise ValueError(f"implementation={implementation!r} is not one of {', '.join(IMPLEMENTATIONS[1:])}; call `resolve` to choose one.")


def selected_attention(
    query_BxNxQxH: Array, key_BxKxTxH: Array, value_BxKxTxH: Array, segment_ids_BxT: Array, at_BxQ: Array, *, causal: bool = True
) -> Array:
    """Causal attention for the queries of some tokens only, `[B, N, Q, H]`; plain XLA, in blocks if there are more than 256.

    Args:
      query_BxNxQxH: the queries of the selected tokens.
      key_BxKxTxH, value_BxKxTxH, segment_ids_BxT: as in `causal_attention`.
      at_BxQ: int32, the index in the row of each query's token.
      causal: as in `causal_attention`.
    """
    segment_BxQ = jnp.take_along_axis(segment_ids_BxT, at_BxQ, axis=1)
    visible = lambda segment, at: _visible(segment, segment_ids_BxT, at, causal)
    return _in_blocks(query_BxNxQxH, key_BxKxTxH, value_BxKxTxH, visible, segment_BxQ, at_BxQ)


def cached_attention(query_BxNxTxH: Array, key_BxKxCxH: Array, value_BxKxCxH: Array, positions_BxT: Array, *, tiled: bool = False) -> Array:
    """Attention over a cache, `[B, N, T, H]`: a query at position p attends to slots 0…p.

    More than 256 queries (a long prompt) are processed in blocks, so that the scores `[B, N, T, C]` are never stored whole.

    Args:
      query_BxNxTxH: queries of the new tokens, whose keys and values are already in the cache.
      key_BxKxCxH, value_BxKxCxH: the cache, in its storage dtype.
      positions_BxT: int32, the cache slot of each query.
      tiled: reads the cache in tiles of `TILE` slots, up to the last one that a query attends to, for at most 256 queries. Then the time depends
        on the longest row, but no bit of the result on other rows or on further slots.
    """
    if tiled:
        return piece_attention(query_BxNxTxH, key_BxKxCxH, value_BxKxCxH, None, positions_BxT, tiled=True)
    slots = jnp.arange(key_BxKxCxH.shape[2])
    dtype = query_BxNxTxH.dtype
    visible = lambda positions: slots[None, None, :] <= positions[:, :, None]
    return _in_blocks(query_BxNxTxH, key_BxKxCxH.astype(dtype), value_BxKxCxH.astype(dtype), visible, positions_BxT)


# --- Plain XLA ---


def _every_position(segment_ids_BxT: Array) -> Array:
    return jnp.broadcast_to(jnp.arange(segment_ids_BxT.shape[1]), segment_ids_BxT.shape)


def _visible(segment_BxQ: Array, segment_BxT: Array, at_BxQ: Array, causal: bool = True) -> Array:
    """bool `[B, Q, T]`: the keys that each query attends to."""
    same = segment_BxQ[:, :, None] == segment_BxT[:, None, :]
    if not causal:
        return same
    return (jnp.arange(segment_BxT.shape[1])[None, None, :] <= at_BxQ[:, :, None]) & same


def _attend(query_BxNxQxH: Array, key_BxKxTxH: Array, value_BxKxTxH: Array, mask_BxQxT: Array) -> Array:
    batch, heads, asked, width = query_BxNxQxH.shape
    groups = key_BxKxTxH.shape[1]
    query = query_BxNxQxH.reshape(batch, groups, heads // groups, asked, width)
    scores = jnp.einsum("bkgqh,bkth->bkgqt", query, key_BxKxTxH).astype(jnp.float32) * width**-0.5
    scores = jnp.where(mask_BxQxT[:, None, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    return jnp.einsum("bkgqt,bkth->bkgqh", weights, value_BxKxTxH).reshape(query_BxNxQxH.shape)


def piece_attention(
    query_RxNxTxH: Array, key_BxKxCxH: Array, value_BxKxCxH: Array, rows_R: Array | None, positions_RxT: Array, *, tiled: bool = False
) -> Array:
    """`cached_attention` of some rows of a cache: `rows` are their places in it, clipped to its size; None: all rows."""
    query = _grouped(query_RxNxTxH, key_BxKxCxH.shape[1])
    return _mean(_over_tiles(query, key_BxKxCxH, value_BxKxCxH, positions_RxT, TILE if tiled else None, rows_R), query_RxNxTxH)


def tail_attention(
    query_BxNx1xH: Array, keys: tuple[Array, Array], values: tuple[Array, Array], length_B: Array, index, *, tiled: bool = False
) -> Array:
    """Attention of one new token a row, `[B, N, 1, H]`, over a cache and the tail of tokens that were decoded since.

    Args:
      query_BxNx1xH: the token's queries.
      keys, values: of the cache `[B, K, C, H]`, of which a row's first `length` slots count, and of the tail `[B, K, S, H]`, of which the slots
        0…`index` count in every row.
      length_B: int32, tokens of each row in the cache.
      index: int32, the token's place in the tail.
      tiled: as in `cached_attention`.
    """
    query = _grouped(query_BxNx1xH, keys[0].shape[1])
    sums = _over_tiles(query, keys[0], values[0], length_B[:, None] - 1, TILE if tiled else None)
    visible = jnp.broadcast_to(jnp.arange(keys[1].shape[2]) <= index, (len(length_B), 1, keys[1].shape[2]))
    return _mean(_add(sums, query, keys[1], values[1], visible), query_BxNx1xH)


def _grouped(query_BxNxTxH: Array, groups: int) -> Array:
    batch, heads, time, width = query_BxNxTxH.shape
    return query_BxNxTxH.reshape(batch, groups, heads // groups, time, width)


def _over_tiles(
    query_BxKxGxTxH: Array, key_BxKxCxH: Array, value_BxKxCxH: Array, positions_BxT: Array, size: int | None, rows_B: Array | None = None
):
    """Adds up the slots 0…position of each query, tile by tile up to the last one in use; None: all slots at once. `rows` are the places of the
    queries' rows in the cache.

    All tiles go through the same program, and one that a query does not attend to adds 0 to its sums. So neither further slots nor longer rows of
    the batch change a bit of the result.
    """
    shape, slots = query_BxKxGxTxH.shape, key_BxKxCxH.shape[2]
    tile = slots if size is None or slots % size else size
    sums = jnp.full(shape[:-1], _MASKED), jnp.zeros(shape[:-1]), jnp.zeros(shape)

    def add(index, sums):
        def part(x):
            if rows_B is None:
                return jax.lax.dynamic_slice_in_dim(x, index * tile, tile, axis=2)
            return jax.vmap(lambda row: jax.lax.dynamic_slice(x, (row, 0, index * tile, 0), (1, x.shape[1], tile, x.shape[3]))[0])(rows_B)

        visible = index * tile + jnp.arange(tile) <= positions_BxT[:, :, None]
        return _add(sums, query_BxKxGxTxH, part(key_BxKxCxH), part(value_BxKxCxH), visible)

    if tile == slots:
        return add(0, sums)
    return jax.lax.fori_loop(0, jnp.minimum(jnp.max(positions_BxT) // tile + 1, slots // tile), add, sums)


def _add(sums, query_BxKxGxTxH: Array, key_BxKxSxH: Array, value_BxKxSxH: Array, visible_BxTxS: Array):
    """Adds slots to the sums of a softmax: the highest score of each query; what exp(score − highest), and its products with values, add up to."""
    most, total, mixed = sums
    dtype = query_BxKxGxTxH.dtype
    scores = jnp.einsum("bkgqh,bkth->bkgqt", query_BxKxGxTxH, key_BxKxSxH.astype(dtype)).astype(jnp.float32)
    scores = jnp.where(visible_BxTxS[:, None, None], scores * query_BxKxGxTxH.shape[-1] ** -0.5, _MASKED)
    highest = jnp.maximum(most, scores.max(axis=-1))
    weights, kept = jnp.exp(scores - highest[..., None]), jnp.exp(most - highest)
    weights = jnp.where(visible_BxTxS[:, None, None], weights, 0.0)  # a query may see no slot of these
    added = jnp.einsum("bkgqt,bkth->bkgqh", weights.astype(dtype), value_BxKxSxH.astype(dtype)).astype(jnp.float32)
    return highest, total * kept + weights.sum(axis=-1), mixed * kept[..., None] + added


def _mean(sums, like_BxNxTxH: Array) -> Array:
    _, total, mixed = sums
    return (mixed / total[..., None]).astype(like_BxNxTxH.dtype).reshape(like_BxNxTxH.shape)


def _in_blocks(query_BxNxQxH: Array, key_BxKxTxH: Array, value_BxKxTxH: Array, visible, *facts_BxQ: Array) -> Array:
    """`_attend`, for at most `BLOCK` queries at a time.

    Args:
      visible: a function from the `facts` of some queries to their mask `[B, Q, T]`.
      facts_BxQ: int32 arrays with the position or segment of each query, from which `visible` makes the mask.
    """
    batch, heads, asked, width = query_BxNxQxH.shape
    if asked <= BLOCK:
        return _attend(query_BxNxQxH, key_BxKxTxH, value_BxKxTxH, visible(*facts_BxQ))
    count = -(-asked // BLOCK)
    size = -(-asked // count)
    # Padding queries repeat the last fact, so that they always attend to something.
    spare = count * size - asked
    query = jnp.pad(query_BxNxQxH, ((0, 0), (0, 0), (0, spare), (0, 0)))
    query = query.reshape(batch, heads, count, size, width).transpose(2, 0, 1, 3, 4)
    facts = [jnp.pad(f, ((0, 0), (0, spare)), mode="edge").reshape(batch, count, size).transpose(1, 0, 2) for f in facts_BxQ]

    @jax.checkpoint
    def block(inputs):
        query, *facts = inputs
        return _attend(query, key_BxKxTxH, value_BxKxTxH, visible(*facts))

    out = jax.lax.map(block, (query, *facts)).transpose(1, 2, 0, 3, 4)
    return out.reshape(batch, heads, count * size, width)[:, :, :asked]


# --- Kernels ---


def _per_device(attend, mesh: Mesh | None, query_BxNxTxH: Array, key_BxKxTxH: Array, value_BxKxTxH: Array, segment_ids_BxT: Array):
    """Runs a kernel on each device's rows and heads; an axis that does not divide evenly is computed whole on every device."""
    if mesh is None or mesh.size == 1:
        return attend(query_BxNxTxH, key_BxKxTxH, value_BxKxTxH, segment_ids_BxT)
    (batch, heads, _, _), groups = query_BxNxTxH.shape, key_BxKxTxH.shape[1]
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = ("data", "fsdp") if batch % parts == 0 else None
    copies = math.lcm(groups, mesh.shape["tensor"]) // groups  # of each key/value head, so that heads divide over `tensor`
    split = None
    if heads % (groups * copies) == 0:
        split = "tensor"
        key_BxKxTxH, value_BxKxTxH = (jnp.repeat(x, copies, axis=1) for x in (key_BxKxTxH, value_BxKxTxH))
    spec = PartitionSpec(rows, split)
    run = jax.shard_map(attend, mesh=mesh, in_specs=(spec, spec, spec, PartitionSpec(rows)), out_specs=spec, check_vma=False)
    return run(query_BxNxTxH, key_BxKxTxH, value_BxKxTxH, segment_ids_BxT)


def _cudnn(
    query_BxNxTxH: Array, key_BxKxTxH: Array, value_BxKxTxH: Array, segment_ids_BxT: Array, *, packed: bool, causal: bool = True
) -> Array:
    length = segment_ids_BxT.shape[1]
    spare = length % 2  # the backward pass takes even lengths only
    pad = lambda x, axis: jnp.pad(x, [(0, spare if a == axis else 0) for a in range(x.ndim)])
    query, key, value = (pad(x, 2).transpose(0, 2, 1, 3) for x in (query_BxNxTxH, key_BxKxTxH, value_BxKxTxH))
    mask = None
    if packed or not causal:  # causality alone hides the padding of a row of one segment
        segment = pad(segment_ids_BxT, 1)
        # The mask is causal too, although `is_causal` is set: cuDNN may return NaN for a query whose mask is empty.
        mask = _visible(segment, segment, _every_position(segment), causal)[:, None]
    mixed = jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal, implementation="cudnn")
    return mixed.transpose(0, 2, 1, 3)[:, :, :length]


def _splash(
    query_BxNxTxH: Array, key_BxKxTxH: Array, value_BxKxTxH: Array, segment_ids_BxT: Array, *, interpret: bool, causal: bool = True
) -> Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # slow to import

    _, heads, length, width = query_BxNxTxH.shape
    block = splash_block(length)
    rest = -length % block
    query = (query_BxNxTxH.astype(jnp.float32) * width**-0.5).astype(query_BxNxTxH.dtype)  # the kernel does not scale
    query, key, value = (jnp.pad(x, ((0, 0), (0, 0), (0, rest), (0, 0))) for x in (query, key_BxKxTxH, value_BxKxTxH))
    segment = jnp.pad(segment_ids_BxT, ((0, 0), (0, rest)))
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    shape = (length + rest, length + rest)
    mask = splash.MultiHeadMask([splash.CausalMask(shape) if causal else splash.FullMask(shape)] * heads)
    kernel = splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
    mixed = jax.vmap(lambda q, k, v, s: kernel(q, k, v, segment_ids=splash.SegmentIds(s, s)))(query, key, value, segment)
    return mixed[:, :, :length]


def splash_block(length: int) -> int:
    """The largest block of the splash kernel (512, 256 or 128 tokens) that pads a row of `length` tokens by at most an eighth; 128
    if none does."""
    padded = lambda block: -(-length // block) * block
    return next((block for block in (512, 256) if 8 * padded(block) <= 9 * length), _LANES)
