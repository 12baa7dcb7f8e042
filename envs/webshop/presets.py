"""Named settings: the shops and limits of published experiments."""

from __future__ import annotations

from dataclasses import dataclass

from stepreward.envs.choosing import settings_of

OBSERVATIONS = ("text", "text_rich", "stripped", "compact")
REWARDS = ("score", "success")


@dataclass(frozen=True)
class Settings:
    """The settings of a WebShop environment. Hashable.

    data: folder with the benchmark's files; None for the embedded catalogue.
    goals: "synthetic" (made from the catalogue), "human" (written by people), or "auto": human with the full catalogue,
        synthetic otherwise.
    seed: seeds the prices that are ranges and the goals' price limits. Those copies of the benchmark that set a seed use 42.
    held_out: number of the shuffled goals, from the first, in the held-out split; the others form the train split.
    train_indices, held_out_indices: JSON files with lists of goal indices that replace these splits; set both or none.
    max_steps: turns after which an episode is truncated.
    reward: "score", the benchmark's reward of the purchase in [0, 1]; or "success", 10 if that is 1 and 0 otherwise.
    turn_reward: whether steps have a turn reward, the change of the score that a purchase would have.
    automaton: whether info has the state of the automaton in subgoals.py: search, open a product, choose its options, buy.
    observation: "text" or "text_rich", as in the benchmark; "stripped", the text after the instruction in quotes, as in
        verl-agent; "compact", a few short lines, for small models.
    hits, page_size: maximum number of hits of a search, and number of hits per page.
    show_attributes: whether items have the fourth sub page, which lists the attributes.

    Raises ValueError that names the setting and its allowed values.
    """

    data: str | None = None
    goals: str = "auto"
    seed: int = 42
    held_out: int = 500
    train_indices: str | None = None
    held_out_indices: str | None = None
    max_steps: int = 10
    reward: str = "score"
    turn_reward: bool = False
    automaton: bool = False
    observation: str = "text"
    hits: int = 50
    page_size: int = 10
    show_attributes: bool = False

    def __post_init__(self):
        for name, least in (("seed", 0), ("held_out", 1), ("max_steps", 1), ("hits", 1), ("page_size", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value!r}: give a whole number, at least {least}")
        for name, known in (("goals", ("auto", "synthetic", "human")), ("reward", REWARDS), ("observation", OBSERVATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: give one of {', '.join(known)}")
        for name in ("turn_reward", "automaton"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: give True or False")
        if (self.train_indices is None) != (self.held_out_indices is None):
            raise ValueError(f"train_indices={self.train_indices!r}, held_out_indices={self.held_out_indices!r}: give both or none")


PRESETS = {
    # The embedded shop in the compact form; five hits per page keep a page of results short enough for a small model.
    "tiny": Settings(observation="compact", max_steps=8, hits=20, page_size=5),
    # iStar (arXiv 2509.19199), with verl-agent's environment: synthetic goals, 10 for a perfect purchase.
    "istar": Settings(goals="synthetic", observation="stripped", reward="success"),
    # SPA-RL (arXiv 2505.20732): the benchmark's own reward; human goals with the full catalogue.
    "spa": Settings(),
}


def settings(preset: str = "tiny", **overrides) -> Settings:
    """Returns the settings of a preset, with the fields in `overrides` replaced.

    Raises ValueError for an unknown preset or field, and lists the known ones.
    """
    return settings_of("WebShop", PRESETS, preset, overrides)
