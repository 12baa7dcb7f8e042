"""What the page shows of some runs, as plain values and as HTML whose text is escaped."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepreward.metrics import is_number
from stepreward.report.episode_html import episode_html
from stepreward.report.page import summarize
from stepreward.report.pieces import board_renderer, cards_html, config_html, tables_html
from stepreward.report.tree_html import tree_html
from stepreward.view.curves import axes, curve, merged, panels, stages
from stepreward.view.runs import MOST_RUNS, RunFiles, find_runs, names_of, runs_below

MOST_RECORDINGS = 2000  # files of recorded episodes that the index lists, the latest ones
MOST_SHARED = 60  # of them that a page without a server holds of each run, evenly spread
MOST_EPISODES = 60  # in one answer
_SEARCHED = 400  # characters of the first observation that the filter by text searches
_SCAN_S = 5.0  # seconds between two searches for new runs in the given folders
# What a recording may make a renderer raise: the files are not trusted to have sensible values.
_ODD = (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)


class Content:
    """The runs that one viewer shows. Its methods may be called from several threads.

    Args:
      paths: workdirs, or folders of runs; runs that appear in a folder later are shown too.

    Raises:
      UserError: a path is not there or holds no run.
    """

    def __init__(self, paths: Sequence[str | Path]):
        self._paths = [Path(path) for path in paths]
        self._lock = threading.RLock()
        self._runs: dict[str, RunFiles] = {}
        self._drawn: dict[str, tuple[int, dict[str, Any]]] = {}  # what is derived from the records of a version
        self._listed: dict[str, dict[str, tuple[Any, dict[str, Any]]]] = {}  # run -> file -> its state, and what the index says of it
        self._scanned = time.monotonic()
        self._take(find_runs(paths))

    def state(self) -> dict[str, Any]:
        """Reads what is new and returns the runs, their headlines, and the panels that there are."""
        with self._lock:
            self._look_for_runs()
            for run in self._runs.values():
                run.update()
            names = names_of([run.folder for run in self._runs.values()])
            runs = [self._run(ident, run, name) for (ident, run), name in zip(self._runs.items(), names)]
            return {"runs": runs, "panels": merged([self._derived(ident)["panels"] for ident in self._runs]), "now": time.time()}

    def curves(self, keys: Sequence[str]) -> dict[str, Any]:
        """Returns `axes`, run → `curves.axes`, and `curves`, metric → run → `curves.curve`, of the runs that have the metric."""
        with self._lock:
            found: dict[str, dict[str, Any]] = {}
            for ident, run in self._runs.items():
                kept = self._derived(ident)["curves"]
                for key in keys:
                    if key not in kept:
                        kept[key] = curve(run.records, key)
                    if kept[key][0]:
                        found.setdefault(key, {})[ident] = kept[key]
            return {"axes": {ident: self._derived(ident)["axes"] for ident in self._runs}, "curves": found}

    def index(self, ident: str) -> list[dict[str, Any]]:
        """Returns the recordings of a run, first tick first: `file`, `tick`, `iteration`, `tree` (whether it has one), `error`, and
        `episodes` with `task`, `success`, and `text`, the beginning of the first observation.

        Raises:
          KeyError: there is no such run.
        """
        with self._lock:
            run, found = self._runs[ident], []
            kept = self._listed.setdefault(ident, {})
            for name, state in list(run.recorded.items())[-MOST_RECORDINGS:]:
                if name not in kept or kept[name][0] != state:
                    kept[name] = state, _entry(run, name)
                found.append(kept[name][1])
            return found

    def episodes(self, ident: str, places: Sequence[tuple[str, int]]) -> list[str]:
        """Returns episodes as HTML, in the order of `places`: (file, number of the episode in it), at most 60.

        Raises:
          KeyError: there is no such run, or it has no such file.
        """
        with self._lock:
            run = self._runs[ident]
            return [self._episode(run, name, number) for name, number in places[:MOST_EPISODES]]

    def tree(self, ident: str, name: str) -> str:
        """Returns the tree of a recording as HTML, or "".

        Raises:
          KeyError: there is no such run, or it has no such file.
        """
        with self._lock:
            try:
                return tree_html([self._runs[ident].episodes(name)])
            except _ODD as error:
                if name not in self._runs[ident].recorded:
                    raise
                return _notice(f"The tree in {name} cannot be shown: {error}")

    def details(self, ident: str) -> str:
        """Returns the tables and the config of a run as HTML.

        Raises:
          KeyError: there is no such run.
        """
        with self._lock:
            run = self._runs[ident]
            return tables_html(run.records, run.config) + (config_html(run.config) if run.config else "")

    def snapshot(self) -> dict[str, Any]:
        """Returns everything that the page can ask for, for a page without a server."""
        state = self.state()
        keys = [key for panel in state["panels"] for key in panel["keys"]]
        idents = [run["id"] for run in state["runs"]]
        index = {ident: self.index(ident) for ident in idents}
        for run in state["runs"]:
            every = index[run["id"]]
            if len(every) > MOST_SHARED:
                kept = {round(place * (len(every) - 1) / (MOST_SHARED - 1)) for place in range(MOST_SHARED)}
                index[run["id"]] = [every[place] for place in sorted(kept)]
                run["notices"].append(f"This file holds {MOST_SHARED} of {run['recorded']} recordings of episodes.")
        with self._lock:
            places = {ident: [(e["file"], n) for e in index[ident] for n in range(len(e["episodes"]))] for ident in idents}
            episodes = {i: {f"{name}/{n}": self._episode(self._runs[i], name, n) for name, n in places[i]} for i in idents}
        trees = {i: {e["file"]: self.tree(i, e["file"]) for e in index[i] if e["tree"]} for i in idents}
        details = {ident: self.details(ident) for ident in idents}
        return {"state": state, "curves": self.curves(keys), "index": index, "episodes": episodes, "trees": trees, "details": details}

    def _look_for_runs(self) -> None:
        if time.monotonic() - self._scanned < _SCAN_S or len(self._runs) >= MOST_RUNS:
            return
        self._scanned = time.monotonic()
        self._take([run for path in self._paths if path.is_dir() for run in runs_below(path)])

    def _take(self, folders: Sequence[Path]) -> None:
        """Adds new folders. A run keeps its name for the page, so that the page can name no other folder."""
        known = {run.folder for run in self._runs.values()}
        for folder in folders:
            if folder not in known and len(self._runs) < MOST_RUNS:
                self._runs[f"run{len(self._runs)}"] = RunFiles(folder)

    def _run(self, ident: str, run: RunFiles, name: str) -> dict[str, Any]:
        last = run.records[-1] if run.records else {}
        number = lambda key: last.get(key) if is_number(last.get(key)) else None
        credit, environment = (
            run.config.get(group) if isinstance(run.config.get(group), Mapping) else {} for group in ("credit", "environment")
        )
        derived = self._derived(ident)
        return {
            "id": ident, "name": name, "method": _text(credit.get("method")), "environment": _text(environment.get("name")), "stage": _text(last.get("stage")),
            "tick": number("tick"), "iteration": number("iteration"), "env_steps": number("env_steps"), "wall_s": number("wall_s"),
            "success": derived["success"], "changed_s": run.changed_s, "gone": run.gone, "notices": run.notices, "version": run.version,
            "recorded": len(run.recorded), "recorded_version": str(hash(tuple(run.recorded.items()))),
            "summary": derived["summary"], "stages": derived["stages"],
        }  # fmt: skip

    def _derived(self, ident: str) -> dict[str, Any]:
        """What follows from the records and is costly: computed once for each version of them."""
        run = self._runs[ident]
        if ident not in self._drawn or self._drawn[ident][0] != run.version:
            self._drawn[ident] = (
                run.version,
                {
                    "panels": panels(run.records),
                    "axes": axes(run.records),
                    "stages": stages(run.records),
                    "summary": _summary(run.records),
                    "success": next((r["eval/success"] for r in reversed(run.records) if is_number(r.get("eval/success"))), None),
                    "curves": {},
                },
            )
        return self._drawn[ident][1]

    def _episode(self, run: RunFiles, name: str, number: int) -> str:
        try:
            content = run.episodes(name)
            return episode_html(content["iteration"], content["episodes"][number], board_renderer(run.config))
        except _ODD as error:
            if name not in run.recorded:
                raise
            return _notice(f"Episode {number + 1} of {name} cannot be shown: {error}")


def _summary(records: Sequence[Mapping[str, Any]]) -> str:
    if not records:
        return '<p class="lead">No iteration has been recorded yet.</p>'
    try:
        paragraph, cards = summarize(records)
    except _ODD as error:
        return _notice(f"The headline cannot be made: {error}")
    return f'<p class="lead">{paragraph}</p>{cards_html(cards)}'


def _entry(run: RunFiles, name: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"file": name, "tick": None, "iteration": None, "tree": False, "episodes": [], "error": ""}
    try:
        content = run.episodes(name)
        entry |= {"tick": content.get("tick"), "iteration": content["iteration"], "tree": bool(content.get("tree"))}
        entry["episodes"] = [_listed(episode) for episode in content["episodes"]]
    except ValueError as error:
        entry["error"] = str(error)
    return entry


def _listed(episode: Mapping[str, Any]) -> dict[str, Any]:
    first = episode["steps"][0].get("observation") if episode["steps"] else ""
    return {"task": _text(episode.get("task")), "success": bool(episode.get("success")), "text": _text(first)[:_SEARCHED]}


def _notice(text: str) -> str:
    return f'<p class="notice">{html.escape(text)}</p>'


def _text(value: Any) -> str:
    return "" if value is None else str(value)
