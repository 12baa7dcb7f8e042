"""Writes a run's settings into a chat template as defaults, so that a saved model is prompted as it was in training.

A run may give every conversation a system message, switch a thinking mode on or off, and show a fixed date. An unchanged copy of
the template knows none of these settings, so whoever loads the folder would prompt the model differently from its training.
"""

from __future__ import annotations

import json
from pathlib import Path

# A template that asks for today's date gets the run's fixed date, whatever format it asks for, so that runs are reproducible.
FIXED_DATE = "{% macro strftime_now(format) %}{{ date_string }}{% endmacro %}{{ '' }}"
_EMPTY = "{{ '' }}"  # keeps a line break at the start of the template, which Jinja would remove after a block


def with_defaults(template: str, *, system: str | None = None, thinking: bool | None = None, date: str | None = None) -> str:
    """Returns the template with defaults for variables that a caller does not set.

    Args:
      template: Jinja source.
      system: the system message for conversations that do not begin with one; None adds none.
      thinking: the default of `enable_thinking`; None sets none.
      date: the date for a template that shows one; None sets none. Templates without a date are not changed by it.

    Returns:
      Jinja source; the unchanged template if no default applies.
    """
    parts = []
    if date is not None and ("date_string" in template or "strftime_now" in template):
        parts.append(_default("date_string", date))
        parts += [FIXED_DATE] if "strftime_now" in template and not template.startswith(FIXED_DATE) else []
    if thinking is not None:
        parts.append(_default("enable_thinking", thinking))
    if system is not None:
        message = f"[{{'role': 'system', 'content': {_literal(system)}}}]"
        parts.append(f"{{% if not messages or messages[0]['role'] != 'system' %}}{{% set messages = {message} + messages %}}{{% endif %}}")
    return "".join([*parts, _EMPTY, template]) if parts else template


def write_template(folder: Path, template: str) -> None:
    """Writes a template to `chat_template.jinja`, which current libraries read first, and replaces it in every other file of a
    tokenizer folder that holds one."""
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        file = folder / name
        if not file.is_file():
            continue
        content = json.loads(file.read_text(encoding="utf-8"))
        found = content.get("chat_template")
        if isinstance(found, list):  # several, by name
            content["chat_template"] = [t | {"template": template} if t.get("name") == "default" else t for t in found]
        elif found is not None:
            content["chat_template"] = template
        if found is not None:
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _default(name: str, value: str | bool) -> str:
    return f"{{% if {name} is not defined %}}{{% set {name} = {_literal(value)} %}}{{% endif %}}"


def _literal(value: str | bool) -> str:
    """A Jinja literal. Jinja strings use Python's escapes, which include those of JSON."""
    return json.dumps(value, ensure_ascii=False)
