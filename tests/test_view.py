"""The viewer without a browser: which folders are runs, what is read while they are written, what the server gives, and the file to share."""

import http.client
import importlib.util
import json
import re
import shutil
import sys

import numpy as np
import pytest
from test_report import episode, lines, step, workdir

from stepreward.errors import UserError
from stepreward.launch import view as launch_view
from stepreward.report import write_episodes
from stepreward.view import Content, viewing, write_page
from stepreward.view import content as contents
from stepreward.view import page as pages
from stepreward.view.curves import curve, merged, panels, thinned
from stepreward.view.runs import RunFiles, find_runs, names_of
from stepreward.view.server import accepts

CONFIG = {"name": "x", "credit": {"method": "istar"}, "train": {}, "environment": {"name": "sokoban"}}
NASTY = "<script>alert('x')</script></script><!--\"'"


def run_at(folder, count=20, config=CONFIG, episodes=None):
    """A workdir with recorded files, made by hand."""
    folder.mkdir(parents=True)
    return workdir(folder, lines(count), config, episodes or {count: [episode(step(exact_advantage=0.25))]})


def append(folder, record, end="\n"):
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps(record) + end)


def test_a_path_is_a_run_or_a_folder_of_runs(tmp_path):
    b, a = run_at(tmp_path / "all" / "b"), run_at(tmp_path / "all" / "deep" / "a")
    run_at(b / "stages" / "inner")  # what is in a run is not a run of its own
    (tmp_path / "all" / "model").mkdir()
    (tmp_path / "all" / "model" / "config.json").write_text('{"model_type": "qwen2"}')
    assert find_runs([tmp_path / "all"]) == [b, a] and find_runs([a, tmp_path / "all"]) == [a, b]
    assert names_of([b, a, tmp_path / "x" / "a"]) == ["b", "deep/a", "x/a"]
    for path, words in [("gone", "there is no folder"), ("all/model", "holds no run"), ("all/b/config.json", "holds no run")]:
        with pytest.raises(UserError, match=words) as error:
            find_runs([tmp_path / path])
        assert path in str(error.value)


