"""The rule-based judge of the embedded world: scores in SOTOPIA's seven dimensions and their ranges (arXiv 2310.11667)."""

from __future__ import annotations

import math

from stepreward.envs.sotopia.partner import State
from stepreward.envs.sotopia.scenarios import SCENARIOS, Task

DIMENSIONS = {
    "believability": (0, 10),
    "relationship": (-5, 5),
    "knowledge": (0, 10),
    "secret": (-10, 0),
    "social_rules": (-10, 0),
    "financial": (-5, 5),
    "goal": (0, 10),
}
WON_ABOVE = 6  # a goal score over this is a success (iStar, arXiv 2509.19199, footnote 2)


def judge(task: Task, state: State) -> dict[str, int]:
    """Scores a finished conversation, in whole numbers within the ranges of DIMENSIONS.

    goal = 2 + 8 · worth − 2 · [secret told] − [threat made]

    with the deal's worth in [0, 1]; halves are rounded up. Without a deal, the goal score is 1, or 0 after a threat or an
    insult. A deal below the worst listed outcome scores 1.
    """
    rude = state.threats + state.insults
    worth = None if state.deal is None else min(state.deal, 100) / 100
    if worth is None:
        goal = 0 if rude else 1
    elif worth < 0:
        goal = 1
    else:
        goal = math.floor(2.5 + 8 * worth) - 2 * state.secret - bool(state.threats)
    gain = 0 if worth is None else round(10 * worth - 5)
    scores = {
        "believability": 9 - 2 * state.repeats - 2 * state.raised - 2 * state.unheard + min(state.courtesy, 1),
        "relationship": min(state.courtesy, 3) + (worth is not None) - 3 * rude - (state.ended == "walked"),
        "knowledge": 5 * bool(state.asked) + min(len(state.argued), 2) + min(state.offers, 3),
        "secret": -8 * state.secret,
        "social_rules": -4 * state.threats - 3 * state.insults,
        "financial": gain if SCENARIOS[task.scenario].money else 0,
        "goal": goal,
    }
    return {name: max(low, min(high, scores[name])) for name, (low, high) in DIMENSIONS.items()}
