"""The models that learn beside the policy, one file each. A run has those that its credit method needs.

All modules of this folder are imported, and every subclass of `Auxiliary` is registered: a new file needs no line here.
"""

import importlib
import pkgutil

from stepreward.training.auxiliaries.base import AFTER_CREDIT, AFTER_POLICY, BEFORE_CREDIT, Auxiliary, Lesson, NotReady
from stepreward.training.auxiliaries.critic import Critic
from stepreward.training.auxiliaries.estimator import Estimator
from stepreward.training.auxiliaries.judge import Judge
from stepreward.training.auxiliaries.prm import ProcessRewardModel

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
# In the order in which they compute signals and learn.
AUXILIARIES: tuple[type[Auxiliary], ...] = tuple(sorted(Auxiliary.__subclasses__(), key=lambda kind: (kind.order, kind.name)))

__all__ = [
    "AFTER_CREDIT",
    "AFTER_POLICY",
    "AUXILIARIES",
    "BEFORE_CREDIT",
    "Auxiliary",
    "Critic",
    "Estimator",
    "Judge",
    "Lesson",
    "NotReady",
    "ProcessRewardModel",
]
