"""What each method needs of a run and of its environment, as rows of one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from stepreward import credit, preference
from stepreward.config import TrackedConfig
from stepreward.envs.protocol import AUTOMATON, EVENTS, REFERENCE, REPLAY, SNAPSHOT, TURN_REWARD
from stepreward.errors import naming
from stepreward.rollout import strategies
from stepreward.training import setup
from stepreward.training.auxiliaries import AUXILIARIES
from stepreward.training.mixture import views

_OPTIONAL = (AUTOMATON, EVENTS, TURN_REWARD)  # capabilities that some environments have with the option of the same name only


@dataclasses.dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
      name: what it is made by.
      kind: the registry that it is in: "credit" (`credit.method`) or "preference" (`preference.method`).
      signals: names of the arrays that it reads besides a batch's own (`stepreward/signals.py`).
      models: titles of the models that learn or answer beside the policy.
      strategy: how its episodes are rolled out.
      capabilities: what the environment must declare (`envs/protocol.py`).
      restarts: whether the environment must also offer snapshots or replays.
    """

    name: str
    kind: str
    signals: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    strategy: str = "chain"
    capabilities: tuple[str, ...] = ()
    restarts: bool = False

    def lacks(self, able: frozenset[str]) -> tuple[str, ...]:
        """Returns what an environment with the capabilities `able` does not offer."""
        missing = [name for name in self.capabilities if name not in able]
        return (*missing, *([f"{SNAPSHOT} or {REPLAY}"] if self.restarts and not able & {SNAPSHOT, REPLAY} else []))

    @property
    def needs(self) -> tuple[str, ...]:
        """All that the environment must offer, in words."""
        return self.lacks(frozenset())


def credit_rows() -> list[Row]:
    """Returns a row for each credit method, with the variant that a run uses by default."""
    return [_of(credit.make(name, **_variant(name))) for name in credit.names()]


def _variant(name: str) -> dict[str, str]:
    variant = credit.recommended_variant(name)
    return {"variant": variant} if variant else {}


def _of(method: credit.Method) -> Row:
    strategy = strategies.make(method.strategy, **method.strategy_options)
    needed = method.capabilities | strategy.capabilities | (frozenset({REFERENCE}) if setup.scores_answers(method) else frozenset())
    models = tuple(auxiliary.title for auxiliary in AUXILIARIES if auxiliary.wanted(method))
    return Row(method.name, "credit", tuple(sorted(method.requires)), models, method.strategy, tuple(sorted(needed)), strategy.restarts)


def preference_rows() -> list[Row]:
    """Returns a row for each preference method."""
    found = [preference.make(name) for name in preference.names()]
    return [Row(m.name, "preference", models=("reference",), capabilities=tuple(sorted(m.needs)), restarts=m.restarts) for m in found]


SOURCES: list[Callable[[], Iterable[Row]]] = [credit_rows, preference_rows]  # another registry of methods adds its function here


def rows() -> list[Row]:
    """Returns the rows of all registries."""
    return [row for source in SOURCES for row in source()]


@dataclasses.dataclass(frozen=True)
class Offer:
    """What one environment offers.

    Attributes:
      able: its capabilities.
      optional: the capabilities that it would have with the option of the same name.
    """

    able: frozenset[str]
    optional: frozenset[str] = frozenset()

    def answer(self, row: Row) -> str:
        """Returns "yes"; "with …=True", an option of the environment; or "no: " and what is missing."""
        missing = row.lacks(self.able)
        if not missing:
            return "yes"
        if set(missing) <= self.optional:
            return f"with {', '.join(f'{name}=True' for name in missing)}"
        return f"no: {', '.join(name for name in missing if name not in self.optional)}"


def offers(c) -> dict[str, Offer]:
    """Returns what the environments of a config offer, by their names in the mixture; of a run of one environment, under "".

    Raises:
      ValueError: an environment cannot be made.
    """
    found = {}
    for name, view in views(c).items():
        with naming(name):
            able = _capabilities(view)
            found[name] = Offer(able, frozenset(option for option in _OPTIONAL if option not in able and _takes(view, option)))
    return found


def answer(row: Row, offered: Mapping[str, Offer]) -> str:
    """Returns `Offer.answer` for one environment, or for the first one of a mixture that does not offer all, with its name."""
    answers = {name: offer.answer(row) for name, offer in offered.items()}
    wrong = [(name, said) for name, said in answers.items() if said != "yes"]
    worst = sorted(wrong, key=lambda pair: not pair[1].startswith("no"))
    return f"{worst[0][1]}{worst[0][0] and f' ({worst[0][0]})'}" if worst else "yes"


def _capabilities(view) -> frozenset[str]:
    factory, _ = setup.environment_factory(view)
    with setup.environment_pool(view, factory) as pool:
        return pool.capabilities()


def _takes(view, option: str) -> bool:
    """Whether the environment takes an option, and has the capability of this name with it."""
    plain = (view.untracked if isinstance(view, TrackedConfig) else view).copy_and_resolve_references()
    with plain.unlocked():
        plain.environment.options[option] = True
    try:
        return option in _capabilities(plain)
    except (ValueError, TypeError):
        return False
