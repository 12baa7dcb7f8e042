"""Credit assignment: one file a family of methods, made by name.

Every module of this folder is imported, so that a new file registers its methods without a line here.
"""

import importlib
import pkgutil

from stepreward.credit.ablations import step_permutation
from stepreward.credit.actor_critic import PPO, ActorCritic, StepPPO
from stepreward.credit.base import (
    Credit,
    Method,
    check_signals,
    make,
    names,
    recommended_variant,
    register,
    step_mask,
    token_mask,
)
from stepreward.credit.istar import PRIME, IStar
from stepreward.credit.outcome import GRPO, RLOO, DrGRPO, ReinforcePlusPlus, ReinforcePlusPlusBaseline
from stepreward.credit.potentials import RUDDER, ProgRM, lcs_progress_labels
from stepreward.credit.progress_advantage import episode_score, failure_step, step_progress
from stepreward.credit.quality import credit_quality, exact_quality, outcome_fit, rank_correlation
from stepreward.credit.spa import RBT, SPA
from stepreward.credit.spo import SPO
from stepreward.credit.trees import ARPO, TreeRPO
from stepreward.credit.vineppo import VinePPO

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")
