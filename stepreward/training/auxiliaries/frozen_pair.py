"""A frozen pair of policies: one that was trained, and the one that its training started from. Nothing of it learns."""

from __future__ import annotations

from collections.abc import Iterator

import jax

from stepreward import parallel, processes
from stepreward.batch import Batch
from stepreward.models import decoder
from stepreward.programs import Program
from stepreward.training import frozen
from stepreward.training.auxiliaries.base import Auxiliary
from stepreward.training.backbones import Backbone
from stepreward.training.layout import Layout
from stepreward.training.scoring import score


class FrozenPair(Auxiliary):
    """The two policies, read from disk when a run starts. They are not saved in its checkpoints: their digests are.

    Attributes:
      trained, start: parameters of the two decoders; None before `open`.
      models: their backbones, by signal.
    """

    name = "frozen_pair"
    title = "frozen pair of policies"
    provides = frozen.SIGNALS
    when = None
    trains = False

    def __init__(self, c, parts, layout: Layout, key: jax.Array):
        self._c, self._parts, self.layout = c, parts, layout
        self.trained = self.start = None
        self.models: dict[str, Backbone] = {}
        if parts.abstract:  # the files need not be there: both are counted as models of the policy's shape
            shapes = lambda: parallel.place_parameters(decoder.abstract_params(parts.model_config), parts.mesh)
            self.trained, self.start = shapes(), shapes()
            self.models = dict.fromkeys(self.provides, Backbone(parts.graphdef, parts.model_config))

    @classmethod
    def check(cls, c, method) -> None:
        frozen.pair(c)

    @property
    def _pair(self) -> dict:
        return {"log_prob_trained": self.trained, "log_prob_start": self.start}

    def open(self) -> None:
        """Reads both policies.

        Raises:
          UserError: a path is missing or unfit, or a tokenizer is another one.
        """
        codec = self._parts.chat.codec
        found = processes.together(lambda: frozen.pair(self._c))
        for policy in found:
            processes.together(lambda policy=policy: policy.check_words(codec))
        (self.models["log_prob_trained"], self.trained), (self.models["log_prob_start"], self.start) = (
            policy.read(self._c, self._parts) for policy in found
        )

    def scores(self, placed: Batch, to_rows, policy_params) -> dict:
        """Returns the log-probabilities of action tokens under both policies, `[R, L]`, at the sampling temperature."""
        found = {}
        for name, params in self._pair.items():
            model = self.models[name]
            found[name] = to_rows(processes.to_host(score(params, model.reads(placed), **self.layout.scoring(model))[0]))
        return found

    def programs(self, stage: str) -> Iterator[Program]:
        if stage != "train":
            return
        layout = self.layout
        for name, params in self._pair.items():
            model = self.models[name]
            yield Program(
                f"frozen_pair/{name}",
                score,
                (params, model.reads(layout.shapes())),
                layout.scoring(model),
                trips=layout.chunks(),
                kernel_flops=layout.kernel_flops(model),
            )
