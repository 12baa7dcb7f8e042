"""The stages of a run, one file each, in the order in which they run."""

from stepreward.training.stages.base import Progress, Stage
from stepreward.training.stages.estimate import Estimate
from stepreward.training.stages.evaluate import Evaluate
from stepreward.training.stages.explore import Explore
from stepreward.training.stages.prefer import Prefer
from stepreward.training.stages.prm_warmup import PRMWarmup
from stepreward.training.stages.reinforce import Reinforce
from stepreward.training.stages.sft import FirstLook, SupervisedStart

STAGES: tuple[type[Stage], ...] = (SupervisedStart, FirstLook, Explore, Estimate, Prefer, PRMWarmup, Reinforce, Evaluate)

__all__ = ["STAGES", "Progress", "Stage"]
