"""Reads SPA-RL's task files. Each task is a JSON object with its program, its goal as a change of the graph, and its instances.

A task: {"task", "description", "new_program_lines", "revised_graph": {"nodes", "revised_nodes", "revised_add_edges"},
"object_id_dict", "path", …}. The setting `graphs` names the folder of the initial graphs:

* `init_and_final_graphs`: the graph is the file in `path`, from "TrimmedTestScene…" on, with .json instead of .txt;
* a folder with the apartments' base graphs, TrimmedTestScene1_graph.json … 7: the graph is rebuilt (`reconstruct`), and only
  tasks whose program then reaches their goal are kept. `path` names the apartment; if it does not, the first one that the
  `scenes` file lists for the task is used. That file is a JSON list of {"row", "scene_candidates"}, with rows counted from 0.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

from stepreward.envs.virtualhome import goals, tasks
from stepreward.envs.virtualhome.actions import read_line
from stepreward.envs.virtualhome.game import Game, lines
from stepreward.envs.virtualhome.tasks import Task, read_json

_SCENE = re.compile(r"TrimmedTestScene(\d+)_graph")
_FIELDS = ("task", "description", "new_program_lines", "revised_graph", "object_id_dict")


@functools.lru_cache(maxsize=4)
def read(data: str, graphs: str | None, scenes: str | None = None) -> tuple[Task, ...]:
    """Returns the tasks of a file, in its order, without those that have no goal or no apartment, or that cannot be rebuilt.

    Raises FileNotFoundError for a missing file or folder, and ValueError with the file and line or task of malformed data.
    """
    if graphs is None:
        raise ValueError(f"{data} has tasks without graphs; give graphs=, the folder of init_and_final_graphs or of the base graphs")
    folder = Path(graphs)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of VirtualHome graphs at {folder}; set graphs to an existing folder")
    base = any(folder.glob("TrimmedTestScene*_graph.json"))
    if not base and not any(folder.glob("TrimmedTestScene*_graph")):
        raise ValueError(f"{folder} has no VirtualHome graphs: it needs TrimmedTestScene1_graph.json … or folders of these names")
    candidates = {} if scenes is None else _candidates(Path(scenes))
    found = []
    for row, record in enumerate(_records(Path(data))):
        where = f"{data}, task {row}"
        missing = [name for name in _FIELDS if name not in record] if isinstance(record, dict) else list(_FIELDS)
        if missing:
            raise ValueError(f"{where}: this is not an SPA-RL task; it lacks {', '.join(missing)}")
        graph = _base_graph(folder, record, candidates.get(row, ())) if base else _own_graph(folder, record, where)
        if graph is None:
            continue
        try:
            task = _task(row, record, graph, base)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{where}: {error}") from None
        if task.goal.size and (not base or _solvable(task)):
            found.append(task)
    if not found and base and not candidates:
        raise ValueError(f"{data}: the tasks' paths name no apartment; give scenes=, a JSON list of {{row, scene_candidates}}")
    return tuple(found)


def _records(file: Path) -> list[Any]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"no VirtualHome task file at {file}; set data to an existing file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text file ({error})") from None
    if file.suffix == ".json":
        listed = read_json(file)
        if not isinstance(listed, list):
            raise ValueError(f"{file} is not a JSON list of tasks")
        return listed
    records = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number} is not JSON; the file may be cut off ({error})") from None
    if not records:
        raise ValueError(f"{file} has no tasks")
    return records


def _candidates(file: Path) -> dict[int, tuple[int, ...]]:
    try:
        return {entry["row"]: tuple(entry["scene_candidates"]) for entry in read_json(file)}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a JSON list of {{row, scene_candidates}} ({type(error).__name__}: {error})") from None


def _base_graph(folder: Path, record, candidates) -> Path | None:
    named = _SCENE.search(str(record.get("path", "")))
    scene = int(named[1]) if named else next(iter(candidates), None)
    if scene is None:
        return None
    graph = folder / f"TrimmedTestScene{scene}_graph.json"
    if not graph.is_file():
        raise FileNotFoundError(f"the base graph {graph} is missing; set graphs to a folder with all apartments")
    return graph


def _own_graph(folder: Path, record, where: str) -> Path:
    path = str(record.get("path", ""))
    named = _SCENE.search(path)
    if not named:
        raise ValueError(f"{where}: path {path!r} names no TrimmedTestScene…_graph; give the base graphs and scenes= instead")
    graph = (folder / path[named.start() :]).with_suffix(".json")
    if not graph.is_file():
        raise FileNotFoundError(f"{where}: the graph {graph} is missing")
    return graph


def _task(row: int, record, graph: Path, base: bool) -> Task:
    return Task(
        name=f"{record.get('id', '')}/{row}",
        title=str(record["task"]).strip(),
        description=" ".join(str(record["description"]).split()).rstrip("."),
        program=tuple(read_line(line) for line in record["new_program_lines"]),
        graph=str(graph),
        goal=goals.from_revision(record["revised_graph"]),
        objects=tuple((str(name).replace(" ", "_").lower(), int(number)) for name, number in record["object_id_dict"].items()),
        revision=json.dumps(record["revised_graph"]) if base else None,
    )


def _solvable(task: Task) -> bool:
    """Whether the program reaches the goal in the rebuilt graph; if not, the graph differs too much from the original."""
    try:
        scene, goal = tasks.load(task)
    except ValueError:
        return False
    game = Game(scene, goal)
    at = game.start(dict(task.objects))
    for verb, ids in lines(task.program):
        after = game.do(at, verb, ids) if all(number in scene.names for number in ids) else None
        if after is not None:
            at = after
    return not game.missing(at) and game.missing(game.start()) > 0
