"""Tables of a run: its final evaluation, and how well the progress estimator came out."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from stepreward.metrics import is_number

Records = Sequence[Mapping[str, Any]]

POLICIES = {"start": "supervised policy (start)", "end": "trained policy (end)"}
NONE = "–"


def final_evaluation(records: Records) -> dict[str, dict[str, float]]:
    """Returns {"start": …, "end": …} of the last final evaluation, each {"success": 0.25, …}; empty without one of both."""
    found: dict[str, dict[str, float]] = {}
    for record in records:
        if all(is_number(record.get(f"final/{name}_success")) for name in POLICIES):
            found = {name: _numbers(record, f"final/{name}_") for name in POLICIES}
    return found


def estimator_quality(records: Records) -> dict[str, float]:
    """Returns the measures of the last record with `estimator/mse`, without their prefix; empty where there is none."""
    measured = [record for record in records if is_number(record.get("estimator/mse"))]
    return _numbers(measured[-1], "estimator/") if measured else {}


def failed_episodes(records: Records) -> int:
    """Returns how many episodes of a run, played for training or for an evaluation, were left out because their environments failed."""
    training = [r["rollout/failed_episodes"] for r in records if is_number(r.get("rollout/failed_episodes"))]  # counted up
    others = ("eval/failed_episodes", *(f"final/{name}_failed_episodes" for name in POLICIES))
    return int(max(training, default=0) + sum(r[key] for r in records for key in others if is_number(r.get(key))))


LOSSES = {
    "rollout/too_long": ("episodes that a prompt ended which was too long", "rollout.max_prompt_tokens, rollout.long_observation"),
    "rollout/row_full": ("episodes that ended with their conversation full", "rollout.max_row_tokens"),
    "rollout/environment_limit": ("episodes that the environment stopped before rollout.max_steps", "the environment's own limit"),
    "rollout/step_limit": ("episodes that ran into the step limit", "rollout.max_steps"),
    "rollout/observations_cut": ("prompts whose observations were cut to fit", "rollout.max_prompt_tokens"),
    "rollout/answers_cut": ("answers that were cut", "rollout.max_answer_tokens"),
}


def losses_html(records: Records) -> str:
    """Returns the section on what was cut or left out in the run's rollouts, evaluations apart, or "" where nothing was."""
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
        rows.append(("tasks without a demonstration: not won by the expert, or too long", f"{left[-1]:,.0f}", "the log says why"))
    if not rows:
        return ""
    longest = max((r["rollout/longest_prompt"] for r in records if is_number(r.get("rollout/longest_prompt"))), default=0)
    note = f"Over all rollouts. The longest prompt, uncut, has {longest:,.0f} tokens." if longest else "Over all rollouts."
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
    for name, label in POLICIES.items():
        found = table[name]
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


def estimator_html(records: Records, config: Mapping[str, Any]) -> str:
    """Returns the section on the progress estimator, or "".

    Args:
      records: lines of `metrics.jsonl`.
      config: the run's; says whether explored tasks were held out.
    """
    found = estimator_quality(records)
    if not found:
        return ""
    measures = (
        ("mse", ".4f", "mean squared error", "of an episode's outcome as its steps' contributions add up to it; 0 is perfect"),
        ("mse_of_mean", ".4f", "… of predicting the mean",
         "what always answering the mean outcome would get: the one above must beat it"),
        ("mae", ".3f", "mean absolute error", "how far a prediction is off on average, in units of the outcome"),
        ("within_0.1", None, "errors of at most 0.1", "share of the episodes whose outcome is predicted that closely"),
        ("calibration_error", ".3f", "calibration error",
         "among episodes predicted alike, the gap between mean prediction and mean outcome; 0 is honest"),
        ("rank_correlation", "+.2f", "rank correlation with true progress",
         "whether steps that come nearer to the solution get more, over all steps; 1 is perfect, 0 is chance"),
        ("rank_correlation_within", "+.2f", "… within episodes",
         "the same inside each episode, averaged: whether an episode's own good steps stand out"),
        ("sign_accuracy", None, "right sign",
         "share of the steps that change the distance whose contribution is above 0 for nearer, below for farther; half is chance"),
    )  # fmt: skip
    rows = []
    for key, form, name, meaning in measures:
        if key in found:
            shown = percent(found[key]) if form is None else _value(found, key, form)
            rows.append(f'<tr><th scope="row">{name}</th><td>{shown}</td><td class="meaning">{meaning}</td></tr>')
    options = config.get("estimator")
    held_out = options.get("held_out") if isinstance(options, Mapping) else None
    note = "The model that learned, from explored episodes, what each step contributes to the outcome."
    if is_number(held_out):
        note += f" Measured on {'explored tasks that it did not train on' if held_out else 'the tasks that it trained on'}."
    if "steps" in found:
        note += f" True progress is known for {found['steps']:,.0f} of their steps."
    return _section("Progress estimator", note, f'<table class="data"><tbody>{"".join(rows)}</tbody></table>')


def percent(rate: float | None) -> str:
    """Returns "25.0 %" with a space that does not break, or a dash for None."""
    return NONE if rate is None else f"{100 * rate:.1f}\u00a0%"


def _section(title: str, note: str, table: str) -> str:
    return f'<section><h2>{title}</h2><p class="facts">{note}</p><div class="table">{table}</div></section>'


def _value(found: Mapping[str, float], key: str, form: str) -> str:
    return html.escape(format(found[key], form).replace("-", "−")) if key in found else NONE


def _numbers(record: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {key[len(prefix) :]: value for key, value in record.items() if key.startswith(prefix) and is_number(value)}
