"""Measures `stepreward.envs.alfworld` on generated games: success rates of the experts and of uniformly random play, and speed.

python benchmarks/alfworld_generated.py [--preset tiny] [--games 200] [--split train] [--players explorer oracle random]
"""

from __future__ import annotations

import argparse
import collections
import resource
import time

import numpy as np

from stepreward.envs import alfworld
from stepreward.envs.alfworld.explorer import asked_for


def play(player: str, preset: str, games: int, split: str) -> str:
    """Plays seeds 0 … games − 1; returns a line with the results by task type."""
    environment = alfworld.make(preset, expert="oracle" if player == "oracle" else "explorer")()
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(0)))
    won: dict[str, list[int]] = collections.defaultdict(list)
    lengths, turns, starting, stepping = [], 0, 0.0, 0.0
    for seed in range(games):
        clock = time.process_time()
        _, info = environment.reset(seed=seed, options={"split": split})
        starting += time.process_time() - clock
        actions = None if player == "random" else environment.expert()
        count, over = 0, actions == []
        clock = time.process_time()
        while not over and (player == "random" or count < len(actions or ())):
            listed = info["admissible"]
            action = listed[int(generator.integers(len(listed)))] if player == "random" else actions[count]
            _, _, terminated, truncated, info = environment.step(action)
            count, over = count + 1, terminated or truncated
        stepping += time.process_time() - clock
        turns += count
        won[_kind(info["task"])].append(int(info["won"]))
        if info["won"]:
            lengths.append(count)
    environment.close()
    total = sum(map(sum, won.values()))
    kinds = ", ".join(f"{kind} {sum(each)}/{len(each)}" for kind, each in sorted(won.items()))
    mean = f"mean {np.mean(lengths):.1f}, longest {max(lengths)} actions" if lengths else "none"
    return (
        f"{player}: {total} of {games} ({total / games:.3f}; {kinds}), {mean}; a new game {starting / games:.3f} s, "
        f"{turns / max(stepping, 1e-9):.0f} steps/s"
    )


def _kind(task: str) -> str:
    asked = asked_for(task)
    return asked.change or ("look" if asked.lamp else "two" if asked.two else "put")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="tiny", choices=tuple(alfworld.PRESETS))
    parser.add_argument("--games", type=int, default=200)
    parser.add_argument("--split", default="train", choices=("train", "held_out"))
    parser.add_argument("--players", nargs="+", default=["explorer", "oracle", "random"])
    arguments = parser.parse_args()
    for player in arguments.players:
        print(play(player, arguments.preset, arguments.games, arguments.split), flush=True)
    print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB; times are CPU seconds")


if __name__ == "__main__":
    main()
