"""Where a run stands: its phases, and what it has counted."""

from __future__ import annotations

import dataclasses

# The phases in order, and the stage that each belongs to.
PHASES = {
    "sft": "sft", "start": "sft", "explore": "explore", "estimator": "estimator", "prm": "train", "rl": "train",
    "evaluate": "evaluate", "done": None,
}  # fmt: skip


@dataclasses.dataclass
class Counters:
    """Where a run stands; saved as JSON."""

    phase: str = "sft"
    tick: int = 0
    sft_updates: int = 0
    taken: list = dataclasses.field(default_factory=list)  # phases whose output was there
    explored_parts: int = 0
    explored_steps: int = 0
    estimator_epochs: int = 0
    prm_batches: int = 0
    iteration: int = 0
    env_steps: int = 0
    failed_episodes: int = 0
    wall_s: float = 0.0
