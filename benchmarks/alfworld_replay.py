"""Replays the recorded trajectories of the benchmark's training games in `stepreward.envs.alfworld`.

    python benchmarks/alfworld_replay.py FOLDER [--games 200] [--seed 0] [--split train]

FOLDER contains the packed games (train.jsonl.xz and the domains) or json_2.1.1. For a sample of games, it prints the share that the
recorded actions win within 1,000, 50 and 40 turns, and the shares that the exploring expert and the oracle win within 50. It also
prints the CPU seconds of a step, of a new game and of a repeated one.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from stepreward.envs import alfworld


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--games", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="train", choices=("train", "held_out"))
    arguments = parser.parse_args()

    started = time.process_time()
    environments = {
        expert: alfworld.make("istar", data=arguments.folder, expert=expert, max_steps=turns)()
        for expert, turns in (("recorded", 1000), ("explorer", 50), ("oracle", 50))
    }
    total = environments["recorded"].num_tasks(arguments.split)
    print(f"{total} games in {arguments.split}, read in {time.process_time() - started:.1f} CPU seconds")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(arguments.seed)))
    chosen = rng.permutation(total)[: arguments.games].tolist()

    won: dict[str, list[int]] = {name: [] for name in environments}
    new = again = steps = stepping = 0.0
    for index in chosen:
        for name, environment in environments.items():
            clock = time.process_time()
            environment.reset(seed=index, options={"split": arguments.split})
            new += (time.process_time() - clock) * (name == "recorded")
            if name == "recorded":
                clock = time.process_time()
                environment.reset(seed=index, options={"split": arguments.split})
                again += time.process_time() - clock
            actions = environment.expert()
            clock, info = time.process_time(), {"won": False}
            for action in actions or ():
                _, _, terminated, truncated, info = environment.step(action)
                steps += 1
                if terminated or truncated:
                    break
            stepping += time.process_time() - clock
            if info["won"]:
                won[name].append(len(actions))
    count = len(chosen)
    for name, lengths in won.items():
        if lengths:
            print(
                f"{name}: won {len(lengths)} of {count} ({len(lengths) / count:.3f}), mean {np.mean(lengths):.1f} actions, "
                f"within 40: {sum(n <= 40 for n in lengths)}, within 50: {sum(n <= 50 for n in lengths)}"
            )
        else:
            print(f"{name}: won none of {count}")
    print(
        f"a new game {new / count:.2f} s, the same again {again / count:.3f} s, step {1000 * stepping / max(steps, 1):.1f} ms, "
        f"{steps / max(stepping, 1e-9):.0f} steps/s (CPU seconds)"
    )
    for environment in environments.values():
        environment.close()


if __name__ == "__main__":
    main()
