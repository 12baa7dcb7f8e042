"""Tables of a run: its final evaluation, the quality of the progress estimator, and what was cut or left out."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from stepreward.metrics import is_number

Records = Sequence[Mapping[str, Any]]

POLICIES = {"start": "supervised policy (start)", "end": "trained policy (end)"}
NONE = "–"


def final_evaluation(records: Records) -> dict[str, dict[str, float]]:
    """Returns {"start": …, "end": …} of the last final evaluation, each {"success": 0.25, …}; empty if no record has both."""
    found: dict[str, dict[str, float]] = {}
    for record in records:
        if all(is_number(record.get(f"final/{name}_success")) for name in POLICIES):
            found = {name: _numbers(record, f"final/{name}_") for name in POLICIES}
    return found


def estimator_quality(records: Records) -> dict[str, float]:
    """Returns the measures of the last record with `estimator/mse`, without their prefix; empty if there is none."""
    measured = [record for record in records if is_number(record.get("estimator/mse"))]
    return _numbers(measured[-1], "estimator/") if measured else {}


def failed_episodes(records: Records) -> int:
    """Returns the number of episodes, in training and evaluations, that were left out because their environments failed."""
    training = [r["rollout/failed_episodes"] for r in records if is_number(r.get("rollout/failed_episodes"))]  # a running total
    others = ("eval/failed_episodes", *(f"final/{name}_failed_episodes" for name in POLICIES))
    return int(max(training, default=0) + sum(r[key] for r in records for key in others if is_number(r.get(key))))


LOSSES = {
    "rollout/too_long": ("episodes that ended because a prompt was too long", "rollout.max_prompt_tokens, rollout.long_observation"),
    "rollout/row_full": ("episodes that ended because their conversation was full", "rollout.max_row_tokens"),
    "rollout/environment_limit": ("episodes that the environment stopped before rollout.max_steps", "the environment's own limit"),
    "rollout/step_limit": ("episodes that reached the step limit", "rollout.max_steps"),
    "rollout/observations_cut": ("prompts whose observations were cut to fit", "rollout.max_prompt_tokens"),
    "rollout/answers_cut": ("answers that were cut", "rollout.max_answer_tokens"),
    "judge/failures": ("steps that the judge gave no score", "judge.url, judge.model"),
    "judge/masked_episodes": ("episodes with such a step; they are masked for credit", "judge.url, judge.model"),
}


def losses_html(records: Records) -> str:
    """Returns the section on what was cut or left out in the run's rollouts, without evaluations, or "" if nothing was."""
    rows = []
    for key, (name, setting) in LOSSES.items():
        total = sum(record[key] for record in records if is_number(record.get(key)))
        if total:
            rows.append((name, f"{total:,.0f}", setting))
    failed = [r["rollout/failed_episodes"] for r in records if is_number(r.get("rollout/failed_episodes"))]
    if failed and failed[-1]:
        rows.append(("episodes whose environment failed; they are masked", f"{failed[-1]:,.0f}", "the log says why"))
    left = [r["sft/demonstrations_left_out"] for r in records if is_number(r.get("sft/demonstrations_left_out"))]
    if left and left[-1]:
        rows.append(("tasks without a demonstration: the expert failed, or it was too long", f"{left[-1]:,.0f}", "the log says why"))
    if not rows:
        return ""
    longest = max((r["rollout/longest_prompt"] for r in records if is_number(r.get("rollout/longest_prompt"))), default=0)
    note = f"Over all rollouts. The longest prompt had {longest:,.0f} tokens before cutting." if longest else "Over all rollouts."
    cells = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{count}</td><td class="meaning">{html.escape(setting)}</td></tr>'
        for name, count, setting in rows
    )
    return _section("What was cut or left out", note, f'<table class="data"><tbody>{cells}</tbody></table>')


