"""SPA-RL's task files: with their own graphs, and with graphs rebuilt from base graphs."""

import json
from pathlib import Path

import pytest

pytest.importorskip("virtualhome_eval", reason="needs: pip install --no-deps virtualhome-eval")

from virtualhome_home import NODES, PROGRAMS, graph, write_home

from stepreward.envs.virtualhome import make
from stepreward.envs.virtualhome.actions import read_line
from stepreward.envs.virtualhome.reconstruct import rebuilt
from stepreward.envs.virtualhome.spa_files import read

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "virtualhome"

TASK = {
    "id": "7",
    "task": "Clear the table",
    "description": "Take the plate.",
    "new_program_lines": PROGRAMS["file1_1"][2],
    "path": "/somewhere/executable_programs/TrimmedTestScene1_graph/results/file1_1.txt",
    "object_id_dict": {"table": 10, "plate": 11},
    "revised_graph": {
        "nodes": [],
        "revised_nodes": [
            {"from_id": 3, "relation_type": "INSIDE", "to_id": 2},
            {"from_id": 11, "relation_type": "ON", "to_id": 10},
            {"from_id": 10, "relation_type": "CLOSE", "to_id": 11},
        ],
        "revised_add_edges": [{"from_id": 3, "relation_type": "HOLDS_RH", "to_id": 11}],
    },
}


