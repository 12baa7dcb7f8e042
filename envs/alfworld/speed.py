"""Caches the repeated work of the stock TextWorld engine: the same output several times faster.

A step of TextWorld's PDDL engine spends nearly all its time on parsing the same few templates and queries, on copying
contexts that never change, and on rendering the same commands as in the step before. `install` replaces these
functions by cached ones, `uninstall` restores the originals, and `installed` does both around a block:

* templates and queries are parsed once (`textgen._parse_and_convert`, `Rule.parse_conjunctive_query`, the grammar file);
* a context is copied one level deep (`textgen.copy_context`), because the engine replaces its entries but never mutates them;
* the command of an action is rendered once per game, if its template depends only on facts that never change;
* a problem is translated once (`fast_downward.pddl2sas`), not twice at load and twice at every reset. The planner, which
  is not used here, gets the unoptimised translation, and `sys.argv`, which the translator overwrites, is restored. Within
  `kept_on_disk`, translations are also read from and written to disk (`translations`).

Each process patches its own modules. Nothing is imported before `install`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import re
import sys
from collections.abc import Iterator

from stepreward.envs.alfworld import translations
from stepreward.envs.extras import require

# Number of translated games that a process caches, about 1 MB each.
TRANSLATIONS = 64
_LOCATED = re.compile(r"\[\{r\.name \| receptacleatlocation\([^()]*\)\}\]")
_originals: list[tuple[object, str, object]] = []
_on_disk = False


def install() -> None:
    """Replaces the slow functions; does nothing if they are already replaced.

    Raises ValueError when the packages are not installed.
    """
    if _originals:
        return
    require("alfworld", "textworld", "fast_downward", "alfworld")
    import fast_downward
    from textworld.envs.pddl import logic, textgen
    from textworld.logic import Rule

    _replace(textgen, "_parse_and_convert", _remember_templates(textgen._parse_and_convert))
    _replace(textgen, "copy_context", _copy_context)
    _replace(textgen.ContextSensitiveGrammar, "derive", _remember_commands(textgen.ContextSensitiveGrammar.derive))
    _replace(logic, "_parse_and_convert", functools.lru_cache(TRANSLATIONS)(logic._parse_and_convert))
    _replace(Rule, "parse_conjunctive_query", staticmethod(functools.lru_cache(4096)(Rule.parse_conjunctive_query)))
    _replace(fast_downward, "pddl2sas", _translate_once(fast_downward.pddl2sas))


def uninstall() -> None:
    """Restores the original functions."""
    while _originals:
        owner, name, original = _originals.pop()
        setattr(owner, name, original)


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Installs the replacements for the duration of a block, then restores the previous state."""
    before = bool(_originals)
    install()
    try:
        yield
    finally:
        if not before:
            uninstall()


@contextlib.contextmanager
def kept_on_disk(keep: bool = True) -> Iterator[None]:
    """Sets whether translations are kept on disk within a block; meant for games whose number is limited."""
    global _on_disk
    before, _on_disk = _on_disk, keep
    try:
        yield
    finally:
        _on_disk = before


def _replace(owner: object, name: str, new: object) -> None:
    # From __dict__: getattr would bind a classmethod to its class.
    _originals.append((owner, name, vars(owner)[name]))
    setattr(owner, name, new)


def _remember_templates(parse):
    @functools.lru_cache(4096)
    def parsed(text, rule_name):
        return parse(text, rule_name=rule_name)

    def remembered(text, rule_name="symbols", **_):
        # The engine attaches contexts to the symbols that it gets, so each caller needs its own copy.
        return copy.deepcopy(parsed(text, rule_name))

    return remembered


def _copy_context(context):
    return {**context, "variables": dict(context["variables"]), "mapping": dict(context["mapping"])}


def _remember_commands(derive):
    def remembered(grammar, start, context={}):  # noqa: B006 (the signature that it replaces)
        # Do not cache rules, whose names contain "#", nor queries, unless they ask for a receptacle's fixed location.
        if "#" in start or "[" in _LOCATED.sub("", start):
            return derive(grammar, start, context)
        commands = grammar.__dict__.setdefault("_commands", {})
        key = (start, tuple(context["mapping"].items()))
        if key not in commands:
            commands[key] = derive(grammar, start, context)
        return commands[key]

    return remembered


def _translate_once(translate):
    @functools.lru_cache(TRANSLATIONS)
    def translated(domain, problem):
        arguments = sys.argv
        try:
            if _on_disk and (sas := translations.read(domain, problem)) is not None:
                return translations.parsed(domain, problem), sas
            task, sas = translate(domain, problem)
            if _on_disk:
                translations.write(domain, problem, sas)
            return task, sas
        finally:
            sys.argv = arguments

    def remembered(domain, problem, verbose=False, optimize=False):
        return translated(domain, problem)

    return remembered