def test_a_run_is_read_while_it_is_written(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    run = RunFiles(folder)
    run.update()
    assert run.records == [] and run.config == CONFIG and not run.notices
    append(folder, {"tick": 1, "eval/success": 0.5})
    append(folder, {"tick": 2}, end="")  # half written
    run.update()
    assert [r["tick"] for r in run.records] == [1]
    version = run.version
    run.update()
    assert run.version == version
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('\n{"tick": 3\n[4]\n{"tick": 5}\n')
    run.update()
    assert [r["tick"] for r in run.records] == [1, 2, 5] and "2 corrupt lines, left out: 3, 4" in run.notices[0]
    (folder / "other").write_text('{"tick": 9}\n')
    (folder / "other").replace(folder / "metrics.jsonl")  # as a resumed run does
    run.update()
    assert [r["tick"] for r in run.records] == [9] and not run.notices
    shutil.rmtree(folder)
    run.update()
    assert run.gone and [r["tick"] for r in run.records] == [9] and "gone" in run.notices[0]


def test_long_curves_are_thinned_and_keep_their_spikes():
    y = np.zeros(5000)
    y[1234], y[4321] = 7.0, -3.0
    kept = thinned(y)
    assert kept.size <= 400 and {0, 1234, 4321, 4999} <= set(kept.tolist())
    records = [{"tick": t, "policy/loss": value, "eval/success": 0.5, "eval/episodes": 100} for t, value in enumerate(y.tolist())]
    x, found, mean_x, mean = curve(records, "policy/loss")
    assert max(found) == 7 and x == sorted(x) and len(mean_x) == len(mean) <= 400 and max(mean) < 0.1
    *_, at, low, high = curve(records, "eval/success")
    assert len(at) == len(low) == len(high) <= 400 and low[0] < 0.5 < high[0]
    assert curve([{"tick": 1}], "policy/loss") == [[], [], [], []]


def test_panels_are_those_of_the_report_and_one_for_each_other_metric():
    first, second = panels(lines()), panels([{"tick": 1, "own/number": 2.0, "policy/loss": 1.0, "text": "x"}])
    titles = [panel["title"] for panel in first]
    assert titles[:2] == ["Success on held-out tasks", "Success in rollouts"] and "Where the time goes" in titles
    both = {panel["title"]: panel for panel in merged([first, second])}
    assert both["own/number"]["group"] == "own" and not both["own/number"]["first"] and "text" not in both
    assert both["Losses"]["keys"] == {"sft/loss": "SFT", "policy/loss": "policy"} and both["Losses"]["first"]


def test_a_run_that_has_just_started_and_one_that_appears_later_are_shown(tmp_path, monkeypatch):
    folder = tmp_path / "all" / "new"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    content = Content([tmp_path / "all"])
    (only,) = content.state()["runs"]
    assert (only["name"], only["method"], only["tick"], only["recorded"]) == ("new", "istar", None, 0) and "No iteration" in only["summary"]
    assert content.index(only["id"]) == [] and content.curves(["eval/success"])["curves"] == {}
    run_at(tmp_path / "all" / "another", config=CONFIG | {"credit": {"method": "rloo"}})
    monkeypatch.setattr(contents, "_SCAN_S", 0.0)
    state = content.state()
    assert [(run["id"], run["name"], run["method"]) for run in state["runs"]] == [("run0", "new", "istar"), ("run1", "another", "rloo")]
    assert list(content.curves(["rollout/success"])["curves"]["rollout/success"]) == ["run1"]


def test_episodes_hold_their_credit_beside_the_exact_advantage_and_trees_are_shown(tmp_path):
    folder = run_at(tmp_path / "run")
    write_episodes(
        folder, 30, 25, [], {"value": 0.5, "segments": [{"id": 0, "parent": None, "first": 0, "last": 0, "actions": ["up"], "value": 1.0}]}
    )
    content = Content([folder])
    content.state()
    first, last = content.index("run0")
    assert (first["iteration"], first["episodes"][0]["task"], first["tree"], last["tree"]) == (20, "held_out seed 5", False, True)
    (text,) = content.episodes("run0", [(first["file"], 0)])
    assert 'title="step reward"' in text and 'title="exact advantage"' in text and "+0.25" in text
    assert "Tree of a group" in content.tree("run0", last["file"]) and "config.json" in content.details("run0")


def test_odd_recordings_are_named_and_the_rest_is_shown(tmp_path):
    folder = run_at(tmp_path / "run")
    (folder / "episodes/tick_000030.json").write_text("{")
    odd = {
        "iteration": 3,
        "episodes": [{"steps": [{"cut": "x"}]}],
        "tree": {"segments": [{"first": 0, "last": 0, "actions": [], "parent": []}]},
    }
    (folder / "episodes/tick_000031.json").write_text(json.dumps(odd))
    (folder / "episodes/tick_000032.json").symlink_to(run_at(tmp_path / "other") / "episodes/tick_000020.json")
    content = Content([folder])
    content.state()
    good, broken, strange = content.index("run0")  # the link leads out of the run
    assert good["episodes"] and "not valid JSON" in broken["error"]
    assert "cannot be shown" in content.episodes("run0", [(strange["file"], 0)])[0]
    assert "cannot be shown" in content.tree("run0", strange["file"])


def test_the_page_to_share_is_one_file_in_which_text_stays_text(tmp_path):
    nasty = episode(step(NASTY, action=NASTY, output=NASTY), task=NASTY, final_observation=NASTY)
    folder = run_at(tmp_path / NASTY.replace("/", "-"), config=CONFIG | {"name": NASTY, "credit": {"method": NASTY}}, episodes={3: [nasty]})
    path = write_page(Content([folder]).snapshot(), tmp_path / "out" / "run.html")
    text = path.read_text(encoding="utf-8")
    assert len(re.findall(r"<script", text)) == 4 and len(re.findall(r"</script", text)) == 4 and "<!--" not in text
    assert "alert('x')" in text and "Content-Security-Policy" in text
    assert not re.search(r"""(src|href)=["'](?!#)|url\(|@import""", text)
    snapshot = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])["snapshot"]
    assert "<script" not in "".join(snapshot["episodes"]["run0"].values()) and snapshot["state"]["runs"][0]["method"] == NASTY
    with pytest.raises(UserError, match="name of an HTML file"):
        write_page({}, tmp_path / "metrics.jsonl")


def test_a_long_run_is_shared_with_some_of_its_recordings(tmp_path, monkeypatch):
    folder = run_at(tmp_path / "run", episodes={tick: [episode(step())] for tick in range(9)})
    monkeypatch.setattr(contents, "MOST_SHARED", 3)
    found = Content([folder]).snapshot()
    assert [one["iteration"] for one in found["index"]["run0"]] == [0, 4, 8] and len(found["episodes"]["run0"]) == 3
    assert found["state"]["runs"][0]["notices"] == ["This file holds 3 of 9 recordings of episodes."]


