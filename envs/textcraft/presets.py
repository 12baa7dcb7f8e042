"""Named settings: goals, rewards and limits."""

from __future__ import annotations

from dataclasses import dataclass

from stepreward.envs.choosing import settings_of

DEPTHS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Settings:
    """The settings of a TextCraft environment. Hashable: equal settings and seeds give equal episodes.

    max_steps: turns after which an episode is truncated. The benchmark itself has no limit.
    depths: the depths of the goals, from 1 to 4. The benchmark plays 2, 3 and 4.
    max_plan: largest number of actions in the expert's plan for a goal; None for all goals.
    max_recipes: largest number of recipes that lead to a goal; None for all goals.
    split_seed: seeds the division of the goals into train and held_out.
    distractors: most recipes that are shown although the goal does not need them; 10 in the benchmark.
    observation: "full" (the benchmark's answers) or "short" (what is held, after every turn).
    admissible: the content of info["admissible"]: "none", or "recipes" (what the shown recipes allow now).
    success_reward: reward of the step that crafts the goal; every other step earns 0.
    turn_reward: whether info has turn_reward, the share of the needed items that the step obtained for the first time.

    Raises ValueError that names the setting and its allowed values.
    """

    max_steps: int = 20
    depths: tuple[int, ...] = (2, 3, 4)
    max_plan: int | None = None
    max_recipes: int | None = None
    split_seed: int = 0
    distractors: int = 10
    observation: str = "full"
    admissible: str = "none"
    success_reward: float = 1.0
    turn_reward: bool = False

    def __post_init__(self):
        for name, least in (("max_steps", 1), ("max_plan", 2), ("max_recipes", 1), ("split_seed", 0), ("distractors", 0)):
            value = getattr(self, name)
            if value is None and name in ("max_plan", "max_recipes"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value!r}: give a whole number, at least {least}")
        if not isinstance(self.depths, (tuple, list)) or not self.depths or any(depth not in DEPTHS for depth in self.depths):
            raise ValueError(f"depths={self.depths!r}: give a tuple of depths from {', '.join(map(str, DEPTHS))}")
        object.__setattr__(self, "depths", tuple(sorted(set(self.depths))))
        for name, choices in (("observation", ("full", "short")), ("admissible", ("none", "recipes"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: give one of {', '.join(choices)}")
        if not isinstance(self.success_reward, (int, float)) or isinstance(self.success_reward, bool):
            raise ValueError(f"success_reward={self.success_reward!r}: give a number")
        if not isinstance(self.turn_reward, bool):
            raise ValueError(f"turn_reward={self.turn_reward!r}: give True or False")


PRESETS = {
    # For small models on a CPU: goals of two to five actions, few recipes, and what is held in every observation.
    "tiny": Settings(max_steps=10, depths=(1, 2), max_plan=5, max_recipes=4, distractors=2, observation="short", admissible="recipes"),
    # iStar's success reward and verl-agent's list of actions; the iStar paper itself does not use TextCraft.
    "istar": Settings(admissible="recipes", success_reward=10.0),
    # AgentPRM (arXiv 2511.08325): 20 turns, reward 0 or 1, the benchmark's own texts.
    "spa": Settings(),
}


def settings(preset: str = "tiny", **overrides) -> Settings:
    """Returns the settings of a preset, with the fields in `overrides` replaced.

    Raises ValueError for an unknown preset or field, and lists the known ones.
    """
    return settings_of("TextCraft", PRESETS, preset, overrides)
