"""Layout of a run's arrays: numbers of rows, chunks of model passes, and placement on devices."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import numpy as np

from stepreward import parallel, processes
from stepreward import signals as table
from stepreward.batch import Batch
from stepreward.models.attention import KERNELS
from stepreward.models.decoder import attention_of
from stepreward.models.heads import with_head
from stepreward.rollout.bins import bin_rows, unbin
from stepreward.rollout.packing import pack
from stepreward.training.backbones import Backbone
from stepreward.training.minibatches import round_up, row_minibatches, take_rows


def _most_actions(c) -> int | None:
    """Upper bound on the action tokens of a row; None if it exceeds half a row, where a last layer for action tokens alone saves little."""
    most = c.rollout.max_answer_tokens * (c.rollout.max_steps if c.rollout.context == "episode" else 1)
    if c.train.pack_rows:  # packing then respects this bound
        most = max(most, c.rollout.max_row_tokens // 4)
    return most if most <= c.rollout.max_row_tokens // 2 else None


class Layout:
    """The layout of a run's arrays, which all of its parts share.

    Attributes:
      capacity: number of rows in one iteration's batch.
      pack_rows: whether several sequences are packed into one row before a model reads them.
    """

    pack_rows = False

    def __init__(self, c, parts):
        self.c, self.mesh, self._pad_id = c, parts.mesh, parts.chat.codec.pad_id
        self._reader, self.pack_rows = parts.collector.reader, c.train.pack_rows
        self._chunks = dict(chunk_rows=c.train.chunk_rows, max_actions=_most_actions(c))
        self.capacity = self.row_capacity(c.rollout.groups * c.rollout.group_size)

    def passes(self, model: Backbone) -> dict:
        """Arguments of every pass of a model over rows: graph, base, rows per chunk, and the upper bound on a row's action tokens."""
        return dict(graphdef=model.graphdef, base=model.base, **self._chunks)

    def scoring(self, model: Backbone) -> dict:
        """Arguments for log-probabilities: `passes`, and the sampling temperature."""
        return self.passes(model) | dict(temperature=self.c.rollout.temperature)

    def training(self, model: Backbone, seed, update: int) -> dict:
        """Further arguments of an update: the random key of the adapters' dropout, if they have any."""
        lora = model.config.lora
        if lora is None or not lora.dropout:
            return {}
        bits = np.random.SeedSequence([*seed, update]).generate_state(1)[0]
        return {"dropout_key": jax.random.key(int(bits))}

    def row_capacity(self, episodes: int) -> int:
        """Number of rows for `episodes` episodes of maximum length, rounded up to whole chunks."""
        rows = episodes * (self.c.rollout.max_steps if self.c.rollout.context == "step" else 1)
        return round_up(rows, self.c.train.chunk_rows)

    def pack(self, episodes, row_multiple: int | None = None):
        """Packs episodes into a batch, with the outcome that the config chooses."""
        c = self.c
        return pack(
            episodes,
            context=c.rollout.context,
            max_steps=c.rollout.max_steps,
            row_length=c.rollout.max_row_tokens,
            row_multiple=row_multiple or self.capacity,
            pad_id=self._pad_id,
            outcome=c.credit.outcome,
            outcome_scale=c.credit.outcome_scale,
            reader=self._reader,
            check=c.train.check_batches,
        )

    def place(self, batch):
        """Places a batch: token-level arrays are split over the mesh by rows, all others are replicated."""
        rows, copy = parallel.row_sharding(self.mesh), parallel.replicated(self.mesh)
        put = lambda x, row: parallel.place(x, rows if row.level == table.TOKEN else copy)
        return batch.map(put, *table.LEVELS, vision=parallel.place(batch.vision, rows))

    def place_for_training(self, batch):
        """Places a batch, with packed rows if the config says so. Its shapes do not change: the last rows are then empty."""
        return self.place_for_scoring(batch)[0]

    def place_for_scoring(self, batch):
        """Returns `place_for_training`, and a function that copies token-level arrays of it to the host, in the rows of `batch`."""
        if not self.pack_rows:
            return self.place(batch), processes.to_host
        packed, bins = bin_rows(batch, row_multiple=len(batch.tokens), max_actions=self._chunks["max_actions"])
        return self.place(packed), lambda x: unbin(processes.to_host(x), bins=bins)

    def place_parameters(self, params):
        """Places parameters on the mesh."""
        return parallel.place_parameters(params, self.mesh)

    def headed(self, model: Backbone, params, key: jax.Array, kind: str):
        """Returns a decoder's parameters with those of a new head, placed on the mesh."""
        add = lambda params: with_head(params, key, model.config.embed_dim, kind)
        return self.place_parameters(parallel.compute(add, params, mesh=None))

    def minibatches(self, batch, rows: int, epochs: int, rng: np.random.Generator):
        """Yields placed mini-batches of at most `rows` shuffled rows for `epochs` passes; all have the same shape."""
        for _ in range(epochs):
            for part, _ in row_minibatches(batch, rows, self.minibatch_capacity(rows), rng):
                yield self.place_for_training(part)

    def minibatch_capacity(self, rows: int) -> int:
        """Number of rows, including padding, of a mini-batch with at most `rows` rows."""
        return round_up(min(rows, self.capacity), self.c.train.chunk_rows)

    @property
    def demonstrated_capacity(self) -> int:
        """Number of rows, including padding, of a mini-batch of demonstrated steps."""
        return round_up(self.c.sft.rows, self.c.train.chunk_rows)

    def demonstrated_rows(self, batch, index):
        """Returns a placed mini-batch of demonstrated steps. Imitation does not use the step and episode levels, which have length 1."""
        capacity = self.demonstrated_capacity
        rows = take_rows(batch, index, capacity)
        return self.place_for_training(rows.map(lambda x, _: x[:1], table.STEP, table.EPISODE))

    # --- Shapes of placed batches, to compile programs without a run ---

    def shapes(self, rows: int | None = None, episodes: int | None = None, signals: Iterable[str] = (), *, length: int | None = None):
        """Returns the shapes and shardings of a placed batch.

        Args:
          rows: R; None takes that of an iteration's batch.
          episodes: E; None takes that of an iteration's batch.
          signals: names of the batch's signals.
          length: L; None takes that of an iteration's batch.
        """
        c = self.c.rollout
        rows, episodes, length = rows or self.capacity, episodes or c.groups * c.group_size, length or c.max_row_tokens
        of = lambda row: jax.ShapeDtypeStruct(table.shape(row, rows, length, episodes, c.max_steps), row.dtype)
        fields = {name: of(row) for name, row in table.FIELDS.items()}
        found = {name: of(table.row(name)) for name in signals}
        vision = None if self._reader is None else self._reader.shapes(rows, length)
        return self.place(Batch(**fields, signals=found, vision=vision))

    def chunks(self, rows: int | None = None) -> int:
        """Number of chunks in a pass over that many rows."""
        return -(-(rows or self.capacity) // self.c.train.chunk_rows)

    def kernel_flops(self, model: Backbone, rows: int | None = None, passes: float = 1) -> float:
        """Floating-point operations of attention kernels in `passes` forward passes over that many rows.

        A backward pass counts as 2.5 forward passes. The result is 0 if attention is not a kernel: the compiled program then shows it.
        """
        c, length, rows = model.config, self.c.rollout.max_row_tokens, rows or self.capacity
        if attention_of(c, length) not in KERNELS:
            return 0.0
        pairs = length**2 / 2 if c.causal else length**2
        return passes * 4 * rows * pairs * c.num_layers * c.num_heads * c.head_dim

    @staticmethod
    def training_passes(model: Backbone) -> float:
        """Cost of a forward and a backward pass, in forward passes; remat repeats the forward pass."""
        return 3.5 + (model.config.remat != "none")
