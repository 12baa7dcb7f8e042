"""Measures an agent on the held-out tasks, and compares the result with the success that the agent states."""

from __future__ import annotations

import jax

from stepreward.agents import loading
from stepreward.agents.catalogue import PRM, Place, read_facts, stated_words
from stepreward.errors import UserError
from stepreward.training.evaluate import check_arguments, evaluate_model, evaluate_workdir


def evaluate_agent(place: Place, episodes: int, step: int | None, which: str, seed: int) -> int:
    """Plays held-out episodes with an agent and prints the success rate with its 95 % interval.

    Args:
      place: where the agent is.
      episodes: the number of tasks.
      step: of a run, the tick of the checkpoint; None is the latest.
      which: "policy", "prm", or of a run "initial".
      seed: the seed of the sampled answers; it does not change the tasks.

    Returns:
      The exit code: 0.

    Raises:
      UserError, FileNotFoundError, ValueError: an argument is out of range, or the agent cannot be used.
    """
    if place.kind == "run":
        return evaluate_workdir(place.path, episodes, step, which, seed)
    check_arguments(episodes, seed)
    if step is not None:
        raise UserError(f"--step={step}: {place.name!r} has no checkpoints, so leave the flag out")
    if which == "initial" or (which == PRM and not (place.path / PRM).is_dir()):
        raise UserError(f"--which={which}: {place.name!r} does not hold this model")
    facts = read_facts(place.path)
    stated, counters = facts.get("stated"), facts.get("counters") or {}
    about = [("agent", f"{place.name} ({counters.get('env_steps', 0):,} environment steps), {which}")]
    if stated and which == "policy":
        about.append(("stated", f"{stated_words(stated)}, with jax {stated['jax']}"))
        same = jax.__version__ == stated["jax"] and (episodes, seed) == (stated["episodes"], 0)
        if not same:
            about.append(("", "other versions of jax, other processors and other numbers of tasks give another figure within the interval"))
    return evaluate_model(loading.load_player(place, which), about, episodes, seed)
