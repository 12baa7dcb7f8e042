"""Plays VirtualHome's own programs, as lines and as text actions, and measures the environment.

    python benchmarks/virtualhome_programs.py            # about two minutes on one core
    python benchmarks/virtualhome_programs.py --tasks 50

For the 518 packaged programs, it prints how many are executed and reach the final graph (except CLOSE and FACING edges), as lines
and as text actions, with and without preset instances of names; and how many annotated goals hold at the end. For each preset, it
prints the success of the expert and of uniformly random admissible actions, and the CPU time and memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from stepreward.envs.virtualhome import make, tasks
from stepreward.envs.virtualhome.game import Game, lines


def play(task, *, text: bool, memory: bool) -> tuple[bool, bool, int]:
    """Plays a task's program; returns (all lines executed, goal reached, number of actions that had to name a number)."""
    scene, goal = tasks.load(task)
    game = Game(scene, goal)
    at = game.start(dict(task.objects) if memory else None)
    numbered = 0
    for verb, ids in lines(task.program):
        said = game.say(at, verb, ids)
        numbered += "(" in said
        after = game.take(at, said) if text else game.do(at, verb, ids)
        if after is None:
            return False, not game.missing(at), numbered
        at = after
    return True, not game.missing(at), numbered


def programs(count: int | None) -> dict:
    """Plays every packaged program in three ways, and the programs of all annotated goals."""
    listed = tasks.packaged()[:count]
    found = {"programs": len(listed)}
    ways = (("lines", False, False), ("text", True, False), ("text_with_memory", True, True))
    totals = {name: [0, 0, 0] for name, _, _ in ways}
    for task in listed:
        for name, text, memory in ways:
            executed, reached, numbered = play(task, text=text, memory=memory)
            for index, value in enumerate((executed, reached, not numbered)):
                totals[name][index] += value
    for name, (executed, reached, bare) in totals.items():
        found[name] = {"executed": executed, "goal_reached": reached, "without_numbers": bare}
    noted = tasks.annotated()[:count]
    found["annotated"] = {"goals": len(noted), "satisfied": sum(play(task, text=True, memory=True)[1] for task in noted)}
    return found


def preset(name: str, episodes: int, **settings) -> dict:
    """Measures the success of the expert and, if actions are listed, of random play; and CPU milliseconds of a step and a reset."""
    environment = make(name, **settings)()
    generator = np.random.default_rng(0)
    solved, drawn, lengths, spent, steps, resets = 0, 0, [], 0.0, 0, 0.0
    listed = "admissible" in environment.capabilities
    for seed in range(episodes):
        began = time.process_time()
        _, info = environment.reset(seed=seed)
        resets += time.process_time() - began
        before = environment.snapshot()
        actions = environment.expert() or []
        lengths.append(len(actions))
        for action in actions:
            _, _, _, _, info = environment.step(action)
        solved += info["won"]
        if not listed:
            continue
        environment.restore(before)
        _, info = environment.reset(seed=seed)
        began, over = time.process_time(), False
        while not over:
            choices = info["admissible"]
            _, _, won, truncated, info = environment.step(choices[int(generator.integers(len(choices)))])
            steps, over = steps + 1, won or truncated
        spent += time.process_time() - began
        drawn += info["won"]
    found = {
        "tasks": {split: environment.num_tasks(split) for split in tasks.SPLITS},
        "expert_success": solved / episodes,
        "expert_mean_actions": round(float(np.mean(lengths)), 2),
        "reset_ms": round(1e3 * resets / episodes, 2),
    }
    if listed:
        found["uniform_success"] = drawn / episodes
        found["uniform_step_ms"] = round(1e3 * spent / steps, 3)
    return found


def speed(episodes: int) -> dict:
    """Measures CPU milliseconds of a step of preset "spa": in the first episode of a task, and in a later one."""
    environment = make("spa")()
    found = {}
    tasks.load.cache_clear()
    for again in ("first", "again"):
        spent, steps = 0.0, 0
        for seed in range(episodes):
            environment.reset(seed=seed)
            for verb, ids in lines(environment.task.program):
                text = environment.game.say(environment.at, verb, ids)
                began = time.process_time()
                _, _, won, truncated, _ = environment.step(text)
                spent, steps = spent + time.process_time() - began, steps + 1
                if won or truncated:
                    break
        found[f"step_ms_{again}"] = round(1e3 * spent / steps, 3)
    return found


def memory(count: int = 64) -> dict:
    """Measures the resident megabytes that an environment adds, if each plays its own task, and if all play the same one."""
    environments = [make("spa")() for _ in range(count)]
    tasks.load.cache_clear()
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for environment in environments:
        environment.reset(seed=0)
    same = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed, environment in enumerate(environments):
        environment.reset(seed=seed)
    apart = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "mb_each_one_task": round((same - start) / 1024 / count, 2),
        "mb_each_own_task": round((apart - start) / 1024 / count, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=None, help="play only this many packaged programs, from the first")
    parser.add_argument("--episodes", type=int, default=200, help="number of episodes for each preset")
    arguments = parser.parse_args()
    print(json.dumps({"memory": memory()}))
    print(json.dumps({"speed": speed(min(arguments.episodes, 60))}))
    for name in ("tiny", "istar", "spa"):
        print(json.dumps({name: preset(name, arguments.episodes)}), flush=True)
    print(json.dumps({"istar, annotated": preset("istar", arguments.episodes, goal="annotated", admissible="all")}), flush=True)
    print(json.dumps(programs(arguments.tasks)))


if __name__ == "__main__":
    main()
