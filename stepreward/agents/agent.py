"""A trained agent: plays tasks, and computes the credit of its steps as its run would have."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from stepreward.agents import catalogue, loading
from stepreward.agents.episode import CreditedEpisode
from stepreward.errors import UserError, describe, is_expected
from stepreward.metrics import Success
from stepreward.rollout.episode import Task, to_record
from stepreward.rollout.strategies import Rollout
from stepreward.training import setup, streams
from stepreward.training.evaluate import check_arguments, play_held_out
from stepreward.training.playing import pack_rollout


class Agent:
    """A trained agent, ready to play. `stepreward.load` makes one.

    Attributes:
      name: the agent's name, or that of its folder.
      path: its folder.
      stated: the measured success that a shipped agent states, as a dict; None if nobody measured it.
      examples: seeds of held-out tasks that a shipped agent solves in some attempts and not in others.
    """

    def __init__(self, source: str | Path = "sokoban", *, step: int | None = None):
        with clear_errors():
            self._place = catalogue.find(source)
            self.name, self.path, self._step = self._place.name, self._place.path, step
            self._loaded = loading.load(self._place, step)
            self.stated = self._loaded.facts.get("stated")
            self.examples = tuple(self._loaded.facts.get("examples") or ())
            learner = self._loaded.learner
            self._player = learner.parts.collector.player(learner.actor, score_answers=setup.scores_answers(learner.method))

    @property
    def config(self) -> ConfigDict:
        """The config of the agent's run, with one group of episodes at a time."""
        return self._loaded.config

    @property
    def method(self) -> str:
        """The credit method of the agent's run."""
        return self.config.credit.method

    def __repr__(self) -> str:
        return f"Agent({self.name!r}: {self.method} on {self.config.environment.name})"

    def play(self, seed: int = 0, *, split: str = "held_out", sampling: int = 0, environment: str | None = None) -> CreditedEpisode:
        """Plays one task and returns the episode with the credit of each step.

        Most credit methods compare several attempts at one task. The agent therefore plays the task `rollout.group_size` times, as in
        training, and the first attempt is returned. The same arguments give the same episode.

        Args:
          seed: the environment's seed of the task, as reports show it; from 0 to 2^31 − 1.
          split: "held_out" or "train".
          sampling: the seed of the sampled answers.
          environment: the name of the environment, in a run of several; None is the first.

        Raises:
          UserError: an argument is wrong, or the environment failed.
        """
        if split not in ("held_out", "train"):
            raise UserError(f"split={split!r}: give 'held_out' or 'train'")
        for name, value in (("seed", seed), ("sampling", sampling)):
            if not isinstance(value, int) or not 0 <= value < 2**31:
                raise UserError(f"{name}={value!r}: give a whole number from 0 to {2**31 - 1}")
        with clear_errors():
            with quick_compilation(self._loaded.small):
                return self._play(seed, split, sampling, environment)

    def _play(self, seed: int, split: str, sampling: int, environment: str | None) -> CreditedEpisode:
        learner, c = self._loaded.learner, self.config
        task = Task(seed, split, 0, self._environment(environment))
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(c.seed), streams.DEVICE["evaluate"] + sampling), seed)
        strategy = setup.make_strategy(c, learner.method, learner.standing(self._iteration))
        rollout = strategy(self._player, [task] * c.rollout.group_size, key)
        first = rollout.episodes[0]
        if first.failure is not None:
            raise UserError(f"the environment failed: {first.failure}")
        credit, exact, why = self._credit(rollout)
        exact = np.full((1, c.rollout.max_steps), np.nan) if exact is None else exact
        record = to_record(first, *(array[0] for array in credit), exact=exact[0])
        good = [e for e in rollout.episodes if e.counts]
        mixture = learner.parts.mixture
        view = c if mixture is None else next(entry.view for entry in mixture.entries if entry.name == task.environment)
        return CreditedEpisode(record, self.name, self.method, view.environment.name, sum(e.success for e in good), len(good), why)

    def evaluate(self, episodes: int = 512, *, seed: int = 0) -> Success:
        """Plays the first held-out tasks, the same as `stepreward evaluate` plays.

        Args:
          episodes: the number of tasks.
          seed: the seed of the sampled answers; it does not change the tasks.

        Raises:
          UserError: an argument is wrong, or every environment failed.
        """
        with clear_errors():
            check_arguments(episodes, seed)
            good = [e for e in play_held_out(loading.load_player(self._place, step=self._step), episodes, seed) if e.failure is None]
            won = sum(e.success for e in good)
            return Success.of(won, len(good))

    def close(self) -> None:
        """Closes the environments."""
        self._loaded.learner.parts.collector.pool.close()

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    @property
    def _iteration(self) -> int:
        return self._loaded.facts.get("counters", {}).get("iteration", 0)

    def _environment(self, name: str | None) -> str:
        mixture = self._loaded.learner.parts.mixture
        if mixture is None:
            if name is not None:
                raise UserError(f"environment={name!r}: this agent plays in one environment only, so leave the argument out")
            return ""
        names = [entry.name for entry in mixture.entries]
        if name is not None and name not in names:
            raise UserError(f"environment={name!r}: this agent plays in {', '.join(names)}")
        return names[0] if name is None else name

    def _credit(self, rollout: Rollout) -> tuple[tuple[np.ndarray, ...], np.ndarray | None, str]:
        """Returns the credit of the steps of a group of attempts.

        Returns:
          The method's step rewards and step advantages, float32 `[E, S]`, or () if a model of the method is missing; the exact advantages
          `[E, S]`, which need the policy alone, or None if the environment does not know its transitions; and why there is no credit of
          the method ("" if there is).
        """
        learner, c = self._loaded.learner, self.config
        batch = pack_rollout(c, learner.layout, learner.method, rollout)
        learner.prepare(batch, rollout.episodes)
        batch = learner.score(batch, {})
        exact = batch.signals.get("exact_advantage")
        exact = None if exact is None else np.asarray(exact)
        if self._loaded.uncredited:
            return (), exact, self._loaded.uncredited
        signals, coefficients = learner.look(batch, {}, self._iteration)
        rng = np.random.default_rng(streams.host(c.seed, "credit", self._iteration))
        drawn = learner.method.host_signals(batch, rollout.episodes, rng)
        found = _steps_of(learner.method, batch.with_signals(**signals, **coefficients, **drawn))
        return tuple(np.asarray(array) for array in jax.device_get(found)), exact, ""


@functools.partial(jax.jit, static_argnums=0)
def _steps_of(method, batch):
    """The step rewards and step advantages of a batch; the metrics of the method are not computed."""
    credit = method.credit(batch)
    return credit.step_reward, credit.step_advantage


@contextlib.contextmanager
def quick_compilation(wanted: bool) -> Iterator[None]:
    """Compiles without most optimisations: a small model on a CPU waits for its compiler, not for its programs."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", wanted or before)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Turns the errors that are meant for a user into one `UserError`; others keep their traceback."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_expected(error):
            raise
        raise UserError(describe(error)) from error
