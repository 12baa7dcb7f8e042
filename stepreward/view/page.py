"""The viewer's page: one HTML file with its scripts and styles, for a server or to share.

Curves are drawn by uPlot (MIT, in `static/`), because they change while a run goes on and join several runs. The report keeps its curves as
SVG without scripts, so that it can be read where scripts are not allowed.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepreward.errors import UserError
from stepreward.metrics import write_atomically
from stepreward.report.episode_html import LEGEND
from stepreward.report.pieces import document
from stepreward.report.style import CSS

_STATIC = Path(__file__).resolve().parent / "static"
_SCRIPTS = ("uPlot.iife.min.js", "charts.js", "app.js")

_BODY = f"""
<a class="skip" href="#h-episodes">Skip to the episodes</a>
<header><h1 id="title">Runs</h1><span id="state">loading</span></header>
<noscript><p class="notice">This page needs JavaScript. The run's report.html does not.</p></noscript>
<main>
<div id="notices"></div>
<div id="headlines"></div>
<section aria-labelledby="h-runs" id="runs-section"><h2 id="h-runs">Runs</h2>
<div class="table"><table class="data"><thead><tr><th scope="col">run</th><th scope="col">method</th><th scope="col">environment</th>
<th scope="col">stage</th><th scope="col">iteration</th><th scope="col">steps</th><th scope="col">held-out success</th><th scope="col">changed</th></tr></thead>
<tbody id="runs"></tbody></table></div></section>
<section aria-labelledby="h-curves"><h2 id="h-curves">Curves</h2>
<p class="facts">Thin lines are single ticks, bold lines a moving mean. Drag over a part to enlarge it; a double click or Escape shows all of it.</p>
<div class="bar-of-tools"><label>Horizontal axis<select id="axis"><option value="tick">tick</option>
<option value="env_steps">environment steps</option><option value="wall_s">time</option></select></label></div>
<details class="chooser"><summary>Choose curves</summary><div class="bar-of-tools"><label>Find a metric
<input type="search" id="find-chart" autocomplete="off"></label><div class="tools"><button type="button" id="all-charts">All main curves</button>
<button type="button" id="no-charts">None</button></div></div><div id="choices"></div></details>
<p id="no-curves" class="empty" hidden>No curve is chosen, or none has been recorded yet.</p>
<div id="curves" class="curves"></div></section>
<section aria-labelledby="h-episodes"><h2 id="h-episodes">Episodes</h2><p class="facts">{LEGEND}</p>
<div class="bar-of-tools"><label hidden>Run<select id="of-run"></select></label><label>Iteration<select id="of-iteration"></select></label>
<div class="steppers"><button type="button" id="earlier">◀ earlier</button><button type="button" id="later">later ▶</button></div>
<label>Outcome<select id="of-outcome"><option value="">all</option><option value="solved">solved</option><option value="failed">failed</option></select>
</label><label>Text of the task<input type="search" id="of-text" autocomplete="off"></label></div>
<p id="found" class="facts" role="status"></p><div id="broken"></div>
<div id="trees"></div><div id="episodes"></div><button type="button" id="more" hidden>Show more</button></section>
</main>
"""


def page(snapshot: Mapping[str, Any] | None = None) -> str:
    """Returns the page as HTML that needs no other file.

    Args:
      snapshot: result of `Content.snapshot`, which the page then shows; None makes a page that asks its server.
    """
    data = json.dumps({"snapshot": snapshot}, ensure_ascii=False, separators=(",", ":"), default=str)
    data = data.replace("<", "\\u003c")  # so that no text of a run can end the element or begin a comment
    title = snapshot["state"]["runs"][0]["name"] if snapshot and len(snapshot["state"]["runs"]) == 1 else "Runs"
    scripts = "".join(f"<script>{text}</script>" for text in _scripts())
    body = f'{_BODY}<script type="application/json" id="data">{data}</script>{scripts}'
    head = f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy())}">' if snapshot else ""
    return document(title, body, head=head, style=_style())


def policy() -> str:
    """Returns the content security policy: no other script or style sheet than the page's own, and requests to its own server only.

    Style attributes are allowed, because the bars below the steps have a width.
    """
    digest = lambda text: f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    scripts = " ".join(digest(text) for text in _scripts())
    return (
        f"default-src 'none'; script-src {scripts}; style-src {digest(_style())}; style-src-attr 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )


def write_page(snapshot: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Writes the page with a snapshot as one file to share.

    Raises:
      UserError: the name does not end in .html, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--html={path}: give the name of an HTML file, such as run.html")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page(snapshot))
    except OSError as error:
        raise UserError(f"--html={path} cannot be written: {error.strerror or error}") from None
    return path


@functools.cache
def _scripts() -> tuple[str, ...]:
    return tuple((_STATIC / name).read_text(encoding="utf-8") for name in _SCRIPTS)


@functools.cache
def _style() -> str:
    return "\n".join([CSS, *((_STATIC / name).read_text(encoding="utf-8") for name in ("uPlot.min.css", "view.css"))])
