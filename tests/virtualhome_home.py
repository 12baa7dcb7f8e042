"""A two-room home in VirtualHome's layout, for tests: a plate on a table, a closed cupboard with a cup, two chairs, a lamp."""

import json

NODES = {
    1: ("kitchen", "Rooms", [], []),
    2: ("bedroom", "Rooms", [], []),
    3: ("character", "Characters", [], []),
    10: ("table", "Furniture", ["SURFACES"], ["CLEAN"]),
    11: ("plate", "placable_objects", ["GRABBABLE", "RECIPIENT"], ["CLEAN"]),
    12: ("cupboard", "Furniture", ["CAN_OPEN", "CONTAINERS"], ["CLOSED"]),
    13: ("cup", "placable_objects", ["GRABBABLE", "RECIPIENT"], ["DIRTY"]),
    14: ("chair", "Furniture", ["SITTABLE", "SURFACES"], []),
    20: ("chair", "Furniture", ["SITTABLE", "SURFACES"], []),
    21: ("lamp", "Lamps", ["HAS_SWITCH"], ["OFF", "PLUGGED_IN"]),
}
INSIDE = [(3, 2), (10, 1), (11, 1), (12, 1), (13, 12), (14, 1), (20, 2), (21, 2)]
CLOSE = [(10, 11), (10, 14), (12, 13)]


def graph(states=None, change=None):
    """The home's graph; `states` replaces states of nodes, `change` maps the list of edges (start, relation, end)."""
    edges = [(start, "INSIDE", end) for start, end in INSIDE] + [(11, "ON", 10)]
    edges += [(a, "CLOSE", b) for pair in CLOSE for a, b in (pair, pair[::-1])]
    edges = change(edges) if change else edges
    nodes = [
        {"id": number, "class_name": name, "category": category, "properties": properties,
         "states": (states or {}).get(number, usual), "prefab_name": None, "bounding_box": None}
        for number, (name, category, properties, usual) in NODES.items()
    ]  # fmt: skip
    return {"nodes": nodes, "edges": [{"from_id": a, "relation_type": relation, "to_id": b} for a, relation, b in edges]}


def _hold_plate(edges):
    kept = [edge for edge in edges if edge not in ((3, "INSIDE", 2), (11, "ON", 10))]
    return [*kept, (3, "INSIDE", 1), (3, "HOLDS_RH", 11), (3, "CLOSE", 11)]


PROGRAMS = {
    "file1_1": ("Clear the table", "Take the plate.", ["[WALK] <table> (1.10)", "[GRAB] <plate> (1.11)"],
                graph(), graph(change=_hold_plate)),
    "file2_1": ("Read in bed", "Switch the lamp on",
                ["[FIND] <lamp> (1.21)", "[TURNTO] <lamp> (1.21)", "[SWITCHON] <lamp> (1.21)"],
                graph(), graph(states={21: ["ON", "PLUGGED_IN"]})),
}  # fmt: skip


def write_home(folder, programs=PROGRAMS):
    """Writes the programs and their graphs below `folder`; returns its path as text."""
    for name, (title, description, listed, first, final) in programs.items():
        for kind, suffix, text in (
            ("executable_programs", ".txt", "\n".join([title, description, "", "", *listed]) + "\n"),
            ("init_and_final_graphs", ".json", json.dumps({"init_graph": first, "final_graph": final})),
        ):
            file = folder / kind / "TrimmedTestScene1_graph" / "results" / (name + suffix)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    return str(folder)
