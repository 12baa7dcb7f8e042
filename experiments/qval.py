"""Compares what a run's models say of actions with Q-values, by QVal's protocol (`stepreward/arena/qval.py`).

    python experiments/qval.py --workdir=runs/istar_sokoban [--trajectories=100] [--points=400] [--discount=0.95]

The policy of the latest checkpoint plays held-out tasks. Up to five states in the middle of each episode are points, and all actions of the
environment are candidates. Q is that of a shortest solution. The scores of an action are

* `policy`: log π(a | s), the policy's own preference;
* `prm`: log π_prm(a | s) − log π(a | s), iStar's step reward, if the run has a PRM;
* `exact`: the exact advantage of the policy, with the steps that are left at the point;
* `random`: a draw, the control.

The environment must know its transitions, and the prompt must show the present state only (one-box Sokoban).
"""

from __future__ import annotations

import sys

import jax
import numpy as np
from scipy import stats

from stepreward.arena import qval
from stepreward.config import Option, parse_arguments
from stepreward.errors import launcher

OPTIONS = (
    Option("workdir", "folder of the run"),
    Option("trajectories", "held-out episodes to play", default=100, type=int),
    Option("points", "points to draw from them, at most", default=400, type=int),
    Option("discount", "discount of the Q-values", default=qval.DISCOUNT, type=float),
    Option("seed", "seed of the episodes and of the points", default=0, type=int),
)


def main() -> int:
    options = parse_arguments(sys.argv[1:], description=__doc__, required=("workdir",), options=OPTIONS)
    scores, q, owner = measure(options.workdir, options.trajectories, options.points, options.discount, options.seed)
    print(f"\n{len(q)} points of {len(set(owner))} trajectories, {q.shape[1]} candidates each, discount {options.discount:g}\n")
    print(
        "| score | pooled Spearman (95 %) | Kendall | Pearson | within a state: Spearman (95 %) | std | points | equal Q | equal scores |"
    )
    print("|" + "---|" * 9)
    for name, score in scores.items():
        found = qval.agreement(q, score)
        within = qval.within_states(q, score)[0]
        pooled = lambda index, score=score: stats.spearmanr(score[index].ravel(), q[index].ravel()).statistic
        spans = {
            "spearman": qval.bootstrap(pooled, owner),
            "state_spearman": qval.bootstrap(lambda index, within=within: np.nanmean(within[index]), owner),
        }
        said = lambda key: f"{found[key]:.3f} ({spans[key][0]:.3f} to {spans[key][1]:.3f})"
        counts = " | ".join(f"{found[key]:.0f}" for key in ("points", "equal_q", "equal_scores"))
        print(
            f"| {name} | {said('spearman')} | {found['kendall']:.3f} | {found['pearson']:.3f} | {said('state_spearman')} | "
            f"{found['state_std']:.3f} | {counts} |"
        )
    return 0


def measure(workdir, trajectories: int, most: int, discount: float, seed: int):
    """Returns scores by name and Q-values, each `[P, A]`, and the trajectory of each point."""
    from stepreward.training import setup
    from stepreward.training.auxiliaries.exact import Exact, solve
    from stepreward.training.evaluate import load_checkpoint
    from stepreward.training.layout import Layout
    from stepreward.training.tasks import held_out

    played = load_checkpoint(workdir, None, "policy")
    c, parts = played.config, played.parts
    Exact.check(c, parts.method)
    with parts.collector.pool:
        states = exact_of(Exact, Layout, played)
        states.open()
        tasks = held_out(c, parts, trajectories)
        collector = setup.collector_of(c, parts, played.model)
        episodes = collector.collect(played.model.join(played.params), tasks, jax.random.key(seed))
        good = [episode for episode in episodes if episode.failure is None]
        graphs = states.states([episode.task for episode in good])
        policies = states.policies(played.params, [graph for graph in graphs if graph is not None])
    of_prm = [None] * len(policies)
    if parts.method.has_prm:
        prm = load_checkpoint(workdir, None, "prm")
        with prm.parts.collector.pool:
            of_prm = exact_of(Exact, Layout, prm).policies(prm.params, [graph for graph in graphs if graph is not None])
    rng, rows = np.random.default_rng(seed), []
    with_graph = [(e, g) for e, g in zip(good, graphs) if g is not None]
    for owner, ((episode, graph), policy, other) in enumerate(zip(with_graph, policies, of_prm)):
        best = qval.best_q(graph, discount)
        horizon = min(c.rollout.max_steps, graph.max_steps)
        q, value = solve(graph, policy, horizon, "success")
        for turn in qval.middle(len(episode.steps), rng):
            state = graph.keys.index(episode.steps[turn].state_key)
            said = {"policy": np.log(policy[state])}
            said |= {} if other is None else {"prm": np.log(other[state]) - np.log(policy[state])}
            said |= {"exact": q[turn, state, :-1] - value[turn, state], "random": rng.normal(size=len(graph.actions))}
            rows.append((owner, best[state], said))
    chosen = sorted(rng.choice(len(rows), min(most, len(rows)), replace=False))
    rows = [rows[index] for index in chosen]
    scores = {name: np.stack([said[name] for _, _, said in rows]) for name in rows[0][2]}
    return scores, np.stack([best for _, best, _ in rows]), np.array([owner for owner, _, _ in rows])


def exact_of(kind, layout, played):
    """The auxiliary that shows every state to a model, for a loaded model."""
    found = kind(played.config, played.parts, layout(played.config, played.parts), jax.random.key(0))
    found.begin(played.model, None)
    return found


if __name__ == "__main__":
    launcher(main)
