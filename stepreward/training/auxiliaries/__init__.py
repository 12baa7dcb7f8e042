"""The models that learn beside the policy, one file each. A run has those that its credit method asks for."""

from stepreward.training.auxiliaries.base import AFTER_CREDIT, AFTER_POLICY, BEFORE_CREDIT, Auxiliary, Lesson
from stepreward.training.auxiliaries.critic import Critic
from stepreward.training.auxiliaries.estimator import Estimator
from stepreward.training.auxiliaries.prm import ProcessRewardModel

AUXILIARIES: tuple[type[Auxiliary], ...] = (ProcessRewardModel, Critic, Estimator)  # in the order in which they are asked and learn

__all__ = [
    "AFTER_CREDIT",
    "AFTER_POLICY",
    "AUXILIARIES",
    "BEFORE_CREDIT",
    "Auxiliary",
    "Critic",
    "Estimator",
    "Lesson",
    "ProcessRewardModel",
]