@pytest.fixture
def files(tmp_path):
    """Writes records to a task file, the tasks' own graphs and base graphs; returns the three paths."""
    write_home(tmp_path)
    base = tmp_path / "base"
    base.mkdir()
    (base / "TrimmedTestScene1_graph.json").write_text(json.dumps(graph()))

    def made(*records):
        file = tmp_path / f"tasks{len(list(tmp_path.iterdir()))}.jsonl"
        file.write_text("\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
        return str(file), str(tmp_path / "init_and_final_graphs"), str(base)

    return made


def test_a_task_with_its_own_graph_and_with_a_base_graph(files):
    data, own, base = files(TASK, {**TASK, "revised_graph": {"nodes": [], "revised_nodes": [], "revised_add_edges": []}})
    for graphs in (own, base):
        (task,) = read(data, graphs)  # the other has no goal
        assert (task.text, task.goal.size, task.objects) == (
            "Clear the table (Take the plate)",
            3,
            (("table", 10), ("plate", 11)),
        )
    environment = make("spa", data=data, graphs=own)()
    environment.reset(seed=0)
    for action in ("walk to table", "grab plate"):
        _, reward, won, _, info = environment.step(action)
    assert won and reward == 1.0 and info["score"] == 1.0


def test_scenes_are_found_by_path_or_by_candidates(files, tmp_path):
    data, _, base = files({**TASK, "path": "redacted"}, {**TASK, "path": "redacted"})
    listed = tmp_path / "scenes.json"
    listed.write_text(json.dumps([{"row": 0, "scene_candidates": []}, {"row": 1, "scene_candidates": [1, 4]}]))
    assert [task.name for task in read(data, base, str(listed))] == ["7/1"]
    with pytest.raises(ValueError, match="paths name no apartment; give scenes="):
        read(data, base)


def test_a_home_is_rebuilt_from_what_the_task_tells():
    revision = {
        "nodes": [{"id": 21, "states": ["OFF"], "properties": ["HAS_SWITCH"]}],
        "revised_nodes": [
            {"from_id": 3, "relation_type": "INSIDE", "to_id": 1},
            {"from_id": 1000, "relation_type": "INSIDE", "to_id": 12},
        ],
        "revised_add_edges": [{"from_id": 11, "relation_type": "ON", "to_id": 10}],
    }
    program = tuple(read_line(line) for line in ("[SWITCHOFF] <lamp> (21)", "[OPEN] <cupboard> (12)", "[GRAB] <novel> (1000)"))
    made = rebuilt(graph(states={12: ["OPEN"]}), revision, program, {"novel": 1000})
    nodes = {node["id"]: node for node in made["nodes"]}
    edges = {(edge["from_id"], edge["relation_type"], edge["to_id"]) for edge in made["edges"]}
    assert (3, "INSIDE", 1) in edges and (3, "INSIDE", 2) not in edges and (11, "ON", 10) not in edges
    assert {(1000, "INSIDE", 12), (1000, "INSIDE", 1), (1000, "CLOSE", 12), (12, "CLOSE", 1000)} <= edges
    assert "ON" in nodes[21]["states"] and "CLOSED" in nodes[12]["states"] and "OPEN" not in nodes[12]["states"]
    assert nodes[1000]["class_name"] == "novel" and "GRABBABLE" in nodes[1000]["properties"]
    assert len(nodes) == len(NODES) + 1
    with pytest.raises(ValueError, match="object 1000 is neither"):
        rebuilt(graph(), revision, program[:2], {})


def test_where_a_thing_is_placed_that_the_apartment_lacks():
    program = tuple(read_line(line) for line in ("[WALK] <bedroom> (2)", "[GRAB] <widget> (1000)"))

    def placed(*told):
        revised = [{"from_id": start, "relation_type": relation, "to_id": end} for start, relation, end in told]
        made = rebuilt(graph(), {"nodes": [], "revised_nodes": revised, "revised_add_edges": []}, program, {"widget": 1000})
        edges = ((edge["from_id"], edge["relation_type"], edge["to_id"]) for edge in made["edges"])
        return {edge for edge in edges if 1000 in edge}

    # Next to the first object in a room that it was close to, and in that room.
    close = [(1000, "CLOSE", 10), (1000, "CLOSE", 21)]
    assert placed(*close) == {*close, (1000, "INSIDE", 1), (10, "CLOSE", 1000)}
    # Where the task says.
    assert placed((1000, "ON", 10)) == {(1000, "ON", 10), (1000, "INSIDE", 1), (1000, "CLOSE", 10), (10, "CLOSE", 1000)}
    # VirtualHome has no usual place for a widget, so it is in the first room that the program visits.
    assert placed() == {(1000, "INSIDE", 2)}


def test_bad_files_are_named(files, tmp_path):
    data, own, base = files(TASK)
    for call, kind, match in (
        ((data, None), ValueError, "give graphs="),
        ((data, str(tmp_path / "none")), FileNotFoundError, "no folder of VirtualHome graphs"),
        ((data, str(tmp_path / "executable_programs" / "TrimmedTestScene1_graph")), ValueError, "has no VirtualHome graphs"),
        ((str(tmp_path / "none.jsonl"), own), FileNotFoundError, "no VirtualHome task file"),
        ((data, base, str(tmp_path / "none.json")), FileNotFoundError, "no VirtualHome file at"),
        ((files({**TASK, "path": "redacted"})[0], own), ValueError, "names no TrimmedTestScene"),
        ((files({**TASK, "path": TASK["path"].replace("file1", "file9")})[0], own), FileNotFoundError, "file9_1.json is missing"),
        (
            (files({**TASK, "path": TASK["path"].replace("Scene1", "Scene2")})[0], base),
            FileNotFoundError,
            "TrimmedTestScene2_graph.json",
        ),
        ((files(TASK, {"task": "x"})[0], own), ValueError, "task 1: this is not an SPA-RL task; it lacks description"),
        ((files({**TASK, "revised_graph": []})[0], own), ValueError, "task 0: .*revised_graph"),
        ((files({**TASK, "new_program_lines": ["fly"]})[0], own), ValueError, "task 0: not a line"),
        ((files({**TASK, "object_id_dict": 3})[0], own), ValueError, "task 0"),
    ):
        with pytest.raises(kind, match=match):
            read(*call)
    cut = tmp_path / "cut.jsonl"
    cut.write_text(json.dumps(TASK) + "\n" + json.dumps(TASK)[:99])
    with pytest.raises(ValueError, match="cut.jsonl, line 2 is not JSON; the file may be cut off"):
        read(str(cut), own)
    cut.write_text("\n")
    with pytest.raises(ValueError, match="has no tasks"):
        read(str(cut), own)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared VirtualHome tasks and base graphs are not there")
def test_tasks_of_the_benchmark_are_won_by_their_programs(tmp_path):
    lines = (SHARED / "evu_new_seen_test.jsonl").read_text(encoding="utf-8").splitlines()[:24]
    data = tmp_path / "some.jsonl"
    data.write_text("\n".join(lines), encoding="utf-8")
    scenes = SHARED / "derived_evu_seen_scene_match.json"
    environment = make("spa", data=data, graphs=SHARED / "base_graphs", scenes=scenes)()
    assert environment.num_tasks("train") + environment.num_tasks("held_out") >= 14
    for seed in range(environment.num_tasks("train")):
        environment.reset(seed=seed)
        for action in environment.expert():
            _, _, won, _, info = environment.step(action)
        assert won, info["task"]