def evaluation_html(records: Records) -> str:
    """Returns the section on the final evaluation, or ""."""
    table = final_evaluation(records)
    if not table:
        return ""
    note = (
        "Both policies on the same held-out tasks; success with its 95\u00a0% Wilson interval. <b>Grounding accuracy</b> is the "
        "share of steps whose action was understood and took effect; return and steps are means over episodes."
    )
    counts = [r["eval/episodes"] for r in records if is_number(r.get("eval/success")) and is_number(r.get("eval/episodes"))]
    if counts and counts[-1] != table["end"].get("episodes"):
        note += f" The learning curves come from evaluations on {counts[-1]:,.0f} episodes each."
    graded = any("score" in found and found["score"] != found["success"] for found in table.values())
    heads = ("policy", "success", *(("score",) if graded else ()), "return", "grounding accuracy", "steps per episode", "episodes")
    rows = []
    for label, found in _policies(records, table):
        success = percent(found["success"])
        if "success_low" in found and "success_high" in found:
            success += f" <span>({100 * found['success_low']:.1f} to {100 * found['success_high']:.1f})</span>"
        cells = [
            success, *([_value(found, "score", ".3f")] if graded else []), _value(found, "return", ".2f"), percent(found.get("executed")), _value(found, "steps_per_episode", ".1f"),
            _value(found, "episodes", ",.0f"),
        ]  # fmt: skip
        rows.append(f'<th scope="row">{label}</th>' + "".join(f"<td>{cell}</td>" for cell in cells))
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return _section("Evaluation", note, f'<table class="data"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')


def _policies(records: Records, table: Mapping[str, Mapping[str, float]]) -> list[tuple[str, Mapping[str, float]]]:
    """Returns labels and measures of both policies; in a run of several environments, then those of each environment."""
    found = [(label, table[name]) for name, label in POLICIES.items()]
    names = {m[1] for record in records for key in record if (m := re.fullmatch(r"final/(\w+)/end_success", key))}
    for each in sorted(names):
        for name, label in POLICIES.items():
            measured = [numbers for record in records if "success" in (numbers := _numbers(record, f"final/{each}/{name}_"))]
            found += [(f"{label}, {each}", measured[-1])] if measured else []
    return found


def estimator_html(records: Records, config: Mapping[str, Any]) -> str:
    """Returns the section on the progress estimator, or "".

    Args:
      records: lines of `metrics.jsonl`.
      config: the run's config, which says whether explored tasks were held out.
    """
    found = estimator_quality(records)
    if not found:
        return ""
    measures = (
        ("mse", ".4f", "mean squared error", "between an episode's outcome and the sum of its steps' contributions; 0 is perfect"),
        ("mse_of_mean", ".4f", "… of predicting the mean",
         "the error of always predicting the mean outcome; the estimator must beat it"),
        ("mae", ".3f", "mean absolute error", "average distance between prediction and outcome, in units of the outcome"),
        ("within_0.1", None, "errors of at most 0.1", "share of episodes whose prediction is within 0.1 of the outcome"),
        ("calibration_error", ".3f", "calibration error",
         "gap between mean prediction and mean outcome among episodes with similar predictions; 0 is perfect"),
        ("rank_correlation", "+.2f", "rank correlation with true progress",
         "whether steps that come nearer to the solution get a larger contribution, over all steps; 1 is perfect, 0 is chance"),
        ("rank_correlation_within", "+.2f", "… within episodes",
         "the same within each episode, then averaged: whether the good steps of an episode stand out"),
        ("sign_accuracy", None, "right sign",
         "share of steps with the right sign among those that change the distance: positive if nearer, negative if farther; 50 % is chance"),
    )  # fmt: skip
    rows = []
    for key, form, name, meaning in measures:
        if key in found:
            shown = percent(found[key]) if form is None else _value(found, key, form)
            rows.append(f'<tr><th scope="row">{name}</th><td>{shown}</td><td class="meaning">{meaning}</td></tr>')
    options = config.get("estimator")
    held_out = options.get("held_out") if isinstance(options, Mapping) else None
    note = "The progress estimator learned from explored episodes how much each step contributes to the outcome."
    if is_number(held_out):
        note += f" Measured on {'explored tasks that it was not trained on' if held_out else 'the tasks that it was trained on'}."
    if "steps" in found:
        note += f" True progress is known for {found['steps']:,.0f} of their steps."
    return _section("Progress estimator", note, f'<table class="data"><tbody>{"".join(rows)}</tbody></table>')


def percent(rate: float | None) -> str:
    """Returns "25.0 %" with a non-breaking space, or a dash for None."""
    return NONE if rate is None else f"{100 * rate:.1f}\u00a0%"


def _section(title: str, note: str, table: str) -> str:
    return f'<section><h2>{title}</h2><p class="facts">{note}</p><div class="table">{table}</div></section>'


def _value(found: Mapping[str, float], key: str, form: str) -> str:
    return html.escape(format(found[key], form).replace("-", "−")) if key in found else NONE


def _numbers(record: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {key[len(prefix) :]: value for key, value in record.items() if key.startswith(prefix) and is_number(value)}