@pytest.mark.parametrize("header, host, expected", [
    ("127.0.0.1:8010", "127.0.0.1", True), ("localhost:1", "127.0.0.1", True), ("[::1]:1", "::1", True), ("evil.example:8010", "127.0.0.1", False),
    ("evil.example", "0.0.0.0", False), ("10.0.0.7:80", "0.0.0.0", True), ("box.lan", "box.lan", True), ("", "127.0.0.1", False),
])  # fmt: skip
def test_requests_for_another_host_are_refused(header, host, expected):
    assert accepts(header, host) is expected


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """`ask(path, **headers)`: status, headers and body of a request to a viewer of one run."""
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    folder = run_at(tmp_path_factory.mktemp("view") / "run")
    (folder.parent / "secret.json").write_text('{"iteration": 1, "episodes": []}')
    with viewing(Content([folder])) as address:

        def ask(path, method="GET", **headers):
            connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            found = response.status, response.headers, response.read().decode()
            connection.close()
            return found

        yield ask


def test_the_server_gives_the_page_and_what_it_asks_for(ask):
    status, headers, text = ask("/")
    assert status == 200 and "uPlot" in text and headers["X-Content-Type-Options"] == "nosniff"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "script-src 'sha256-" in policy
    assert "unsafe-inline" not in policy.replace("style-src-attr 'unsafe-inline'", "")
    state = json.loads(ask("/api/state")[2])
    assert state["runs"][0]["name"] == "run" and state["runs"][0]["tick"] == 19
    assert json.loads(ask("/api/curves?key=rollout/success&key=nothing")[2])["curves"]["rollout/success"]["run0"][0][-1] == 19
    assert "exact advantage" in json.loads(ask("/api/episodes?run=run0&of=tick_000020.json/0")[2])[0]


@pytest.mark.parametrize("path, status", [
    ("/api/index?run=../run", 404), ("/api/index", 404), ("/api/tree?run=run0&file=../../secret.json", 404), ("/api/details?run=run1", 404),
    ("/api/episodes?run=run0&of=../../secret.json/0", 404), ("/api/episodes?run=run0&of=tick_000020.json/-1", 404), ("/../secret.json", 404),
    ("/api/episodes?run=run0&of=tick_000020.json/7", 200), ("/static/app.js", 404),
])  # fmt: skip
def test_the_server_gives_nothing_else(ask, path, status):
    found = ask(path)
    assert found[0] == status and "secret" not in found[2] and "Traceback" not in found[2]


def test_the_server_refuses_other_hosts_and_methods(ask):
    status, headers, text = ask("/api/state", Host="evil.example:80")
    assert status == 403 and "evil.example" in text and "Content-Security-Policy" in headers
    assert ask("/api/state", method="POST")[0] == 405


def test_the_command_takes_paths_and_flags_in_any_order(tmp_path, monkeypatch, capsys):
    run_at(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    for arguments in (["a", "--html=x.html"], ["--html", "x.html", "--no-browser", "a"]):
        monkeypatch.setattr(sys, "argv", ["view", *arguments])
        launch_view.main()
        assert capsys.readouterr().out == "x.html\n" and (tmp_path / "x.html").stat().st_size < 600_000


@pytest.mark.parametrize("arguments, words", [
    ([], "no run given"), (["nowhere"], "there is no folder 'nowhere'"), (["."], "'.' holds no run"), (["--html=x"], "no run given"),
    (["--prt=3"], "did you mean '--port'"),
])  # fmt: skip
def test_a_mistake_on_the_command_line_is_one_error(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["view", *arguments])
    with pytest.raises(UserError, match=re.escape(words)):
        launch_view.main()


def test_a_missing_package_is_one_error_with_the_command(tmp_path, monkeypatch):
    run_at(tmp_path / "a")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "uvicorn" else name)
    monkeypatch.setattr(sys, "argv", ["view", str(tmp_path / "a")])
    with pytest.raises(UserError, match=r"needs uvicorn: pip install .*\[serve\]"):
        launch_view.main()


def test_vendored_files_carry_their_licence():
    folder = pages._STATIC
    assert "MIT" in (folder / "uPlot.LICENSE").read_text() and (folder / "uPlot.iife.min.js").stat().st_size < 60_000
