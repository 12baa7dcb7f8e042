"""Named settings: the limits and wordings of published experiments."""

from __future__ import annotations

from dataclasses import dataclass

from stepreward.envs.choosing import settings_of

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)


@dataclass(frozen=True)
class Settings:
    """The settings of an ALFWorld environment. Equal settings and seeds give equal games on any machine.

    data: folder of the benchmark's games, in the official layout or packed (see games.py); None plays generated games.
    held_out: the split of `data` that serves as "held_out": "valid_seen" or "valid_unseen".
    missing: what to do about a trial in the official layout without a game file: "error" or "skip".
    task_types: the types of task to play, from TASK_TYPES.
    max_steps: turns after which an episode is truncated.
    won_reward: reward of the step that solves the task; every other step earns 0.
    grammar: wording of the game. "game" keeps that of the game file; "old" is "put X in/on Y" and "You arrive at loc N"; "new"
        is "move X to Y" and "You arrive at Y". Actions in either wording are always understood.
    arrival: whether observations keep the sentence "You arrive at ... .".
    welcome: whether the first observation keeps its "Welcome to TextWorld" line.
    expert: the expert's policy: "explorer" (sees only the observations), "recorded" (the benchmark's own trajectories,
        if the data has them) or "oracle" (sees the whole state).
    max_receptacles: maximum number of receptacles in a generated game; None for all of the floor plan.
    max_objects: approximate number of portable objects in a generated game.
    automaton: whether info has the state of the automaton in subgoals.py: find, take, clean, heat or cool, and place the object.

    Raises ValueError that names the setting and its allowed values.
    """

    data: str | None = None
    held_out: str = "valid_seen"
    missing: str = "error"
    task_types: tuple[str, ...] = TASK_TYPES
    max_steps: int = 50
    won_reward: float = 10.0
    grammar: str = "game"
    arrival: bool = True
    welcome: bool = True
    expert: str = "explorer"
    max_receptacles: int | None = None
    max_objects: int = 24
    automaton: bool = False

    def __post_init__(self):
        for name, choices in (("held_out", ("valid_seen", "valid_unseen")), ("missing", ("error", "skip")),
                              ("grammar", ("game", "old", "new")), ("expert", ("explorer", "recorded", "oracle"))):  # fmt: skip
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: give {' or '.join(map(repr, choices))}")
        for name, least in (("max_steps", 1), ("max_receptacles", 3), ("max_objects", 2)):
            value = getattr(self, name)
            if value is None and name == "max_receptacles":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value!r}: give a whole number, at least {least}")
        if not isinstance(self.automaton, bool):
            raise ValueError(f"automaton={self.automaton!r}: give True or False")
        if isinstance(self.task_types, str):
            raise ValueError(f"task_types={self.task_types!r}: give a tuple of names, not one string")
        object.__setattr__(self, "task_types", tuple(self.task_types))
        unknown = [name for name in self.task_types if name not in TASK_TYPES]
        if unknown or not self.task_types:
            raise ValueError(f"task_types={self.task_types!r}: give one or more of {', '.join(TASK_TYPES)}")
        if self.data is not None:
            object.__setattr__(self, "data", str(self.data))


_TINY = Settings(
    task_types=TASK_TYPES[:4],
    max_steps=20,
    won_reward=1.0,
    grammar="new",
    arrival=False,
    welcome=False,
    max_receptacles=7,
    max_objects=10,
)

PRESETS = {
    # Small generated rooms with few places, for training on a CPU; no cooling tasks, and no tasks with two objects.
    "tiny": _TINY,
    # iStar (arXiv 2509.19199) and verl-agent: 50 steps, 10 for success. The trainer, not the environment, adds penalties.
    "istar": Settings(),
    # SPA-RL (arXiv 2505.20732): 40 steps, 1 for success, no "You arrive at loc N.".
    "spa": Settings(max_steps=40, won_reward=1.0, grammar="old", arrival=False, welcome=False),
}


def settings(preset: str = "tiny", **overrides) -> Settings:
    """Returns the settings of a preset, with the fields in `overrides` replaced.

    Raises ValueError for an unknown preset or field, and lists the known ones.
    """
    return settings_of("ALFWorld", PRESETS, preset, overrides)
