"""How a rollout is played: one file a strategy, made by name. A strategy is a loop over `play`.

    rollout = make("restore", k=4)(collector.player(params), tasks, key)

It plays each task, may play on from states that it met, and says what all of that cost. A credit method asks for a strategy by its name
(`Method.strategy`). Every module of this folder is imported, so that a new file registers its strategy without a line here.
"""

import importlib
import pkgutil

from stepreward.rollout.strategies.base import OUTCOMES, Play, Rollout, Strategy, make, names, register
from stepreward.rollout.strategies.chain import Chain

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")
