"""Named settings: tasks, rewards and limits."""

from __future__ import annotations

import os
from dataclasses import dataclass

from stepreward.envs.choosing import settings_of


@dataclass(frozen=True)
class Settings:
    """The settings of a VirtualHome environment. Hashable: equal settings and seeds give equal episodes.

    max_steps: turns after which an episode is truncated.
    data: None for the tasks of the simulator's package; a folder with executable_programs and init_and_final_graphs; or an SPA-RL
        task file (.jsonl or .json), which needs `graphs`.
    graphs: for a task file, the folder of its initial graphs: init_and_final_graphs, or the base graphs of the seven apartments.
    scenes: for a task file without paths, a JSON file that lists the possible apartments of each task.
    goal: "graph": the program's changes, except CLOSE and FACING edges; "annotated": the goals of the Embodied Agent Interface
        (packaged tasks only).
    split_by: "task", or "title" to hold out titles that training never sees.
    split_seed: seeds the division into train and held_out.
    min_program, max_program: least and largest number of lines in a task's program; (1, None) for all tasks.
    titles: plays only tasks with one of these titles; empty for all.
    gold_memory: whether a name refers, from the start, to the same instance as in the task's own program.
    observation: "full" (SPA-RL's form) or "short" (a few words).
    show_room: whether a full observation begins with the room; a short one always does.
    success_reward: reward of the step that reaches the goal; other steps earn only `progress_reward`.
    progress_reward: reward per step = progress_reward · change of the share of the goal that is reached.
    turn_reward: whether steps have a turn reward, the change of the share of the goal that is reached.
    automaton: whether info has the state of an automaton that counts the parts of the goal that are not reached.
    admissible: the content of info["admissible"]: "none", "changes" (actions that change the home) or "all" (also look at, read …).
    short_expert: whether the expert skips lines of the program that the goal does not need.

    Raises ValueError that names the setting and its allowed values.
    """

    max_steps: int = 40
    data: str | None = None
    graphs: str | None = None
    scenes: str | None = None
    goal: str = "graph"
    split_by: str = "task"
    split_seed: int = 0
    min_program: int = 1
    max_program: int | None = None
    titles: tuple[str, ...] = ()
    gold_memory: bool = False
    observation: str = "full"
    show_room: bool = True
    success_reward: float = 1.0
    progress_reward: float = 0.0
    turn_reward: bool = False
    automaton: bool = False
    admissible: str = "none"
    short_expert: bool = False

    def __post_init__(self):
        for name, least in (("max_steps", 1), ("split_seed", 0), ("min_program", 1), ("max_program", 1)):
            value = getattr(self, name)
            if value is None and name == "max_program":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value!r}: give a whole number, at least {least}")
        if isinstance(self.titles, str) or not all(isinstance(title, str) for title in self.titles):
            raise ValueError(f"titles={self.titles!r}: give a tuple of titles")
        object.__setattr__(self, "titles", tuple(self.titles))
        for name in ("data", "graphs", "scenes"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, (str, os.PathLike)):
                raise ValueError(f"{name}={value!r}: give a path")
            object.__setattr__(self, name, str(value))
        for name, choices in (
            ("goal", ("graph", "annotated")),
            ("split_by", ("task", "title")),
            ("observation", ("full", "short")),
            ("admissible", ("none", "changes", "all")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: give one of {', '.join(choices)}")
        for name in ("success_reward", "progress_reward"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise ValueError(f"{name}={value!r}: give a number")
        for name in ("gold_memory", "show_room", "short_expert", "turn_reward", "automaton"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: give True or False")
        if self.goal == "annotated" and self.data is not None:
            raise ValueError(f"goal='annotated' works only with the simulator's own tasks, not with data={self.data!r}: leave `data` out")
        if self.data is None and (self.graphs is not None or self.scenes is not None):
            raise ValueError("`graphs` and `scenes` apply only to a task file: give `data` too")


PRESETS = {
    # For small models on a CPU: short programs of several actions, short observations, and a list of possible actions.
    "tiny": Settings(
        max_steps=12,
        max_program=12,
        titles=(
            "Browse internet",
            "Cook some food",
            "Drink",
            "Put groceries in Fridge",
            "Read book",
            "Wash dishes by hand",
            "Wash dishes with dishwasher",
            "Watch TV",
            "Work",
        ),
        gold_memory=True,
        observation="short",
        admissible="changes",
        short_expert=True,
    ),
    # iStar's success reward and verl-agent's list of actions; the iStar paper itself does not use VirtualHome.
    "istar": Settings(success_reward=10.0, admissible="changes", short_expert=True),
    # SPA-RL (arXiv 2505.20732): 40 steps, reward 0 or 1; names refer to the program's instances, as in its release.
    "spa": Settings(gold_memory=True, show_room=False),
}


def settings(preset: str = "tiny", **overrides) -> Settings:
    """Returns the settings of a preset, with the fields in `overrides` replaced.

    Raises ValueError for an unknown preset or field, and lists the known ones.
    """
    return settings_of("VirtualHome", PRESETS, preset, overrides)
