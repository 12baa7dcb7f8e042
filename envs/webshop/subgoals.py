"""The automaton of subgoals: search, open a product, choose the options with which it fits, and buy."""

from __future__ import annotations

import functools
from typing import Any

from stepreward.envs.automata import Automaton, automaton, ladder
from stepreward.envs.webshop import pages
from stepreward.envs.webshop.pages import State

# A product "fits" where buying it now, with the options chosen so far, would have the score 1.
_STAGES = (
    ("home", {"page": pages.HOME}),
    ("results", {"page": pages.RESULTS}),
    ("product", {"page": pages.ITEM, "fits": False}),
    ("fitting", {"page": pages.ITEM, "fits": True}),
    ("bought", {"page": pages.DONE, "fits": True}),
)
_TO_MISSED = {"page": pages.DONE, "fits": False}


@functools.cache
def subgoals() -> Automaton:
    """Returns the automaton. Its states are home, results, product, fitting, bought (accepting), and missed: a purchase with a lower
    score than 1, after which nothing can be reached."""
    names = [name for name, _ in _STAGES]
    missed = [{"from": name, "to": "missed", "when": _TO_MISSED} for name in names[:-1]]
    data = {"states": [*names, "missed"], "start": "home", "accepting": ["bought"], "edges": [*ladder(_STAGES), *missed]}
    # A purchase ends the episode, so no edge leaves "bought".
    return automaton(data | {"edges": [edge for edge in data["edges"] if edge["from"] != "bought"]})


def facts_of(state: State, score: float) -> dict[str, Any]:
    """Returns the facts that the automaton reads.

    Args:
      state: the state of the shopping session.
      score: of the purchase, or the score that a purchase would have now.
    """
    return {"page": pages.ITEM if state.kind == pages.SUB else state.kind, "fits": score == 1}
