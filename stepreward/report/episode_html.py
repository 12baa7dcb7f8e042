"""Recorded episodes as HTML: one board a step, with the action and the step's reward below it."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stepreward.metrics import is_number

BoardRenderer = Callable[[str], str]

_BOARD_WIDTH = 20  # characters; text with longer lines is prose, which is wrapped on wider cards
# Badges of truncated episodes. An episode recorded without a reason was stopped by the step limit.
ENDS = {
    "": "step limit",
    "step_limit": "step limit",
    "environment_limit": "stopped by the environment",
    "too_long": "prompt too long",
    "row_full": "conversation full",
}
LEGEND = (
    "Each board shows what the agent saw. Below it are its move, the <b>step reward</b> of that move (the bar is scaled within the episode), "
    "the <b>exact advantage</b> of the move if the run computed it, the environment's reward, the step advantage, and the exact distance to "
    "the solution before and after the move, if they were recorded."
)
_ARROWS = {"up": "↑", "down": "↓", "left": "←", "right": "→"}


def plain_board(observation: str) -> str:
    """Returns the observation's text as an escaped `<pre>`: the renderer for any environment."""
    prose = ' class="prose"' if max(map(len, observation.split("\n"))) > _BOARD_WIDTH else ""
    return f"<pre{prose}>{html.escape(observation)}</pre>"


def choose_episodes(files: Sequence[Mapping[str, Any]], limit: int = 3) -> list[tuple[int, Mapping[str, Any]]]:
    """Picks instructive episodes: a success and a failure from the last file, and an episode of the same task from the first file.

    Args:
      files: contents of the files of recorded episodes (see `read_episodes`), first iteration first.
      limit: most episodes to pick.

    Returns:
      (iteration, episode) pairs, first iteration first.
    """
    filled = [file for file in files if file["episodes"]]
    if not filled:
        return []
    first, last = filled[0], filled[-1]
    by_outcome = [[e for e in last["episodes"] if bool(e.get("success")) is outcome] for outcome in (True, False)]
    late = [episodes[0] for episodes in by_outcome if episodes][:limit]
    early = []
    if first is not last:
        same_task = [e for e in first["episodes"] if e.get("task") is not None and e.get("task") == late[0].get("task")]
        early = (same_task or first["episodes"])[:1]
    chosen = [(first["iteration"], e) for e in early] + [(last["iteration"], e) for e in late]
    rest = [(last["iteration"], e) for e in last["episodes"] if not any(e is taken for taken in late)]
    return (chosen + rest)[:limit]


def episode_html(iteration: int, episode: Mapping[str, Any], board: BoardRenderer) -> str:
    """Returns one episode as an `<article>`; all text of a model or an environment is escaped.

    Args:
      iteration: the iteration that it was recorded in.
      episode: the episode, see `stepreward.report.episodes`.
      board: observation text → trusted HTML or SVG; it must escape the text that it shows.
    """
    steps = episode["steps"]
    scales = {key: max((abs(s[key]) for s in steps if is_number(s.get(key))), default=0.0) for key in ("step_reward", "exact_advantage")}
    after = [step.get("distance") for step in steps[1:]] + [episode.get("final_distance")]
    cards = [_step_html(i, step, after[i], scales, board) for i, step in enumerate(steps)]
    cards.append(_final_html(episode, board))
    success = bool(episode.get("success"))
    wide = " wide" if any('class="prose"' in card for card in cards) else ""
    badges = [f'<span class="badge {"good" if success else "bad"}">{"solved" if success else "failed"}</span>']
    if episode.get("truncated"):
        badges.append(_end_badge(episode))
    facts = [f"iteration {iteration}", f"{len(steps)} step{'s' if len(steps) != 1 else ''}"]
    if is_number(episode.get("outcome")):
        facts.append(f"outcome {signed(episode['outcome'])}")
    return (
        f'<article class="episode"><h3>{escaped(episode.get("task") or "episode")} {" ".join(badges)}</h3>'
        f'<p class="facts">{" · ".join(facts)}</p><ol class="steps{wide}">{"".join(cards)}</ol>{_outputs(steps)}</article>'
    )


def _end_badge(episode: Mapping[str, Any]) -> str:
    """A badge that says why an episode was truncated; its tooltip names the settings that would have had to be larger."""
    needs = episode.get("needs") or {}
    title = " and ".join(f"{key} of at least {value}" for key, value in needs.items())
    title = f' title="{escaped(f"it needs {title}")}"' if title else ""
    return f'<span class="badge"{title}>{escaped(ENDS.get(episode.get("end") or "", "cut short"))}</span>'


