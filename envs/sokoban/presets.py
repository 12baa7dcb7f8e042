"""Named settings: the rooms and limits of published experiments."""

from __future__ import annotations

from dataclasses import dataclass

from stepreward.envs.choosing import settings_of


@dataclass(frozen=True)
class Settings:
    """The settings of a Sokoban environment. Hashable: equal settings and seeds give equal rooms.

    height, width: size of the board in cells, including its outer wall.
    boxes: number of boxes, and of targets.
    max_steps: turns after which an episode is truncated.
    search_depth: depth limit of the generator's reverse play; as in gym-sokoban, it allows search_depth − 2 moves.
    search_states: maximum number of states in one reverse play.
    min_moves, max_moves: accepted lengths of the shortest solution, in moves; (0, None) accepts every room.
    attempts: rooms to try for one seed before an error.
    observation: "text", or "image" for text and an RGB picture.
    invalid_reward: reward of a turn without a known action.
    data: file or folder of Boxoban levels to play instead of generated rooms. Only max_steps, observation, invalid_reward,
        events, turn_reward and automaton apply to them.
    events: whether steps name their events. It is a choice because it would slow down a step of a microsecond by a quarter.
    turn_reward: whether steps have a turn reward, the change of the share of boxes that are on targets.
    automaton: whether info has the state of an automaton that counts the boxes that are not on targets.

    Raises ValueError that names the setting and its allowed values.
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
    events: bool = False
    turn_reward: bool = False
    automaton: bool = False

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
        for name in ("events", "turn_reward", "automaton"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: give True or False")
        if 2 * self.boxes + 1 > (self.height - 2) * (self.width - 2):
            raise ValueError(f"boxes={self.boxes}: too many for the inside of a {self.height}x{self.width} room; enlarge the room")


PRESETS = {
    # iStar's rooms, without those that three moves solve and the few with very long solutions.
    "tiny": Settings(min_moves=4, max_moves=12),
    "tiny_image": Settings(min_moves=4, max_moves=12, observation="image"),
    # iStar (arXiv 2509.19199): 6x6, one box, 15 steps.
    "istar": Settings(),
    "istar_image": Settings(observation="image"),
    # RAGEN (arXiv 2504.20073): its environments end after 100 steps, but its trajectories after ten actions.
    "ragen": Settings(max_steps=10, search_depth=300),
    "ragen_large": Settings(height=8, width=8, boxes=2, max_steps=10, search_depth=10),
    # The size used by Racanière et al. (2017) and by Boxoban.
    "large": Settings(height=10, width=10, boxes=4, max_steps=120, search_depth=300),
}


def settings(preset: str = "tiny", **overrides) -> Settings:
    """Returns the settings of a preset, with the fields in `overrides` replaced.

    Raises ValueError for an unknown preset or field, and lists the known ones.
    """
    return settings_of("Sokoban", PRESETS, preset, overrides)
