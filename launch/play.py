"""Shows a trained agent at work in the terminal: each step with the credit that it gets.

    stepreward play                                  # lists the agents that come with the package
    stepreward play sokoban [--task-seed=7] [--episodes=3]
    stepreward play runs/istar_sokoban [--step=120]

The agent is one that comes with the package, the workdir of a run, or a folder that `stepreward export` wrote. See docs/play.md.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import time
from collections.abc import Sequence

from stepreward.config import Option, parse_arguments
from stepreward.errors import UserError, launcher

AGENT = Option("agent", "an agent that comes with the package, the workdir of a run, or an exported folder")
OPTIONS = (
    Option("task-seed", "the environment's seed of the first task, as reports show it (default: an example of the agent, or 0)", type=int),
    Option("episodes", "tasks to play, with seeds that follow each other", default=1, type=int),
    Option("split", "tasks of this split", default="held_out", choices=("held_out", "train")),
    Option("seed", "seed for sampling the agent's answers", default=0, type=int),
    Option("environment", "the environment, in a run of several (default: the first)"),
    Option("step", "checkpoint of a run (default: the latest)", type=int),
    Option("speed", "steps a second, in a terminal", default=2.0, type=float),
    Option("no-pause", "show all steps at once", default=False, type=bool),
)

LEGEND = (
    "step reward: what the credit method gives the step",
    "advantage: what the policy would be trained with; most methods compare the attempts at the task",
    "exact advantage: the change of the chance to solve the task, where the environment knows its transitions",
)


def main() -> int | None:
    options = parse_arguments(sys.argv[1:], description=__doc__, options=OPTIONS, positional=AGENT)
    if options.episodes < 1:
        raise UserError(f"--episodes={options.episodes}: give at least 1")
    if not 0 < options.speed < math.inf:
        raise UserError(f"--speed={options.speed:g}: give a positive number of steps a second, or --no-pause")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # boards have symbols that not every encoding has
    from stepreward.agents import catalogue

    if options.agent is None:
        return listing(catalogue.shipped())
    catalogue.find(options.agent)  # a wrong name is an error before jax is imported
    return show(options)


def show(options) -> int:
    """Plays the tasks, and prints each step with its credit; in a terminal, step by step."""
    from rich.console import Console

    from stepreward.agents.catalogue import stated_words

    console = Console(highlight=False, soft_wrap=False)
    live = console.is_terminal and not console.is_dumb_terminal
    pause = 0.0 if options.no_pause or not live else 1.0 / options.speed
    with console.status("loading the agent and compiling its programs") if live else contextlib.nullcontext():
        from stepreward.agents.agent import Agent

        agent = Agent(options.agent, step=options.step)
        seeds = task_seeds(options, agent.examples)
        play = lambda seed: agent.play(seed, split=options.split, sampling=options.seed, environment=options.environment)
        episode = play(seeds[0])
    won, attempts, solved = 0, 0, 0
    with agent:
        for number, seed in enumerate(seeds):
            episode = play(seed) if number else episode
            if live:
                for part in episode.renderables():
                    console.print(part)
                    time.sleep(pause)
            else:
                print(episode)
            print()
            won, attempts, solved = won + episode.success, attempts + episode.attempts, solved + episode.solved
    tasks = f"{options.episodes} task{'s' if options.episodes > 1 else ''}"
    lines = [f"{agent.name}: {won} of {tasks} solved at the first attempt, {solved} of {attempts} attempts in all", *LEGEND]
    if agent.stated:
        lines.append(f"stated success: {stated_words(agent.stated)}; stepreward evaluate {options.agent} measures it")
    for number, line in enumerate(lines):
        console.print(line, style="dim" if number else None, markup=False, soft_wrap=not live)
    return 0


def task_seeds(options, examples: Sequence[int]) -> list[int]:
    """The seeds of the tasks: those after --task-seed, or else the agent's examples and then the seeds from 0."""
    if options.task_seed is not None:
        return list(range(options.task_seed, options.task_seed + options.episodes))
    first = list(examples) if options.split == "held_out" and not options.seed else []
    others = (seed for seed in itertools.count() if seed not in first)
    return [*first, *itertools.islice(others, options.episodes)][: options.episodes]


def listing(agents: dict) -> int:
    """Prints the agents that come with the package."""
    from stepreward.agents.catalogue import read_facts, stated_words

    print("agents that come with the package:")
    for name, folder in agents.items():
        facts = read_facts(folder)
        config, stated = facts["config"], facts.get("stated")
        success = f", success {stated_words(stated)}" if stated else ""
        print(f"  {name:12} {config['credit']['method']} on {config['environment']['name']}{success}")
    print("play one with `stepreward play NAME`, or one of your own with `stepreward play WORKDIR`")
    return 0


if __name__ == "__main__":
    launcher(main)
