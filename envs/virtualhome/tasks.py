"""Lists of tasks and their splits: the programs in the simulator's package, or in a folder with the same layout.

Layout of a folder: `executable_programs/SCENE/…/NAME.txt` (title, description, empty lines, then lines
`[VERB] <object> (1.id) …`) and `init_and_final_graphs/SCENE/…/NAME.json` ({"init_graph": …,
"final_graph": …}), with the same paths below both folders.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stepreward.envs.virtualhome import goals
from stepreward.envs.virtualhome.actions import Named, read_line
from stepreward.envs.virtualhome.goals import Goal
from stepreward.envs.virtualhome.reconstruct import rebuilt
from stepreward.envs.virtualhome.simulator import Scene, simulator

SPLITS = ("train", "held_out")
HELD_OUT_SHARE = 0.2

_DATA = "dataset/programs_processed_precond_nograb_morepreconds"
_ANNOTATIONS = "resources/virtualhome/task_state_LTL_formula_accurate.json"
_PROGRAMS, _GRAPHS = "executable_programs", "init_and_final_graphs"


@dataclass(frozen=True)
class Task:
    """A task: its description, its demonstration and the files of its graphs.

    name: unique in its list. title, description: written by a person. program: lines of (verb, numbered objects).
    graph: file of the initial graph, and of the final one if `goal` is None.
    goal: the facts to reach; None for the difference between the file's two graphs. objects: the instance of each name.
    revision: if `graph` is an apartment's base graph, the task's revised_graph as JSON, from which to rebuild the initial graph.
    """

    name: str
    title: str
    description: str
    program: tuple[tuple[str, tuple[Named, ...]], ...]
    graph: str
    goal: Goal | None = None
    objects: tuple[tuple[str, int], ...] = ()
    revision: str | None = None

    @property
    def text(self) -> str:
        """The title and description, in SPA-RL's form."""
        return f"{self.title} ({self.description})" if self.description else self.title


class Loaded(NamedTuple):
    """A task's scene and goal."""

    scene: Scene
    goal: Goal


def objects_of(program: Sequence[tuple[str, tuple[Named, ...]]]) -> tuple[tuple[str, int], ...]:
    """Returns the first instance of each name in a program."""
    found: dict[str, int] = {}
    for _, objects in program:
        for each in objects:
            found.setdefault(each.name, each.number)
    return tuple(found.items())


def read_json(path: Path):
    """Reads a JSON file. Raises FileNotFoundError or ValueError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no VirtualHome file at {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON; download it again, it may be cut off ({error})") from None


@functools.lru_cache(maxsize=128)
def load(task: Task) -> Loaded:
    """Returns a task's scene and goal; caches those of the last 128 tasks.

    Raises FileNotFoundError or ValueError that names the file.
    """
    graphs = read_json(Path(task.graph))
    needed = ("init_graph", "final_graph") if task.goal is None else ()
    if not isinstance(graphs, dict) or any(name not in graphs for name in needed):
        raise ValueError(f"{task.graph} is not a VirtualHome graph file; it must be a JSON object with init_graph and final_graph")
    try:
        first = graphs.get("init_graph", graphs)
        if task.revision is not None:
            first = rebuilt(first, json.loads(task.revision), task.program, dict(task.objects))
        return Loaded(Scene(first), goals.from_graphs(first, graphs["final_graph"]) if task.goal is None else task.goal)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{task.graph}: this is not a graph of nodes and edges ({type(error).__name__}: {error})") from None
    except ValueError as error:
        raise ValueError(f"{task.graph}: {error}") from None


def _program(file: Path, name: str, graph: Path) -> Task:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text file ({error})") from None
    start = next((index for index, line in enumerate(lines) if line.startswith("[")), None)
    if start is None or not lines[0].strip():
        raise ValueError(f"{file} is not a VirtualHome program; it needs a title, a description, and lines such as `[WALK] <sofa> (1.369)`")
    try:
        program = tuple(read_line(line) for line in lines[start:] if line.strip())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    description = " ".join(" ".join(lines[1:start]).split()).rstrip(".")
    return Task(name, lines[0].strip(), description, program, str(graph), None, objects_of(program))


@functools.lru_cache(maxsize=8)
def programs(folder: str) -> tuple[Task, ...]:
    """Returns the tasks of a folder with the layout above, sorted by path.

    Raises FileNotFoundError when the folder or a program's graphs are missing, and ValueError for another layout.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder of VirtualHome programs at {root}; set data to an existing folder")
    top = root / _PROGRAMS
    files = sorted(top.rglob("*.txt")) if top.is_dir() else []
    if not files:
        raise ValueError(f"{root} is not a folder of VirtualHome programs; it needs {_PROGRAMS}/ with .txt files, and {_GRAPHS}/")
    found = []
    for file in files:
        graph = root / _GRAPHS / file.relative_to(top).with_suffix(".json")
        if not graph.is_file():
            raise FileNotFoundError(f"{file} has no graphs: {graph} is missing")
        found.append(_program(file, file.relative_to(top).with_suffix("").as_posix(), graph))
    return tuple(found)


def _short(task: Task) -> str:
    return task.name.rpartition("/")[2].removeprefix("file")


@functools.lru_cache(maxsize=2)
def packaged() -> tuple[Task, ...]:
    """Returns the 518 tasks of the simulator's package. Raises ValueError when it is not installed."""
    return programs(str(simulator().root / _DATA))


@functools.lru_cache(maxsize=2)
def annotated() -> tuple[Task, ...]:
    """Returns the 342 packaged tasks that the Embodied Agent Interface annotates, with its goals."""
    scenes = read_json(simulator().root / _ANNOTATIONS)
    notes = {name: note["vh_goal"] for titles in scenes.values() for tasks in titles.values() for name, note in tasks.items()}
    return tuple(dataclasses.replace(task, goal=goals.from_annotation(notes[_short(task)])) for task in packaged() if _short(task) in notes)


def playable(tasks: Sequence[Task], unplayable: Sequence[str] = ()) -> tuple[Task, ...]:
    """Returns the tasks whose short name is not in `unplayable`."""
    return tuple(task for task in tasks if _short(task) not in unplayable)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def split(tasks: Sequence[Task], by: str = "task", seed: int = 0) -> dict[str, tuple[Task, ...]]:
    """Divides tasks into "train" and "held_out", each in an order that mixes titles.

    Args:
      tasks: tasks with unique names.
      by: "task" holds out the fifth of the tasks with the smallest digests of seed and name, so the splits share titles. "title"
        holds out whole titles, in the order of their digests, until they cover a fifth of the tasks.
      seed: seeds the digests, and so the division.
    """
    order = sorted(tasks, key=lambda task: _digest(seed, task.name))
    least = round(HELD_OUT_SHARE * len(order))
    if by == "task":
        return {"train": tuple(order[least:]), "held_out": tuple(order[:least])}
    counts: dict[str, int] = {}
    for task in order:
        counts[task.title] = counts.get(task.title, 0) + 1
    held, count = set(), 0
    for title in sorted(counts, key=lambda title: _digest(seed, "title", title)):
        if count >= least:
            break
        held.add(title)
        count += counts[title]
    return {
        "train": tuple(task for task in order if task.title not in held),
        "held_out": tuple(task for task in order if task.title in held),
    }
