"""Rollouts of a run and their metrics: training episodes, and the fixed held-out set."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from stepreward.batch import Batch
from stepreward.errors import UserError
from stepreward.rollout.episode import cuts, lost, summary
from stepreward.rollout.mixed import UNJUDGED
from stepreward.rollout.reference import answer_log_probs, unscored
from stepreward.rollout.strategies import Chain, Rollout, Strategy
from stepreward.training import setup, streams

_EVALUATED = ("success", "score", "return", "steps_per_episode", "executed")  # of `summary`, in evaluations
_PLAYED = ("success", "score", "return", "steps_per_episode")  # in the training episodes of each environment
_MEASURES = (*_EVALUATED, "invalid", "answer_tokens", "entropy")  # all of `summary`


def play(run, tasks, key, strategy: Strategy | None = None, actor=None) -> tuple[Rollout, dict]:
    """Plays training tasks with the policy; returns the rollout, and metrics.

    Args:
      strategy: the rollout strategy; None plays each task once.
      actor: the decoder that plays; None is the policy as it is.

    Raises:
      UserError: every environment failed.
    """
    started, strategy = time.monotonic(), strategy or Chain()
    player = run.parts.collector.player(run.learner.actor if actor is None else actor, score_answers=setup.scores_answers(run.method))
    rollout = strategy(player, tasks, key)
    seconds, cost = time.monotonic() - started, rollout.cost
    good = healthy(rollout.episodes, "batch")
    several = {} if run.parts.mixture is None else environment_metrics(run.parts, rollout.episodes)
    metrics = (
        rollout_metrics(run, good)
        | {
            "rollout/failed_episodes": sum(episode.failure is not None for episode in rollout.episodes),
            "rollout/tokens_per_s": (cost.sampled_tokens + cost.prompt_tokens) / seconds,
            "time/rollout_s": seconds,
        }
        | several
    )
    if strategy.restarts:
        metrics |= {"rollout/branch_steps": rollout.branch_steps, "rollout/replayed_steps": cost.replayed_steps}
        metrics |= {f"rollout/{name}": count for name, count in rollout.counts.items()}
    return rollout, {k: float(v) for k, v in metrics.items()}


def pack_rollout(c, layout, method, rollout: Rollout) -> Batch:
    """Packs the episodes of a rollout into a batch, with those signals of the rollout that a credit method reads; see `Run.pack`."""
    wanted, batch = method.requires, layout.pack(rollout.episodes)
    found = rollout.arrays(c.rollout.max_steps) if rollout.signals else {}
    scaled = lambda x: x * np.float32(c.credit.outcome_scale) if x.dtype == np.float32 else x
    scores = {"answer_log_prob": answer_log_probs(rollout.episodes, c.rollout.max_steps)} if setup.scores_answers(method) else {}
    return batch.with_signals(**scores, **{name: scaled(value) for name, value in found.items() if name in wanted})


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
    good, parts, metrics = healthy(played, "evaluation"), by_environment(run.parts, played), {}
    each = {name: healthy(those, f"evaluation{name and f' in {name}'}") for name, those in parts.items()}
    found = {name: summary(those) for name, those in each.items()}
    for name in found if run.parts.mixture is not None else ():
        metrics |= {f"eval/{name}/{k}": found[name][k] for k in _EVALUATED} | {f"eval/{name}/episodes": len(each[name])}
    whole = means(found.values())
    metrics |= {f"eval/{k}": whole[k] for k in _EVALUATED}
    metrics |= {f"eval/{k}": v for k, v in lost(good).items()}
    metrics["eval/episodes"] = len(good)
    if len(good) < len(played):
        metrics["eval/failed_episodes"] = len(played) - len(good)
    for name, auxiliary in learner.auxiliaries.items():
        if auxiliary.begun and auxiliary.plays(run.counters.iteration):
            collector = setup.collector_of(run.c, run.parts, auxiliary.model)
            played = collector.collect(auxiliary.actor, run.held_out, key)
            what = f"evaluation of the {auxiliary.title}"
            rates = [np.mean([e.success for e in healthy(those, what)]) for those in by_environment(run.parts, played).values()]
            metrics[f"{name}/policy_success"] = float(np.mean(rates))
    metrics["time/eval_s"] = time.monotonic() - started
    return metrics


def by_environment(parts, episodes: list) -> dict[str, list]:
    """Returns the episodes of each environment of a mixture, in order; in a run of one environment, all of them under ""."""
    found: dict[str, list] = {name: [] for name in parts.each}
    for episode in episodes:
        found[episode.task.environment].append(episode)
    return found


def means(found: Iterable[dict]) -> dict[str, float]:
    """Returns the means of the measures of `summary` over environments, each of which counts once."""
    found = list(found)
    return {name: float(np.mean([each[name] for each in found])) for name in _MEASURES}


def environment_metrics(parts, episodes: list) -> dict[str, float]:
    """Returns measures of the training episodes of each environment that was played: how many, how many failed, and means over the others."""
    metrics = {}
    for name, those in by_environment(parts, episodes).items():
        good = [e for e in those if e.counts]
        counts = {"episodes": len(those), "failed": sum(e.failure is not None for e in those)}
        counts |= {"unjudged": sum(e.failure == UNJUDGED for e in those)} if name in parts.collector.judges else {}
        found = {k: v for k, v in summary(good).items() if k in _PLAYED} if good else {}
        metrics |= {f"rollout/{name}/{k}": v for k, v in (counts | found).items()} if those else {}
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
