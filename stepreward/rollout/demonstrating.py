"""Plays episodes as an expert does: the environment's own, or a language model that answers in the policy's place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from stepreward import processes
from stepreward.envs.protocol import EXPERT, SNAPSHOT
from stepreward.rollout.environment_host import EnvironmentFailure
from stepreward.rollout.environments import Call
from stepreward.rollout.episode import LONG_ANSWER, NO_ANSWER, NO_WAY, NOT_ENDED, Cost, Episode, Start
from stepreward.rollout.game import Game, gathered
from stepreward.rollout.player import Adviser
from stepreward.text import clean


def demonstrate(
    collector: Any,
    starts: Sequence[Start],
    keep: bool,
    turns: int | None = None,
    draws: Sequence[int] | None = None,
    adviser: Adviser | None = None,
) -> list[Episode]:
    """Plays an episode of the expert from each start; see `Player.expert` and `Player.advise`.

    Args:
      collector: the `play.Collector` whose environments and prompts are used.
      starts, keep, draws: see there.
      turns: the most new turns of an episode; None: to its end.
      adviser: who answers in place of the environment's expert; then `turns` must be 1.

    Raises:
      ValueError: the environment has no expert and there is no adviser, or it cannot start in the middle.
    """
    if adviser is None:
        collector.check_offers(frozenset({EXPERT}), "a strategy that plays the expert")
    elif turns != 1:
        raise ValueError("a language model advises one action at a time: ask for turns=1.")
    if keep or any(start.prefix for start in starts):
        collector.check_restarts()
    asks, episodes = collector._asks(keep and SNAPSHOT in collector._able), []
    for first in range(0, len(starts), collector.max_rows):
        some = range(first, min(first + collector.max_rows, len(starts)))
        mine = [some[place] for place in processes.share(len(some))]
        games = [Game.at(starts[index], slot, index, asks, turns) for slot, index in enumerate(mine)]
        collector._begin(games)
        ready = [game for game in games if not game.done]
        if adviser is None:
            _plan(collector, ready, draws)
        else:
            _advise(collector, ready, draws, adviser)
        while acting := [game for game in games if not game.done]:
            for game in acting:
                tokens = collector.chat.answer(clean(game.plan.pop(0)))
                zeros = np.zeros(len(tokens), np.float32)
                game.step = dataclasses.replace(collector._referee.answered(game, tokens, zeros, zeros), sampled=False)
            collector._act(acting)
            for game in acting:
                if not game.done and not game.plan:
                    game.fail(NOT_ENDED)
        for game in games:
            game.episode.cost = Cost(replayed_steps=game.replayed + len(game.episode.steps) - game.episode.prefix)
            del game.episode.steps[: game.episode.prefix]  # every process has them
        found = gathered(games)
        for index, episode in zip(some, found, strict=True):
            episode.steps[:0] = starts[index].prefix
        episodes += found
    return episodes


def _plan(collector: Any, games: list[Game], draws: Sequence[int] | None) -> None:
    """Asks every game's environment for its expert's actions; without `draws`, the expert chooses as it does by itself."""
    chosen = lambda game: () if draws is None else (np.random.default_rng(draws[game.index]),)
    for game, found in zip(games, collector.pool.call_all([Call(game.slot, "expert", chosen(game)) for game in games])):
        game.plan = [] if isinstance(found, EnvironmentFailure) or found is None else [collector.prompt.answer(a) for a in found]
        if not game.plan:
            game.fail(str(found) if isinstance(found, EnvironmentFailure) else NO_WAY)


def _advise(collector: Any, games: list[Game], draws: Sequence[int] | None, adviser: Adviser) -> None:
    """Asks a language model for one answer in every game. All processes take part, also those without a game."""
    numbers = [0 if draws is None else draws[game.index] for game in games]
    for game, answer in zip(games, adviser([collector._writer.messages(game) for game in games], numbers), strict=True):
        if answer is None:
            game.fail(NO_ANSWER)
        elif 0 < collector.longest_answer < len(collector.chat.answer(clean(answer))):
            game.fail(LONG_ANSWER)
        else:
            game.plan = [answer]
