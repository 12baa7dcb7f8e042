"""The interface of the models that learn beside the policy.

In each iteration of reinforcement learning, every auxiliary computes its signals, and learns at the time that its `when` names:

    prepare → signals → (before_credit: learn, signals again) → credit → (after_credit: learn) → policy update → (after_policy: learn)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np

from stepreward.batch import Batch
from stepreward.credit import Credit
from stepreward.errors import UserError
from stepreward.programs import Component
from stepreward.training.backbones import Backbone

BEFORE_CREDIT, AFTER_CREDIT, AFTER_POLICY = "before_credit", "after_credit", "after_policy"


class NotReady(UserError):
    """An auxiliary cannot do its part of a tick, and no model has learnt in that tick yet: the run is saved as it was before it."""


class Lesson(NamedTuple):
    """The data of one iteration, from which an auxiliary learns.

    Attributes:
      batch: the iteration's batch, with its signals (NumPy).
      episodes: the episodes that the batch was packed from.
      credit: the batch's credit; None before it is computed.
      policy: the policy's current decoder parameters.
      iteration: the number of the iteration, from 0.
      coefficients: the values of the method's scheduled coefficients, as scalar signals.
    """

    batch: Batch
    episodes: list
    credit: Credit | None
    policy: Any
    iteration: int
    coefficients: Mapping[str, np.float32] = MappingProxyType({})


class Auxiliary(Component):
    """A model that learns beside the policy. It has no parameters until `begin`.

    Attributes:
      name: the name of its config group, the prefix of its metrics, and its key in checkpoints.
      title: its name in the display and in errors.
      provides: the signals that it computes.
      stage: the stage in which it begins.
      order: auxiliaries with smaller numbers compute signals, and learn, first.
      configured: whether the config has a group of its name; otherwise its options are fields of the credit method.
      when: the time at which it learns in an iteration; None if it does not learn, or learns with the policy.
      shared: whether it is a head on the policy's backbone, trained in the policy's update.
      trains: whether it has parameters that it trains; if not, `begin` gets the policy's own backbone.
      reads_policy: whether it is a pass of the policy's own parameters, which `programs` then gets as a second argument.
      demonstrated: whether it needs demonstrations of the environment's expert (`setup.Parts.demonstrations`).
      unscored: bool `[E]`, the episodes of the prepared batch that it has no signals for; they are masked. None: there are none.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    provides: ClassVar[frozenset[str]] = frozenset()
    stage: ClassVar[str] = "train"
    order: ClassVar[int] = 10
    configured: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    reads_policy: ClassVar[bool] = False
    demonstrated: ClassVar[bool] = False
    when: str | None = AFTER_CREDIT
    shared: bool = False
    unscored: Any = None

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        cls.title = cls.__dict__.get("title") or cls.name

    @classmethod
    def wanted(cls, method) -> bool:
        """Whether a run with this credit method needs the model."""
        return bool(cls.provides & method.requires)

    @classmethod
    def asked(cls, c) -> bool:
        """Whether the config asks for the model although no signal of it is required."""
        return False

    @classmethod
    def check(cls, c, method) -> None:
        """Checks the config of a run that needs the model, before anything is written or compiled.

        Raises:
          ValueError: a value is not allowed, or does not fit the method.
        """

    def open(self) -> None:
        """Reads what the model needs from disk, besides checkpoints. Called when a run starts or resumes, before its next tick."""

    @property
    def begun(self) -> bool:
        """Whether `begin` has been called, or is not needed."""
        return True

    def begin(self, model: Backbone, params) -> None:
        """Initialises the model from the policy, at the beginning of its first stage.

        Args:
          model: the policy's backbone; the auxiliary may share its frozen weights.
          params: the policy's parameters.
        """

    def begin_training(self, params) -> None:
        """Called when reinforcement learning begins, if the model began in an earlier stage."""

    def prepare(self, batch: Batch, episodes: list) -> dict:
        """Reads from the episodes of a batch what `scores` needs besides the batch; called once for a batch, first; returns metrics."""
        return {}

    def scores(self, placed: Batch, to_rows: Callable, policy_params) -> dict:
        """Computes the model's signals for a batch.

        Args:
          placed: the batch on the devices, possibly with packed rows.
          to_rows: copies a token-level array of `placed` to the host, in the rows of the original batch.
          policy_params: the policy's parameters, including a head if it has one.

        Returns:
          Arrays by name of the signal.
        """
        return {}

    def look(self, batch: Batch) -> tuple[dict, dict]:
        """Returns scalars by name, and metrics, of a batch that the model has not yet learnt from.

        The scalars are signals that a method may require, and `pair_accuracy`, which schedules of coefficients read.
        """
        return {}, {}

    def credited(self, credit: Credit) -> dict:
        """Returns the metrics of a batch's credit that concern this model."""
        return {}

    def plays(self, iteration: int) -> bool:
        """Whether the evaluation after this many iterations also plays this model as a policy (`actor`, a decoder on `model`)."""
        return False

    def learn(self, lesson: Lesson) -> dict:
        """Trains the model on an iteration; returns metrics."""
        return {}

    # --- For a model that shares the policy's backbone and learns with the policy ---

    value_loss = None  # added to the policy's loss
    reads_with_policy: tuple[str, ...] = ()  # names of the arrays that `policy_signals` returns

    def joined(self, params):
        """Returns the policy's parameters with those of this model added."""
        return params

    def policy_signals(self, batch: Batch, credit: Credit) -> dict:
        """Returns the signals that `value_loss` reads."""
        return {}

    # --- Checkpoints ---

    def saved(self) -> tuple[dict, dict]:
        """Returns everything that the next update depends on: a dict of trees of arrays, and plain JSON values."""
        return {}, {}

    def expect(self, facts: dict, empty: Callable) -> None:
        """Prepares the model so that `saved` returns trees with the structure that they had when `facts` were saved.

        Args:
          facts: the plain values that were saved.
          empty: function from names of signals to a batch with the shapes of a packed rollout and those signals.
        """

    def load(self, saved: dict, facts: dict) -> None:
        """Restores the results of `saved`."""
