"""Shapes and places of a run's arrays: how many rows a batch has, how models pass over them, which device holds what."""

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
    """Most action tokens in a row, where that is few enough to compute the last layer and the head for them alone."""
    most = c.rollout.max_answer_tokens * (c.rollout.max_steps if c.rollout.context == "episode" else 1)
    if c.train.pack_rows:  # which is then a rule of packing
        most = max(most, c.rollout.max_row_tokens // 4)
    return most if most <= c.rollout.max_row_tokens // 2 else None


class Layout:
    """What every part of a run needs to know about its arrays.

    Attributes:
      capacity: rows of one iteration's batch.
      pack_rows: whether passes are over packed rows.
    """

    pack_rows = False

    def __init__(self, c, parts):
        self.c, self.mesh, self._pad_id = c, parts.mesh, parts.chat.codec.pad_id
        self._reader, self.pack_rows = parts.collector.reader, c.train.pack_rows
        self._chunks = dict(chunk_rows=c.train.chunk_rows, max_actions=_most_actions(c))
        self.capacity = self.row_capacity(c.rollout.groups * c.rollout.group_size)

    def passes(self, model: Backbone) -> dict:
        """Arguments of every pass of a model over rows: its graph and base, rows of a chunk, most action tokens in a row."""
        return dict(graphdef=model.graphdef, base=model.base, **self._chunks)

    def scoring(self, model: Backbone) -> dict:
        """`passes`, and the sampling temperature that log-probabilities refer to."""
        return self.passes(model) | dict(temperature=self.c.rollout.temperature)

    def training(self, model: Backbone, seed, update: int) -> dict:
        """What an update needs beside `passes`: the key of the adapters' dropout, where there is any."""
        lora = model.config.lora
        if lora is None or not lora.dropout:
            return {}
        bits = np.random.SeedSequence([*seed, update]).generate_state(1)[0]
        return {"dropout_key": jax.random.key(int(bits))}

    def row_capacity(self, episodes: int) -> int:
        """Rows that hold `episodes` episodes of full length, in whole chunks."""
        rows = episodes * (self.c.rollout.max_steps if self.c.rollout.context == "step" else 1)
        return round_up(rows, self.c.train.chunk_rows)

    def pack(self, episodes, row_multiple: int | None = None):
        """Episodes as a batch, with the outcome that the config names."""
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
        """Rows split over the mesh, the rest on every device."""
        rows, copy = parallel.row_sharding(self.mesh), parallel.replicated(self.mesh)
        put = lambda x, row: parallel.place(x, rows if row.level == table.TOKEN else copy)
        return batch.map(put, *table.LEVELS, vision=parallel.place(batch.vision, rows))

    def place_for_training(self, batch):
        """`place`, with rows packed where the config says so: as many as before, the last ones empty, so that shapes stay."""
        return self.place_for_scoring(batch)[0]

    def place_for_scoring(self, batch):
        """The same, and a function that brings token-level arrays of it back to the rows of `batch`."""
        if not self.pack_rows:
            return self.place(batch), processes.to_host
        packed, bins = bin_rows(batch, row_multiple=len(batch.tokens), max_actions=self._chunks["max_actions"])
        return self.place(packed), lambda x: unbin(processes.to_host(x), bins=bins)

    def place_parameters(self, params):
        """Parameters on the mesh."""
        return parallel.place_parameters(params, self.mesh)

    def headed(self, model: Backbone, params, key: jax.Array, kind: str):
        """A decoder's parameters with a fresh head, on the mesh."""
        add = lambda params: with_head(params, key, model.config.embed_dim, kind)
        return self.place_parameters(parallel.compute(add, params, mesh=None))

    def minibatches(self, batch, rows: int, epochs: int, rng: np.random.Generator):
        """Yields shuffled mini-batches of at most `rows` rows, all of one shape and placed, `epochs` times over."""
        for _ in range(epochs):
            for part, _ in row_minibatches(batch, rows, self.minibatch_capacity(rows), rng):
                yield self.place_for_training(part)

    def minibatch_capacity(self, rows: int) -> int:
        """Rows of one of those mini-batches."""
        return round_up(min(rows, self.capacity), self.c.train.chunk_rows)

    @property
    def demonstrated_capacity(self) -> int:
        """Rows of a mini-batch of demonstrated steps."""
        return round_up(self.c.sft.rows, self.c.train.chunk_rows)

    def demonstrated_rows(self, batch, index):
        """A mini-batch of demonstrated steps; step and episode levels play no part in imitation."""
        capacity = self.demonstrated_capacity
        rows = take_rows(batch, index, capacity)
        return self.place_for_training(rows.map(lambda x, _: x[:1], table.STEP, table.EPISODE))

    # --- Shapes of what is placed, for programs that are compiled without a run ---

    def shapes(self, rows: int | None = None, episodes: int | None = None, signals: Iterable[str] = ()):
        """A placed batch, as shapes.

        Args:
          rows: R; None: those of an iteration.
          episodes: E; None: those of an iteration.
          signals: names of the signals that it carries.
        """
        c = self.c.rollout
        rows, episodes = rows or self.capacity, episodes or c.groups * c.group_size
        of = lambda row: jax.ShapeDtypeStruct(table.shape(row, rows, c.max_row_tokens, episodes, c.max_steps), row.dtype)
        fields = {name: of(row) for name, row in table.FIELDS.items()}
        found = {name: of(table.row(name)) for name in signals}
        vision = None if self._reader is None else self._reader.shapes(rows, c.max_row_tokens)
        return self.place(Batch(**fields, signals=found, vision=vision))

    def chunks(self, rows: int | None = None) -> int:
        """In how many chunks a pass over that many rows goes."""
        return -(-(rows or self.capacity) // self.c.train.chunk_rows)

    def kernel_flops(self, model: Backbone, rows: int | None = None, passes: float = 1) -> float:
        """Floating-point operations of attention kernels in `passes` forward passes over that many rows (a backward pass counts
        2.5); 0 where attention is XLA's own, which the compiled program shows."""
        c, length, rows = model.config, self.c.rollout.max_row_tokens, rows or self.capacity
        if attention_of(c, length) not in KERNELS:
            return 0.0
        return passes * 4 * rows * length**2 / 2 * c.num_layers * c.num_heads * c.head_dim

    @staticmethod
    def training_passes(model: Backbone) -> float:
        """A forward and a backward pass, in forward passes; with remat the forward pass is made twice."""
        return 3.5 + (model.config.remat != "none")
