"""The frame of a page about runs, and the parts that the report and the viewer share besides curves, episodes and trees."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from stepreward.envs.choosing import built_in_module
from stepreward.report.episode_html import BoardRenderer, plain_board
from stepreward.report.style import CSS
from stepreward.report.tables import estimator_html, evaluation_html, losses_html


def document(title: str, body: str, *, head: str = "", style: str = CSS) -> str:
    """Returns a whole HTML page.

    Args:
      title: plain text of the window's title.
      body: HTML of the body.
      head: HTML that the head begins with, such as a content security policy.
      style: the page's style sheet.
    """
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{head}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def cards_html(cards: Sequence[tuple[str, str, str]]) -> str:
    """Returns the headline's cards, (number, label, detail) each, or ""."""
    items = (f"<div><b>{number}</b><span>{label}<br>{detail}</span></div>" for number, label, detail in cards)
    return f'<div class="numbers">{"".join(items)}</div>' if cards else ""


def tables_html(records: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> str:
    """Returns the sections on the final evaluation, the progress estimator, and what was cut or left out, as far as there are any."""
    return "\n".join(section for section in (evaluation_html(records), estimator_html(records, config), losses_html(records)) if section)


def config_html(config: Mapping[str, Any]) -> str:
    """Returns the section with a row for each key of a config."""
    rows = "".join(f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>" for key, value in _flatten(config))
    table = f'<table class="config">{rows}</table>'
    return f"<section><h2>Config</h2><details><summary>config.json</summary>{table}</details></section>"


def board_renderer(config: Mapping[str, Any]) -> BoardRenderer:
    """Returns what draws the observations of a run with this config: the built-in environment's `board_html`, if it has one, or else text.

    A module of the user's own that the config names is not imported.
    """
    environment = config.get("environment")
    mixture = config.get("mixture")
    several = mixture.get("environments") if isinstance(mixture, Mapping) else None
    name = environment.get("name") if isinstance(environment, Mapping) and not several else None
    module = built_in_module(name) if isinstance(name, str) else None
    return getattr(module, "board_html", plain_board)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return rows
