"""The rooms and limits of the published experiments, by name."""

from __future__ import annotations

from dataclasses import dataclass

from stepreward.envs.choosing import settings_of


@dataclass(frozen=True)
class Settings:
    """What a Sokoban environment plays. Hashable: equal settings and seeds give equal rooms.

    height, width: the board with its outer wall, in cells.
    boxes: how many boxes, and targets.
    max_steps: turns after which an episode is truncated.
    search_depth: depth budget of the generator's reverse play; as in gym-sokoban it spends two more than its moves.
    search_states: states that one reverse play may visit.
    min_moves, max_moves: accepted lengths of the shortest solution, in moves; (0, None) accepts every room.
    attempts: rooms tried for one seed before giving up.
    observation: "text", or "image" for text and an RGB picture.
    invalid_reward: reward of a turn whose output held no known action.
    data: file or folder of Boxoban levels to play, as they are, instead of generated rooms: of the settings then only
        max_steps, observation and invalid_reward apply.

    Raises ValueError that names the setting and what it may be.
    """

    height: int = 6
    width: int = 6
    boxes: int = 1
    max_steps: int = 15
    search_depth: int = 30
    search_states: int = 10_000
    min_moves: int = 0
    max_moves: int | None = None
    attempts: int = 10_000
    observation: str = "text"
    invalid_reward: float = -0.1
    data: str | None = None

    def __post_init__(self):
        for name, least in (("height", 4), ("width", 4), ("boxes", 1), ("max_steps", 1), ("search_depth", 3),
                            ("search_states", 2), ("min_moves", 0), ("attempts", 1)):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value!r}: give a whole number, at least {least}")
        if self.max_moves is not None and (not isinstance(self.max_moves, int) or self.max_moves < self.min_moves):
            raise ValueError(f"max_moves={self.max_moves!r}: give a whole number, at least min_moves={self.min_moves}")
        if self.observation not in ("text", "image"):
            raise ValueError(f'observation={self.observation!r}: give "text" or "image"')
        if 2 * self.boxes + 1 > (self.height - 2) * (self.width - 2):
            raise ValueError(f"boxes={self.boxes}: too many for the inside of a {self.height}x{self.width} room")


PRESETS = {
    # iStar's room, without the rooms that three moves solve and the few very long ones.
    "tiny": Settings(min_moves=4, max_moves=12),
    "tiny_image": Settings(min_moves=4, max_moves=12, observation="image"),
    # iStar (arXiv 2509.19199): 6x6, one box, 15 steps.
    "istar": Settings(),
    "istar_image": Settings(observation="image"),
    # RAGEN (arXiv 2504.20073): its environments end after 100 steps, but its trajectories after ten actions.
    "ragen": Settings(max_steps=10, search_depth=300),
    "ragen_large": Settings(height=8, width=8, boxes=2, max_steps=10, search_depth=10),
    # The size of Racanière et al. (2017) and of Boxoban.
    "large": Settings(height=10, width=10, boxes=4, max_steps=120, search_depth=300),
}


def settings(preset: str = "tiny", **overrides) -> Settings:
    """The settings of a preset, with `overrides` replacing fields of Settings.

    Raises ValueError that lists the presets, or the fields, when a name is unknown.
    """
    return settings_of("Sokoban", PRESETS, preset, overrides)
