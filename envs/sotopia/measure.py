"""Measures the goal scores of the scripted player and of random play in the embedded world.

python -m stepreward.envs.sotopia.measure tiny
"""

from __future__ import annotations

import sys
import time

import numpy as np

from stepreward.envs.sotopia.env import SocialEnv
from stepreward.envs.sotopia.presets import Settings, settings

PLAYERS = ("expert", "random")


def play(chosen: Settings, player: str = "expert", tasks: int = 200, seed: int = 0, split: str = "held_out") -> dict[str, float]:
    """Returns means over `tasks` tasks: goal (0 … 10), success (share of goals over 6), turns per episode, steps per CPU second.

    player: "expert", or "random", which draws uniformly from the admissible actions. Task n has the seed `seed` + n. Raises
    ValueError for another player.
    """
    if player not in PLAYERS:
        raise ValueError(f"player={player!r}: give {' or '.join(PLAYERS)}")
    environment = SocialEnv(chosen)
    generator = np.random.Generator(np.random.PCG64(seed))
    goals, steps, begin = [], 0, time.process_time()
    for task in range(seed, seed + tasks):
        _, info = environment.reset(seed=task, options={"split": split})
        plan = iter(environment.expert() if player == "expert" else ())
        while "dimensions" not in info:
            admissible = info["admissible"]
            action = next(plan) if player == "expert" else admissible[int(generator.integers(len(admissible)))]
            *_, info = environment.step(action)
            steps += 1
        goals.append(info["dimensions"]["goal"])
    seconds = time.process_time() - begin
    won = sum(goal > 6 for goal in goals)
    return {"goal": sum(goals) / tasks, "success": won / tasks, "turns": steps / tasks, "steps_per_s": steps / seconds}


if __name__ == "__main__":
    for name in sys.argv[1:] or ["tiny", "istar"]:
        for who in PLAYERS:
            print(name, who, " ".join(f"{key} {value:.3f}" for key, value in play(settings(name), who).items()))
