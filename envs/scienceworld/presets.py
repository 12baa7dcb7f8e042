"""Named settings: tasks, rewards and limits."""

from __future__ import annotations

import os
from dataclasses import dataclass

from stepreward.envs.choosing import settings_of

# All tasks of the simulator, in its order, which is that of RLVMR's task numbers.
TASK_NAMES = (
    "boil", "change-the-state-of-matter-of", "chemistry-mix", "chemistry-mix-paint-secondary-color", "chemistry-mix-paint-tertiary-color",
    "find-animal", "find-living-thing", "find-non-living-thing", "find-plant", "freeze", "grow-fruit", "grow-plant",
    "identify-life-stages-1", "identify-life-stages-2", "inclined-plane-determine-angle", "inclined-plane-friction-named-surfaces",
    "inclined-plane-friction-unnamed-surfaces", "lifespan-longest-lived", "lifespan-longest-lived-then-shortest-lived",
    "lifespan-shortest-lived", "measure-melting-point-known-substance", "measure-melting-point-unknown-substance", "melt",
    "mendelian-genetics-known-plant", "mendelian-genetics-unknown-plant", "power-component",
    "power-component-renewable-vs-nonrenewable-energy", "test-conductivity", "test-conductivity-of-unknown-substances", "use-thermometer",
)  # fmt: skip
SIMPLIFICATIONS = ("easy", "teleportAction", "selfWateringFlowerPots", "openContainers", "openDoors", "noElectricalAction")


@dataclass(frozen=True)
class Settings:
    """The settings of a ScienceWorld environment. Hashable.

    max_steps: turns after which an episode is truncated. The simulator's own limit counts moves, and some actions are free of them.
    tasks: names of the tasks to play; empty for all 30.
    held_out_tasks: names of the held-out split's tasks; empty for those of `tasks`. Other names hold out whole tasks.
    held_out: the benchmark's split whose variations are held out: "test" or "dev".
    data: None, or a JSON file {"train": [[task number, variation], …], "test": […]} as RLVMR's, which replaces the three above.
    simplifications: names from `SIMPLIFICATIONS`, separated by commas; "easy" stands for all of them, "" for none.
    reward: "score", the change of the benchmark's score divided by 100; or "success", 10 for the step that reaches score 100.
    observation: "full" (the simulator's answers), or "short" (on one line, without air and the agent).
    admissible: the content of info["admissible"]: "none", or "valid" (the simulator's list, often more than 1,000 actions).
    turn_reward: whether info has turn_reward, the change of the score divided by 100.
    short_expert: whether the expert leaves out refused actions and looks of the gold path, where it wins without them.
    memory_mb: most memory of the Java heap, in MiB.

    Raises ValueError that names the setting and its allowed values.
    """

    max_steps: int = 30
    tasks: tuple[str, ...] = ()
    held_out_tasks: tuple[str, ...] = ()
    held_out: str = "test"
    data: str | None = None
    simplifications: str = "easy"
    reward: str = "score"
    observation: str = "full"
    admissible: str = "none"
    turn_reward: bool = False
    short_expert: bool = False
    memory_mb: int = 1024

    def __post_init__(self):
        for name, least in (("max_steps", 1), ("memory_mb", 64)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value!r}: give a whole number, at least {least}")
        for name in ("tasks", "held_out_tasks"):
            value = getattr(self, name)
            listed = isinstance(value, (tuple, list))
            if not listed or any(task not in TASK_NAMES for task in value):
                wrong = next(task for task in value if task not in TASK_NAMES) if listed else value
                raise ValueError(f"{name}: give a tuple of tasks, not {wrong!r}; the tasks are {', '.join(TASK_NAMES)}")
            object.__setattr__(self, name, tuple(value))
        if self.data is not None:
            if not isinstance(self.data, (str, os.PathLike)):
                raise ValueError(f"data={self.data!r}: give a path")
            if self.tasks or self.held_out_tasks:
                raise ValueError(f"data={self.data!r} lists the tasks of both splits: give it with tasks=() and held_out_tasks=()")
            object.__setattr__(self, "data", str(self.data))
        unknown = [each for each in str(self.simplifications).split(",") if each and each not in SIMPLIFICATIONS]
        if unknown or not isinstance(self.simplifications, str):
            raise ValueError(f"simplifications={self.simplifications!r}: give some of {', '.join(SIMPLIFICATIONS)}, separated by commas")
        for name, choices in (
            ("held_out", ("test", "dev")),
            ("reward", ("score", "success")),
            ("observation", ("full", "short")),
            ("admissible", ("none", "valid")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: give one of {', '.join(choices)}")
        for name in ("turn_reward", "short_expert"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: give True or False")


PRESETS = {
    # For small models on a CPU: four tasks that take five to ten actions, in short texts.
    "tiny": Settings(
        max_steps=15,
        tasks=("find-animal", "find-living-thing", "find-non-living-thing", "find-plant"),
        observation="short",
        short_expert=True,
    ),
    # RLVMR (arXiv 2507.22844), with verl-agent's reward: 30 turns, all simplifications, 10 for a success.
    "istar": Settings(reward="success", short_expert=True),
    # The score as the reward, as in the experiments with ReAct prompts.
    "spa": Settings(),
}


def settings(preset: str = "tiny", **overrides) -> Settings:
    """Returns the settings of a preset, with the fields in `overrides` replaced.

    Raises ValueError for an unknown preset or field, and lists the known ones.
    """
    return settings_of("ScienceWorld", PRESETS, preset, overrides)
