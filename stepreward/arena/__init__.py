"""Small finite tasks with exact advantages, on which every credit method can be trained and measured."""

from stepreward.arena.arms import Arm
from stepreward.arena.exact import Values, policy_gradient, success, values
from stepreward.arena.learn import Policies, Settings, Trace, run
from stepreward.arena.task import Task
from stepreward.arena.tasks import TASKS
