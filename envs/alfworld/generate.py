"""Generates games of the six task types from the package's floor plans. A seed gives the same game on any machine.

The installed `alfworld` package provides the floor plans (receptacles, where to stand before each, the room's objects), the
rules about which receptacles may hold which objects and which objects can be heated, cooled, cleaned or switched on, the
goals in PDDL and the sentences of the tasks. The seed decides the task, the room, its receptacles and their contents.
Receptacles without a place to stand in the floor plan (bins, stove burners) get one. At the start, every container is closed,
and no object of the target type is in a receptacle of the target type.

"train" uses the benchmark's training rooms (floor plans 7-30 of each hundred) and "held_out" the others (1-6); their random
streams differ.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stepreward.envs.alfworld.games import Game
from stepreward.envs.alfworld.presets import Settings
from stepreward.envs.extras import require

_SPLITS = {"train": 0, "held_out": 1}
_TOOLS = {"clean": "SinkBasin", "heat": "Microwave", "cool": "Fridge"}
_ABILITIES = {"clean": "Cleanable", "heat": "Heatable", "cool": "Coolable"}
_LAMP, _LAMP_PLACES = "DeskLamp", ("Desk", "SideTable", "Dresser", "Shelf", "CoffeeTable")
# Types that the domain's actions mention, which every problem must therefore declare.
_NAMED_OBJECTS, _NAMED_RECEPTACLES = ("Knife", "ButterKnife"), ("SinkBasin", "Sink", "Microwave", "Fridge")
_ATTEMPTS = 200


class Generated(NamedTuple):
    """A generated game, with the fields of the benchmark's traj_data.json."""

    game: Game
    task_type: str
    params: dict[str, object]
    scene: int


class _Receptacle(NamedTuple):
    name: str
    type: str
    location: str


class _Knowledge(NamedTuple):
    """The package's data, sorted, because the package uses unordered sets."""

    contains: dict[str, tuple[str, ...]]  # receptacle type -> object types
    abilities: dict[str, frozenset[str]]
    openable: frozenset[str]
    movable: frozenset[str]
    rooms: dict[str, tuple[str, ...]]  # task type -> room types
    scenes: dict[tuple[str, str], tuple[int, ...]]  # (split, room type) -> floor plans
    goals: dict[str, tuple[str, tuple[str, ...]]]  # task type -> PDDL, sentences
    domain: str
    grammar: str


def generate(settings: Settings, seed: int, split: str = "train") -> Generated:
    """Generates the game of a seed. Raises ValueError for an unknown split, a negative seed, or a missing package."""
    if split not in _SPLITS:
        raise ValueError(f'unknown split {split!r}: give "train" or "held_out"')
    if seed < 0:
        raise ValueError(f"seed={seed}: give a whole number, at least 0")
    knowledge = _knowledge()
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, _SPLITS[split], 0xA1F])))
    task_type = _one(rng, settings.task_types)
    for _ in range(_ATTEMPTS):
        scene = _one(rng, knowledge.scenes[split, _one(rng, knowledge.rooms[task_type])])
        plan = _plan(rng, knowledge, task_type, scene, settings)
        if plan is not None:
            break
    else:
        raise ValueError(
            f"seed {seed}: no room found for a {task_type} game with max_receptacles={settings.max_receptacles}; raise max_receptacles"
        )
    receptacles, placed, params = plan
    place = params["parent_target"] or params["toggle_target"]
    name = f"{split}/{task_type}-{params['object_target']}-{place}-{scene}/seed_{seed}"
    goal, sentences = knowledge.goals[task_type]
    words = {"obj": params["object_target"], "recep": params["parent_target"], "toggle": params["toggle_target"]}
    sentence = _one(rng, sentences).format(**{key: word.lower() for key, word in words.items()})
    problem = _problem(knowledge, receptacles, placed, goal.replace("#", "-").format(**words), seed)
    game = Game(name, knowledge.domain, problem, knowledge.grammar.replace("UNKNOWN GOAL", sentence))
    return Generated(game, task_type, params, scene)


