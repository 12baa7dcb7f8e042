"""What a VirtualHome environment plays and pays, by name."""

from __future__ import annotations

import os
from dataclasses import dataclass

from stepreward.envs.choosing import settings_of


@dataclass(frozen=True)
class Settings:
    """The settings of a VirtualHome environment. Hashable: equal settings and seeds give equal episodes.

    max_steps: turns after which an episode is truncated.
    data: None for the tasks that come with the simulator; a folder of executable_programs and init_and_final_graphs; or an SPA-RL
        task file (.jsonl or .json), which needs `graphs`.
    graphs: for a task file, the folder of its first graphs: init_and_final_graphs, or the seven apartments' base graphs.
    scenes: for a task file without paths, a JSON file that lists the apartments that fit each task.
    goal: "graph": what the program changed, CLOSE and FACING edges left out; "annotated": the goals of the Embodied Agent
        Interface (packaged tasks only).
    split_by: "task", or "title" to hold out titles that training never sees.
    split_seed: another number, another division.
    min_program, max_program: only tasks whose program has so many lines; (1, None) for all.
    titles: only tasks with one of these titles; empty for all.
    gold_memory: from the start, a name means the instance that the task's own program means by it.
    observation: "full" (SPA-RL's form) or "short" (a few words).
    show_room: begin a full observation with the room (a short one always does).
    success_reward: reward of the step that reaches the goal; every other step has 0, but for `progress_reward`.
    progress_reward: reward for a change of the share of the goal that is reached, times that change.
    admissible: what info["admissible"] lists: "none", "changes" (actions that change the home) or "all" (also look at, read …).
    short_expert: the expert leaves out the lines of the program that the goal can do without.

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
        for name in ("gold_memory", "show_room", "short_expert"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: give True or False")
        if self.goal == "annotated" and self.data is not None:
            raise ValueError('goal="annotated" is for the tasks that come with the simulator: leave `data` out')
        if self.data is None and (self.graphs is not None or self.scenes is not None):
            raise ValueError("`graphs` and `scenes` belong to a task file: give `data` too")


PRESETS = {
    # Short programs for small models on a CPU: titles that take several actions, few words in, a list of what can be done.
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
    # iStar's reward for a finished task, with verl-agent's list of actions; iStar itself does not play VirtualHome.
    "istar": Settings(success_reward=10.0, admissible="changes", short_expert=True),
    # SPA-RL (arXiv 2505.20732): 40 steps, 0/1, and its release's memory of the right instances.
    "spa": Settings(gold_memory=True, show_room=False),
}


def settings(preset: str = "tiny", **overrides) -> Settings:
    """Returns the settings of a preset, with the fields in `overrides` replaced.

    Raises ValueError for an unknown preset or field, and lists the known ones.
    """
    return settings_of("VirtualHome", PRESETS, preset, overrides)
