"""The learning curves of one run as inline SVG, with colours that follow the page's light or dark theme."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepreward.metrics import is_number, series, wilson_interval

Records = Sequence[Mapping[str, Any]]

# matplotlib draws in these placeholder colours. In the SVG each is replaced by a CSS variable, which the page defines for each theme.
_THEME = {
    "#010101": "var(--ink)",
    "#020202": "var(--faint)",
    "#020103": "var(--card)",
    "#030301": "var(--c1)",
    "#030302": "var(--c2)",
    "#030303": "var(--c3)",
    "#030304": "var(--c4)",
    "#030305": "var(--c5)",
    "#030306": "var(--c6)",
    "#030307": "var(--c7)",
    "#030308": "var(--c8)",
}
_INK, _FAINT, _CARD, *_COLOURS = _THEME


@dataclass(frozen=True)
class Panel:
    """One figure: a title, the metrics that it draws (key → label), and a sentence that explains them.

    `rate` makes the y axis show the whole range from 0 to 1; `lowest` limits the y axis so that a few bad values do not hide the rest.
    """

    title: str
    keys: Mapping[str, str]
    note: str
    rate: bool = False
    lowest: float | None = None


PANELS = (
    Panel("Success on held-out tasks", {"eval/success": "policy", "prm/policy_success": "PRM as a policy"},
          "Share of held-out tasks solved; the band is the 95 % Wilson interval.", rate=True),
    Panel("Success in rollouts", {"rollout/success": "rollouts"},
          "Share of sampled training episodes solved.", rate=True),
    Panel("Score", {"eval/score": "held-out tasks", "rollout/score": "rollouts"},
          "How well tasks were done, in the benchmark's own measure."),
    Panel("Return", {"eval/return": "held-out tasks", "rollout/return": "rollouts"}, "Sum of an episode's rewards, on average."),
    Panel("Grounding accuracy", {"eval/executed": "held-out tasks", "rollout/executed": "rollouts"},
          "Share of steps whose action was understood and took effect.", rate=True),
    Panel("Steps per episode", {"eval/steps_per_episode": "held-out tasks", "rollout/steps_per_episode": "rollouts"},
          "Mean number of the agent's answers in an episode."),
    Panel("Episodes cut short by a length", {"rollout/too_long": "prompt too long", "rollout/row_full": "conversation full"},
          "Rollout episodes an iteration that ended because of rollout.max_prompt_tokens or rollout.max_row_tokens."),
    Panel("Loss of the estimator", {"estimator/loss": "training", "estimator/held_out_loss": "held out"},
          "On the explored tasks that it is trained on, and on held-out ones; if the latter rises, it overfits."),
    Panel("Quality of the credit",
          {"credit/rank_correlation": "step rewards", "credit/advantage_rank_correlation": "advantages"},
          "Rank correlation between a move's credit and its true progress towards the solution; 1 is perfect, 0 is chance."),
    Panel("Agreement with exact advantages",
          {"credit/exact_pearson_reward": "step rewards", "credit/exact_pearson_advantage": "advantages"},
          "Correlation between the credit of a step and its exact advantage; 1 is perfect, 0 is chance."),
    Panel("Groups without a difference", {"credit/flat_groups": "groups"},
          "Share of groups whose episodes all had the same outcome, so that comparing them gives no signal.", rate=True),
    Panel("Explained variance of the critic", {"credit/explained_variance": "critic"},
          "Share of the variance of returns that its values explain; 1 is all, 0 is no better than a constant. Cut off below −1.",
          lowest=-1.05),
    Panel("Error of the critic", {"critic/value_error": "critic", "policy/value_error": "head on the policy"},
          "Mean squared difference between its values and the returns."),
    Panel("Pair accuracy of the PRM", {"prm/pair_accuracy": "held-out pairs"},
          "Share of held-out pairs in which the better episode scores higher; 0.5 is chance.", rate=True),
    Panel("Accuracy of the discriminator",
          {"discriminator/accuracy_expert": "the expert's steps", "discriminator/accuracy_agent": "the policy's steps"},
          "Share of steps that it puts on the right side while it learns from them; 0.5 is chance, and where the policy acts as the expert.",
          rate=True),
    Panel("Spread of step rewards", {"credit/step_reward_std": "all steps", "credit/group_spread": "within groups"},
          "Standard deviation of the step rewards."),
    Panel("Entropy of the policy", {"rollout/entropy": "entropy"}, "Nats a sampled token."),
    Panel("KL(policy ‖ PRM)", {"prm/kl_policy": "KL"}, "Nats a token: how far the policy has moved from the PRM."),
    Panel("KL(policy ‖ supervised policy)",
          {"credit/kl_initial": "nats an episode, in the reward", "policy/kl_reference": "nats a token, in the loss"},
          "How far the policy has moved from where reinforcement learning began."),
    Panel("Weight of the KL penalty", {"credit/kl_coef": "coefficient"},
          "The reward that each nat of KL to the supervised policy costs."),
    Panel("Losses", {"policy/loss": "policy", "prm/loss": "PRM", "discriminator/loss": "discriminator", "sft/loss": "SFT"}, "The loss that each optimizer minimises."),
    Panel("Size of the policy's updates", {"policy/clip_fraction": "clipped", "policy/approx_kl": "approximate KL"},
          "Share of tokens whose ratio was clipped; KL from the policy that made the rollout, in nats a token."),
    Panel("Updates an iteration", {"policy/updates": "updates"},
          "Mini-batches trained on in an iteration; fewer if the KL limit stopped it early."),
)  # fmt: skip

SMOOTHED = 60  # a curve with more points than this is drawn with its moving mean
TIMES = {
    "time/rollout_s": "rollout",
    "time/scoring_s": "scoring",
    "time/prm_s": "PRM",
    "time/policy_s": "policy",
    "time/eval_s": "evaluation",
    "time/estimator_s": "estimator",
    "time/critic_s": "critic",
    "time/discriminator_s": "discriminator",
}


def learning_curves(records: Records) -> list[tuple[str, str, str]]:
    """Draws every panel that the records have values for.

    Args:
      records: lines of `metrics.jsonl`.

    Returns:
      One (title, note, svg) a panel; empty if nothing was recorded.
    """
    figures = [
        (panel.title, panel.note, _draw(panel.title, records, _curve_panel(panel, present))) for panel, present in chosen_panels(records)
    ]
    if any(is_recorded(records, key) for key in time_keys(records)):
        note = "Mean seconds an iteration, by activity."
        figures.append(("Where the time goes", note, _draw("time", records, _time_panel)))
    return figures


def chosen_panels(records: Records) -> list[tuple[Panel, dict[str, str]]]:
    """Returns the panels that the records have values for, in order, each with those of its metrics that were recorded (key → label)."""
    chosen, names = [], set().union(*records)
    for panel in (*PANELS[:1], *_by_environment(records), *PANELS[1:]):
        present = {key: label for key, label in panel.keys.items() if key in names and is_recorded(records, key)}
        if panel.title == "Score" and all(_same(records, key, key.replace("/score", "/success")) for key in present):
            continue  # if every score equals success, the panel would repeat the success curves
        if panel.title.startswith("Episodes cut short") and not any(series(records, key)[1].any() for key in present):
            continue  # no episode was cut short
        if present:
            chosen.append((panel, present))
    return chosen


def is_recorded(records: Records, key: str) -> bool:
    """Returns whether a metric has a value at any tick."""
    return any(is_number(record.get(key)) and is_number(record.get("tick")) for record in records)


def _by_environment(records: Records) -> list[Panel]:
    """Returns the panels of a run of several environments, with a curve for each; none for a run of one."""
    panels = []
    for begin, title, note in (
        ("eval", "Success on the held-out tasks of each environment", "Share of held-out tasks solved."),
        ("rollout", "Success in the rollouts of each environment", "Share of sampled training episodes solved."),
    ):
        names = {m[1] for key in set().union(*records) if (m := re.fullmatch(rf"{begin}/(\w+)/success", key))}
        if names:
            panels.append(Panel(title, {f"{begin}/{name}/success": name for name in sorted(names)}, note, rate=True))
    return panels


def time_keys(records: Records) -> dict[str, str]:
    """Returns what the time of a run was spent on, metric → label, with the models that are not in `TIMES`."""
    found = {key for key in set().union(*records) if key.startswith("time/")}
    return TIMES | {key: key.removeprefix("time/").removesuffix("_s") for key in sorted(found - set(TIMES) - {"time/sft_s"})}


def _same(records: Records, one: str, other: str) -> bool:
    return np.array_equal(series(records, one)[1], series(records, other)[1])


def evaluations(records: Records) -> list[dict[str, Any]]:
    """Returns the records with a held-out success rate, adding the interval `low`, `high` to those that have `eval/episodes`."""
    found = []
    for record in records:
        rate, n = record.get("eval/success"), record.get("eval/episodes")
        if not (is_number(rate) and 0 <= rate <= 1):
            continue
        entry = dict(record)
        if is_number(n) and n >= 1:
            entry["low"], entry["high"] = wilson_interval(round(rate * n), round(n))
        found.append(entry)
    return found


def _curve_panel(panel: Panel, present: Mapping[str, str]):
    def draw(axes, records: Records) -> None:
        for index, (key, label) in enumerate(present.items()):
            colour = _COLOURS[index % len(_COLOURS)]
            x, y = series(records, key)
            if key == "eval/success":
                points = [(e["tick"], e["low"], e["high"]) for e in evaluations(records) if "low" in e and is_number(e.get("tick"))]
                if points:
                    at, low, high = np.asarray(points, np.float64).T
                    axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
            if x.size > SMOOTHED:
                axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
                axes.plot(x, running_mean(y), color=colour, label=label)
            else:
                axes.plot(x, y, color=colour, label=label, marker="o" if x.size <= 30 else None, markersize=2.6)
        if panel.rate:
            axes.set_ylim(-0.02, 1.02)
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        if panel.lowest is not None and axes.get_ylim()[0] < panel.lowest:
            top = max(0.0, *(series(records, key)[1].max() for key in present))
            axes.set_ylim(panel.lowest, top + 0.05 * (top - panel.lowest))
        if len(panel.keys) > 1:  # even if only one of them is drawn, to say which
            axes.legend(fontsize=8, labelcolor=_INK, handlelength=1.2, facecolor=_CARD, edgecolor="none", framealpha=0.8)

    return draw


def _time_panel(axes, records: Records) -> None:
    """Stacked bars, each the mean over several ticks, because rare evaluations would otherwise be isolated spikes."""
    times = time_keys(records)
    timed = [r for r in records if is_number(r.get("tick")) and any(is_number(r.get(key)) for key in times)]
    iterations = np.array([record["tick"] for record in timed], np.float64)
    distinct = np.unique(iterations)
    bins = min(40, distinct.size)
    edges = np.linspace(distinct[0] - 0.5, distinct[-1] + 0.5, bins + 1)
    counts = np.histogram(distinct, edges)[0]
    bottom = np.zeros(bins)
    for colour, (key, label) in zip(itertools.cycle(_COLOURS), times.items()):
        seconds = np.array([record[key] if is_number(record.get(key)) else 0.0 for record in timed])
        if not seconds.any():
            continue
        height = np.histogram(iterations, edges, weights=seconds)[0] / np.maximum(counts, 1)
        axes.bar(edges[:-1], height, np.diff(edges), bottom, align="edge", color=colour, linewidth=0, label=label)
        bottom += height
    rows = math.ceil(len(axes.containers) / 3)  # rows of the legend, which is above the bars
    axes.set_ylim(0, (1.05 + 0.15 * rows) * bottom.max() if bottom.any() else 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    axes.legend(frameon=False, fontsize=8, labelcolor=_INK, ncols=3, loc="upper left", handlelength=0.8, columnspacing=1)


def running_mean(y: np.ndarray) -> np.ndarray:
    """Returns the centred moving mean of `[N]` over 1/25 of the curve; windows shrink at the ends."""
    half = max(1, math.ceil(y.size / 50))
    total = np.concatenate([[0.0], np.cumsum(y)])
    index = np.arange(y.size)
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, y.size)
    return (total[high] - total[low]) / (high - low)


def _stage_marks(axes, records: Records) -> None:
    """Draws dotted lines between the stages of the run, and the name of each stage at the top."""
    starts = []
    for record in records:
        stage, tick = record.get("stage"), record.get("tick")
        if stage and is_number(tick) and (not starts or starts[-1][1] != stage):
            starts.append((tick, stage))
    low, high = axes.get_xlim()
    if len(starts) < 2:
        return
    for index, (tick, stage) in enumerate(starts):
        if low < tick < high and index:
            axes.axvline(tick, color=_FAINT, linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)
        at = max(low, tick)
        end = min(high, starts[index + 1][0]) if index + 1 < len(starts) else high
        if end - at > (0.018 * len(str(stage)) + 0.02) * (high - low):  # otherwise the name would overlap the next one
            axes.text(
                at + 0.01 * (high - low),
                1.01,
                str(stage),
                transform=axes.get_xaxis_transform(),
                fontsize=7.5,
                color=_INK,
                alpha=0.7,
                va="bottom",
                parse_math=False,
            )


def _draw(name: str, records: Records, draw) -> str:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 8.5,
        "lines.linewidth": 1.6,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _FAINT,
        "xtick.color": _FAINT,
        "ytick.color": _FAINT,
        "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK,
        "grid.color": _FAINT,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.2, 2.5), layout="constrained")
        axes = figure.subplots()
        draw(axes, records)
        axes.patch.set_alpha(0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.5, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("tick")
        _stage_marks(axes, records)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for stand_in, variable in _THEME.items():
        svg = svg.replace(stand_in, variable)
    return svg