def write(generated: Generated, root: str | Path) -> Path:
    """Writes a game below `root` in the benchmark's own layout; returns the path of the game file."""
    folder = Path(root) / generated.game.name
    folder.mkdir(parents=True, exist_ok=True)
    game = generated.game
    trajectory = {
        "task_type": generated.task_type,
        "task_id": folder.name,
        "pddl_params": generated.params,
        "scene": {"floor_plan": f"FloorPlan{generated.scene}", "scene_num": generated.scene},
    }
    content = {"pddl_domain": game.domain, "pddl_problem": game.problem, "grammar": game.grammar, "solvable": True}
    (folder / "traj_data.json").write_text(json.dumps(trajectory), encoding="utf-8")
    (folder / "initial_state.pddl").write_text(game.problem, encoding="utf-8")
    (folder / "game.tw-pddl").write_text(json.dumps(content), encoding="utf-8")
    return folder / "game.tw-pddl"


@functools.cache
def _knowledge() -> _Knowledge:
    package = require("alfworld", "alfworld")
    from alfworld.gen import constants, goal_library

    movable = frozenset(constants.MOVABLE_RECEPTACLES)
    contains = {
        receptacle: tuple(sorted(name for name in objects if not name.endswith("Sliced")))
        for receptacle, objects in sorted(constants.VAL_RECEPTACLE_OBJECTS.items())
        if receptacle not in movable
    }
    held_out = frozenset(constants.TEST_SCENE_NUMBERS)
    scenes = {}
    for room, numbers in constants.SCENE_TYPE.items():
        scenes["train", room] = tuple(number for number in numbers if number not in held_out)
        scenes["held_out", room] = tuple(number for number in numbers if number in held_out)
    data = Path(package.__file__).parent / "data"
    return _Knowledge(
        contains,
        {name: frozenset(objects) for name, objects in constants.VAL_ACTION_OBJECTS.items()},
        frozenset(constants.OPENABLE_CLASS_LIST),
        movable,
        {task: tuple(sorted(rooms)) for task, rooms in constants.GOALS_VALID.items()},
        scenes,
        {task: (goal["pddl"], tuple(goal["templates"])) for task, goal in goal_library.gdict.items()},
        (data / "alfred.pddl").read_text(encoding="utf-8"),
        (data / "alfred.twl2").read_text(encoding="utf-8"),
    )


@functools.lru_cache(128)
def _floor_plan(scene: int) -> tuple[tuple[_Receptacle, ...], tuple[str, ...]]:
    """Returns the receptacles of a floor plan and the types of its objects."""
    knowledge = _knowledge()
    layouts = importlib.resources.files("alfworld.gen") / "layouts"
    things = sorted(json.loads((layouts / f"FloorPlan{scene}-objects.json").read_text()))
    poses = json.loads((layouts / f"FloorPlan{scene}-openable.json").read_text())
    receptacles = []
    for name, (x, z, turn, tilt) in sorted(poses.items()):
        parts = name.split("|")
        kind = parts[-1] if parts[-1].endswith("Basin") else parts[0]
        if kind in knowledge.contains:
            place = "|".join(str(int(number)) for number in (x * 4, z * 4, turn / 90, tilt))
            receptacles.append(_Receptacle(_mangled(name), kind, _mangled(f"loc|{place}")))
    known = {receptacle.type for receptacle in receptacles}
    for index, kind in enumerate(thing for thing in things if thing in knowledge.contains and thing not in known):
        place = f"loc|{40 + index}|40|0|0"
        # The simulator names a basin "Sink|...|SinkBasin", from which the engine derives "sinkbasin".
        name = f"{kind.removesuffix('Basin')}|+10.{index:02d}|+00.00|+10.00" + (f"|{kind}" if kind.endswith("Basin") else "")
        receptacles.append(_Receptacle(_mangled(name), kind, _mangled(place)))
    return tuple(receptacles), tuple(things)


