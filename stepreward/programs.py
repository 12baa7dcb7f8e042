"""Describes a run's compiled programs: each jitted function and the shapes that it is called with.

Each part of a run that trains or plays is a `Component`, which lists the programs that it runs and the arrays that it keeps on the
devices. If components are built from shapes (`jax.ShapeDtypeStruct` with shardings) instead of arrays, a run can be compiled for
hardware that is not available.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any

from stepreward.parallel import is_abstract


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function and the arguments that a run calls it with.

    Attributes:
      name: the name of the program, "component/program".
      function: the function, as returned by `jax.jit`.
      args, kwargs: arguments of the call, with arrays as `jax.ShapeDtypeStruct`.
      times: an upper bound on the calls in one iteration (in one epoch of the estimator's stage, in one update of the warm start).
      trips: an upper bound on the iterations of loops whose trip count the compiler does not know (chunks of rows, tokens of an answer).
      kernel_flops: floating-point operations of its attention kernels on all devices, which the compiled program does not show.
      detail: whether it is only a part of another program, listed to analyse that one; a run does not call it.
    """

    name: str
    function: Any
    args: tuple
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    times: float = 1
    trips: int = 1
    kernel_flops: float = 0.0
    detail: bool = False

    def lower(self):
        return self.function.lower(*self.args, **self.kwargs)


class Component(abc.ABC):
    """A part of a run that has programs."""

    @abc.abstractmethod
    def programs(self, stage: str) -> Iterator[Program]:
        """Yields the programs that it runs on the devices in a stage (`training.stages.STAGES`), except small operations on arrays.

        The component must have been built from shapes.
        """

    def held(self) -> dict[str, Any]:
        """What it keeps on the devices: the trees of shapes among its attributes, including a model's frozen weights (`base`)."""
        found = {}
        for name, value in vars(self).items():
            tree = getattr(value, "base", None) if dataclasses.is_dataclass(value) and hasattr(value, "base") else value
            if is_abstract(tree):
                found[name if tree is value else f"{name}.base"] = tree
        return found
