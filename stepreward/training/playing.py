"""Rollouts of a run and their metrics: training episodes, and the fixed held-out set."""

from __future__ import annotations

import time

import numpy as np

from stepreward.errors import UserError
from stepreward.rollout.episode import cuts, lost, summary
from stepreward.rollout.reference import unscored
from stepreward.rollout.strategies import Chain, Rollout, Strategy
from stepreward.training import setup, streams


def play(run, tasks, key, strategy: Strategy | None = None) -> tuple[Rollout, dict]:
    """Plays training tasks with the policy; returns the rollout, and metrics.

    Args:
      strategy: the rollout strategy; None plays each task once.

    Raises:
      UserError: every environment failed.
    """
    started, strategy = time.monotonic(), strategy or Chain()
    player = run.parts.collector.player(run.learner.actor, score_answers=setup.scores_answers(run.method))
    rollout = strategy(player, tasks, key)
    seconds, cost = time.monotonic() - started, rollout.cost
    good = healthy(rollout.episodes, "batch")
    run.counters.failed_episodes += sum(episode.failure is not None for episode in rollout.episodes)
    metrics = rollout_metrics(run, good) | {
        "rollout/failed_episodes": run.counters.failed_episodes,
        "rollout/tokens_per_s": (cost.sampled_tokens + cost.prompt_tokens) / seconds,
        "time/rollout_s": seconds,
    }
    if strategy.restarts:
        metrics |= {"rollout/branch_steps": rollout.branch_steps, "rollout/replayed_steps": cost.replayed_steps}
        metrics |= {f"rollout/{name}": count for name, count in rollout.counts.items()}
    return rollout, {k: float(v) for k, v in metrics.items()}


def rollout_metrics(run, episodes: list) -> dict[str, float]:
    """Returns means over episodes that did not fail, and counts of what was cut or could not be scored."""
    found = summary(episodes) | cuts(episodes)
    if setup.scores_answers(run.method):
        found["unscored_answers"] = unscored(episodes)
    return {f"rollout/{name}": float(value) for name, value in found.items()}


def evaluate(run) -> dict:
    """Plays the fixed held-out set with the settings of training and the same random draws each time; returns metrics."""
    started, learner, key = time.monotonic(), run.learner, streams.device(run.key, "evaluate")
    played = run.parts.collector.collect(learner.actor, run.held_out, key)
    good = healthy(played, "evaluation")
    found = summary(good)
    metrics = {f"eval/{k}": found[k] for k in ("success", "score", "return", "steps_per_episode", "executed")}
    metrics |= {f"eval/{k}": v for k, v in lost(good).items()}
    metrics["eval/episodes"] = len(good)
    if len(good) < len(played):
        metrics["eval/failed_episodes"] = len(played) - len(good)
    for name, auxiliary in learner.auxiliaries.items():
        if auxiliary.begun and auxiliary.plays(run.counters.iteration):
            collector = setup.collector_of(run.c, run.parts, auxiliary.model)
            played = collector.collect(auxiliary.actor, run.held_out, key)
            what = f"evaluation of the {auxiliary.title}"
            metrics[f"{name}/policy_success"] = float(np.mean([e.success for e in healthy(played, what)]))
    metrics["time/eval_s"] = time.monotonic() - started
    return metrics


def healthy(episodes: list, what: str) -> list:
    """Returns the episodes that were played and whose environment did not fail.

    Raises:
      UserError: every environment failed.
    """
    good = [e for e in episodes if e.counts]
    if not good:
        raise UserError(f"every environment of the {what} failed, the first one with: {episodes[0].failure}")
    return good
