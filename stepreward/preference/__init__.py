"""Methods that learn from preference pairs: each explores with a policy, and says which of two behaviours is better.

`make(name, **options)` builds a method. Its `collect` plays episodes and returns them with `Pairs`, ranges of their steps. The stage
`preference` of a run trains the policy on the pairs (`training/preferring.py`).
"""

from stepreward.preference.base import Collected, Pairs, Preference, make, names, register
from stepreward.preference.cso import CSO
from stepreward.preference.eto import ETO
from stepreward.preference.ipr import IPR
from stepreward.preference.online_dpo import OnlineDPO
from stepreward.preference.rro import RRO
from stepreward.preference.stepagent import StepAgent

__all__ = [
    "CSO",
    "ETO",
    "IPR",
    "RRO",
    "Collected",
    "OnlineDPO",
    "Pairs",
    "Preference",
    "StepAgent",
    "make",
    "names",
    "register",
]