def _plan(rng, knowledge: _Knowledge, task_type: str, scene: int, settings: Settings):
    """Draws receptacles, (object, receptacle) pairs and the task's parameters; None if the room does not allow the task."""
    receptacles, things = _floor_plan(scene)
    kinds = {receptacle.type for receptacle in receptacles}
    carried = {name for kind in kinds for name in knowledge.contains[kind]} & set(things)
    verb = next((verb for verb in _TOOLS if f"_{verb}_" in task_type), None)
    light = task_type == "look_at_obj_in_light"
    if verb and _TOOLS[verb] not in kinds:
        return None
    if light and (_LAMP not in things or not kinds & set(_LAMP_PLACES)):
        return None
    pairs = []
    for target in sorted(carried):
        homes = [kind for kind in sorted(kinds) if target in knowledge.contains[kind]]
        if verb and target not in knowledge.abilities[_ABILITIES[verb]]:
            continue
        if light:
            pairs.append((target, ""))
        elif len(homes) > 1:
            pairs += [(target, home) for home in homes if not (verb and home == _TOOLS[verb])]
    if not pairs:
        return None
    # Draw the object before its destination; otherwise objects with many destinations would occur more often.
    target = _one(rng, sorted({pair[0] for pair in pairs}))
    parent = _one(rng, [pair[1] for pair in pairs if pair[0] == target])

    needed = [kind for kind in (parent, _TOOLS.get(verb)) if kind]
    if light:
        needed.append(_one(rng, [kind for kind in _LAMP_PLACES if kind in kinds]))
    chosen = [_one(rng, [one for one in receptacles if one.type == kind]) for kind in needed]
    sources = [one for one in receptacles if one.type != parent and target in knowledge.contains[one.type]]
    chosen.append(_one(rng, sources))
    rest = [one for one in receptacles if one not in chosen]
    limit = len(receptacles) if settings.max_receptacles is None else settings.max_receptacles
    chosen += [rest[i] for i in rng.permutation(len(rest))[: max(0, limit - len(set(chosen)))]]
    present = sorted(set(chosen))

    count = int(rng.integers(2, 4)) if "two" in task_type else int(rng.integers(1, 3))
    placed = [(target, _one(rng, [one for one in present if one in sources])) for _ in range(count)]
    if light:
        placed.append((_LAMP, next(one for one in chosen if one.type == needed[-1])))
    # Other objects, in random order, up to three of a type.
    others = [thing for thing in sorted(carried - {target}) for _ in range(3)]
    for index in rng.permutation(len(others)):
        homes = [one for one in present if others[index] in knowledge.contains[one.type]]
        if len(placed) >= settings.max_objects:
            break
        if homes:
            placed.append((others[index], _one(rng, homes)))
    params = {
        "object_target": target, "parent_target": parent, "toggle_target": _LAMP if light else "",
        "mrecep_target": "", "object_sliced": False,
    }  # fmt: skip
    return present, placed, params


def _problem(knowledge: _Knowledge, receptacles, placed, goal: str, seed: int) -> str:
    objects, facts = [], []
    for index, (kind, receptacle) in enumerate(placed):
        name = _mangled(f"{kind}|+{index:02d}.00|+00.90|+00.00")
        objects.append(name)
        facts += [
            f"(objectType {name} {kind}Type)",
            f"(inReceptacle {name} {receptacle.name})",
            f"(objectAtLocation {name} {receptacle.location})",
        ]
        if kind != _LAMP:
            facts.append(f"(pickupable {name})")
        if kind in knowledge.movable:
            facts.append(f"(isReceptacleObject {name})")
        facts += [f"({ability.lower()} {name})" for ability, kinds in sorted(knowledge.abilities.items()) if kind in kinds]
    for receptacle in receptacles:
        facts += [
            f"(receptacleType {receptacle.name} {receptacle.type}Type)",
            f"(receptacleAtLocation {receptacle.name} {receptacle.location})",
        ]
        if receptacle.type in knowledge.openable:
            facts.append(f"(openable {receptacle.name})")
    otypes = sorted({kind for kind, _ in placed} | set(_NAMED_OBJECTS))
    rtypes = sorted({receptacle.type for receptacle in receptacles} | set(_NAMED_RECEPTACLES))
    facts += [f"(canContain {rtype}Type {otype}Type)" for rtype in rtypes for otype in otypes if otype in knowledge.contains.get(rtype, ())]
    start = "loc_bar_0_bar_0_bar_0_bar_90"
    locations = sorted({receptacle.location for receptacle in receptacles} | {start})
    declared = (
        ["agent1 - agent"]
        + [f"{name}Type - otype" for name in otypes]
        + [f"{name}Type - rtype" for name in rtypes]
        + [f"{name} - object" for name in objects]
        + [f"{receptacle.name} - receptacle" for receptacle in receptacles]
        + [f"{location} - location" for location in locations]
    )
    facts.append(f"(atLocation agent1 {start})")
    return "\n".join(
        [f"(define (problem seed_{seed})", "(:domain alfred)", "(:objects", *declared, ")", "(:init", *facts, ")", goal.strip()]
    )


def _mangled(name: str) -> str:
    """Converts a name of the simulator to the form in the benchmark's PDDL."""
    for symbol, word in (("|", "_bar_"), ("+", "_plus_"), ("-", "_minus_"), (".", "_dot_")):
        name = name.replace(symbol, word)
    return name


def _one(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]
