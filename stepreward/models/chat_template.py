"""A chat template with a run's own settings as its defaults, so that a saved model is spoken to as it was trained.

A run may give every conversation a system message, switch a thinking mode on or off, and show a fixed date. A template that is
copied as it is knows none of that: whoever loads the folder would speak to the model in words that it was not trained on.
"""

from __future__ import annotations

import json
from pathlib import Path

# A template that asks for today's date gets the date of the run's settings, whatever format it asks for: runs repeat.
FIXED_DATE = "{% macro strftime_now(format) %}{{ date_string }}{% endmacro %}{{ '' }}"
_EMPTY = "{{ '' }}"  # keeps a line break at the start of the template, which Jinja would remove behind a block


def with_defaults(template: str, *, system: str | None = None, thinking: bool | None = None, date: str | None = None) -> str:
    """The template, with values for what a caller does not give.

    Args:
      template: Jinja source.
      system: the system message of conversations that begin without one.
      thinking: the value of `enable_thinking`.
      date: what a template that shows a date shows; others stay as they are.

    Returns:
      Jinja source; the same text where no value is given.
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
    """Puts a template into every file of a tokenizer folder that holds one, and into `chat_template.jinja`, which readers of today
    look at first."""
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
    """A Jinja literal: its strings have the escapes of Python's, which JSON's are among."""
    return json.dumps(value, ensure_ascii=False)
