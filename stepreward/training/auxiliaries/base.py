"""What every model that learns beside the policy has in common.

An iteration of reinforcement learning asks each of them for its signals, then lets it learn, at the time that it names:

    signals → (before_credit: learn, signals anew) → credit → (after_credit: learn) → policy update → (after_policy: learn)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from stepreward.batch import Batch
from stepreward.credit import Credit
from stepreward.programs import Component
from stepreward.training.backbones import Backbone

BEFORE_CREDIT, AFTER_CREDIT, AFTER_POLICY = "before_credit", "after_credit", "after_policy"


class Lesson(NamedTuple):
    """What an auxiliary may learn from in one iteration.

    Attributes:
      batch: the iteration's batch, with its signals (NumPy).
      episodes: the episodes that it was packed from.
      credit: of the batch; None where it is not known yet.
      policy: the policy's decoder parameters as they are now.
      iteration: number of the iteration, from 0; of the warm-up batch, during a warm-up.
    """

    batch: Batch
    episodes: list
    credit: Credit | None
    policy: Any
    iteration: int


class Auxiliary(Component):
    """A model that learns beside the policy. Its attributes that hold parameters are None until it begins.

    Attributes:
      name: the name of its config group, the prefix of its metrics, and the key of its part of a checkpoint.
      title: what the display and errors call it.
      provides: the signals that it computes.
      stage: the first stage that it takes part in.
      order: its place among the auxiliaries; those of smaller numbers are asked for signals, and learn, first.
      configured: whether the config has a group of its name; otherwise its options are fields of the credit method.
      when: when it learns in an iteration; None where it does not.
      shared: whether it sits on the policy's own backbone and learns with the policy.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    provides: ClassVar[frozenset[str]] = frozenset()
    stage: ClassVar[str] = "train"
    order: ClassVar[int] = 10
    configured: ClassVar[bool] = True
    when: str | None = AFTER_CREDIT
    shared: bool = False

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        cls.title = cls.__dict__.get("title") or cls.name

    @classmethod
    def wanted(cls, method) -> bool:
        """Whether a run with this credit method has the model."""
        return bool(cls.provides & method.requires)

    @property
    def begun(self) -> bool:
        """Whether it has parameters, or needs none of its own."""
        return True

    def begin(self, model: Backbone, params) -> None:
        """Begins from the policy, at the beginning of its first stage.

        Args:
          model, params: the policy; the model may share its frozen weights.
        """

    def begin_training(self, params) -> None:
        """Called when reinforcement learning begins, where `begin` was called for an earlier stage."""

    def scores(self, placed: Batch, to_rows: Callable, policy_params) -> dict:
        """Its signals of a batch.

        Args:
          placed: the batch on the devices.
          to_rows: brings a token-level array of `placed` to the host and to the rows of the batch.
          policy_params: the policy's parameters, with a head where there is one.
        """
        return {}

    def look(self, batch: Batch) -> tuple[dict, dict]:
        """What it finds in a batch before it learns from it: scalar signals, and metrics."""
        return {}, {}

    def credited(self, credit: Credit) -> dict:
        """Metrics of a batch's credit that concern this model."""
        return {}

    def plays(self, iteration: int) -> bool:
        """Whether an evaluation after so many iterations also plays this model, a decoder: `actor` on `model`."""
        return False

    def learn(self, lesson: Lesson) -> dict:
        """Learns from an iteration; returns metrics."""
        return {}

    # --- A model that shares the policy's backbone learns with the policy ---

    value_loss = None  # added to the policy's loss
    reads_with_policy: tuple[str, ...] = ()  # names of the arrays that `policy_signals` returns

    def joined(self, params):
        """The policy's parameters with what this model adds to them."""
        return params

    def policy_signals(self, batch: Batch, credit: Credit) -> dict:
        """The signals that `value_loss` reads."""
        return {}

    # --- Checkpoints ---

    def saved(self) -> tuple[dict, dict]:
        """Everything that its next update depends on: a dict of trees of arrays, and plain values."""
        return {}, {}

    def expect(self, facts: dict, empty: Callable) -> None:
        """Makes `saved` return trees of the structure that they had when `facts` were saved.

        Args:
          empty: makes a batch as a rollout is packed into, with signals of the names that it is given.
        """

    def load(self, saved: dict, facts: dict) -> None:
        """Takes over what was saved."""