def _step_html(index: int, step: Mapping[str, Any], after: Any, scales: Mapping[str, float], board: BoardRenderer) -> str:
    action = step.get("action")
    idle = step.get("executed") is False
    arrow = _ARROWS.get(str(action).strip().lower())
    if action is None:
        shown = '<span class="none">no action</span>'
    elif arrow:
        shown = f'<span class="arrow">{arrow}</span> {escaped(action)}'
    else:
        shown = f'<span class="word">{escaped(action)}</span>'
    note = ' <span class="idle" title="the action did not run">no effect</span>' if idle and action is not None else ""
    note += _cut_notes(step)
    rows = [("value", step.get("value")), ("reward", step.get("reward")), ("advantage", step.get("step_advantage"))]
    details = "".join(f"<dt>{name}</dt><dd>{signed(value)}</dd>" for name, value in rows if is_number(value))
    before = step.get("distance")
    if _distance(before):
        change = f" → {_distance(after)}" if _distance(after) else ""
        details += f"<dt>distance</dt><dd>{_distance(before)}{change}</dd>"
    bars = _bar(step.get("step_reward"), scales["step_reward"], "step reward")
    if scales["exact_advantage"] or is_number(step.get("exact_advantage")):
        bars = _bar(step.get("step_reward"), scales["step_reward"], "step reward", named=True)
        bars += _bar(step.get("exact_advantage"), scales["exact_advantage"], "exact advantage", named=True)
    return (
        f'<li class="step{" idle-step" if idle else ""}"><div class="number">{index + 1}</div>'
        f'<div class="view">{board(_observation(step.get("observation")))}</div>'
        f'<div class="action">{shown}{note}</div>{bars}<dl>{details}</dl></li>'
    )


def _cut_notes(step: Mapping[str, Any]) -> str:
    """Notes on text that was cut from the prompt or from the answer, and on steps that the policy did not choose."""
    notes = ""
    if step.get("cut"):
        notes += f' <span class="idle" title="they did not fit the prompt">{step["cut"]:,} characters not shown to the model</span>'
    if step.get("stopped") is False:
        notes += ' <span class="idle" title="rollout.max_answer_tokens">answer cut</span>'
    if step.get("sampled") is False:
        notes += ' <span class="soft" title="the policy is not trained on it">by the expert</span>'
    return notes


def _final_html(episode: Mapping[str, Any], board: BoardRenderer) -> str:
    success = bool(episode.get("success"))
    distance = _distance(episode.get("final_distance"))
    details = f"<dl><dt>distance</dt><dd>{distance}</dd></dl>" if distance else ""
    observation = episode.get("final_observation")
    view = "" if observation is None else f'<div class="view">{board(_observation(observation))}</div>'
    return (
        f'<li class="step final {"good" if success else "bad"}"><div class="number">end</div>{view}'
        f'<div class="action">{"✓ solved" if success else "✗ failed"}</div>{details}</li>'
    )


def _bar(value: Any, scale: float, name: str, named: bool = False) -> str:
    """A signed number above a bar that starts at the middle; `scale` is the value of a full bar, and `named` shows the name in words."""
    if not is_number(value):
        return ""
    share = 50 * abs(value) / scale if scale > 0 else 0.0
    side = "left" if value >= 0 else "right"
    text = signed(value, scale)
    tone = {"+": "good", "−": "bad"}.get(text[0], "zero")
    words = f'<span class="soft">{name}</span>' if named else ""
    return (
        f'<div class="credit {tone}" title="{name}">{words}<b>{text}</b>'
        f'<span class="bar"><i style="{side}:50%;width:{share:.1f}%"></i></span></div>'
    )


def _outputs(steps: Sequence[Mapping[str, Any]]) -> str:
    items = "".join(f"<li><pre>{escaped(step.get('output'))}</pre></li>" for step in steps)
    if not any(step.get("output") for step in steps):
        return ""
    return f"<details><summary>What the model wrote</summary><ol class='outputs'>{items}</ol></details>"


def signed(value: float, scale: float = 0.0) -> str:
    """Returns "+0.013", "−1.2", "0": three significant digits and a true minus.

    `scale` is the largest number that is shown beside this one: digits beyond its third are left out, and what then is 0 reads "≈0".
    """
    if not value:
        return "0"
    if scale > 0:
        value = round(value, 2 - math.floor(math.log10(scale)))
    return f"{value:+.3g}".replace("-", "−") if value else "≈0"


def _distance(value: Any) -> str:
    if isinstance(value, float) and value == math.inf:
        return "∞"
    return f"{value:g}" if is_number(value) else ""


def _observation(value: Any) -> str:
    return "" if value is None else str(value)


def escaped(value: Any) -> str:
    """Returns a value as text that is safe in HTML."""
    return html.escape("" if value is None else str(value))
