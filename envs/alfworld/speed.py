"""The stock TextWorld engine without its repeated work: the same output several times faster.

A step of TextWorld's PDDL engine spends nearly all its time parsing the same few templates and queries, copying
contexts that nobody changes and writing the commands of actions that it wrote a step before. `install` replaces these
functions by ones that remember, `uninstall` puts the originals back, `installed` does both around a block:

* templates and queries are parsed once (`textgen._parse_and_convert`, `Rule.parse_conjunctive_query`, the grammar file);
* a context is copied one level deep (`textgen.copy_context`): the engine replaces its entries, never what they hold;
* the command of an action is written once a game, where its template asks only for facts that never change;
* a problem is translated once (`fast_downward.pddl2sas`), not twice at load and twice at every reset; the planner, which
  nothing here uses, gets the plain translation; and `sys.argv`, which the translator overwrites, is put back. Within
  `kept_on_disk` translations are also read and written by `translations`.

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

# Translated games that a process keeps, about 1 MB each.
TRANSLATIONS = 64
_LOCATED = re.compile(r"\[\{r\.name \| receptacleatlocation\([^()]*\)\}\]")
_originals: list[tuple[object, str, object]] = []
_on_disk = False


def install() -> None:
    """Replaces the slow functions; nothing happens when they are replaced already.

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
    """Puts the original functions back."""
    while _originals:
        owner, name, original = _originals.pop()
        setattr(owner, name, original)


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """The replacements for the length of a block; as it was before, afterwards."""
    before = bool(_originals)
    install()
    try:
        yield
    finally:
        if not before:
            uninstall()


@contextlib.contextmanager
def kept_on_disk(keep: bool = True) -> Iterator[None]:
    """Whether translations are kept on disk within a block: for games of which there is a limited number."""
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
        # The engine hangs contexts on the symbols that it gets, so each caller has symbols of its own.
        return copy.deepcopy(parsed(text, rule_name))

    return remembered


def _copy_context(context):
    return {**context, "variables": dict(context["variables"]), "mapping": dict(context["mapping"])}


def _remember_commands(derive):
    def remembered(grammar, start, context={}):  # noqa: B006 (the signature that it replaces)
        # A rule's name holds "#"; a query may change its answer, unless it asks where a receptacle stands.
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
