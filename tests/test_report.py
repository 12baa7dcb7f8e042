"""Recorded episodes, and the report page of a run."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import jax.numpy as jnp
import numpy as np
import pytest

from stepreward.envs.sokoban.board_html import board_svg
from stepreward.report import mean_and_band, plot_curves, read_episodes, telling, write_episodes, write_report
from stepreward.report.episode_html import choose_episodes, episode_html, plain_board, signed
from stepreward.report.figures import PANELS, TIMES, learning_curves
from stepreward.report.page import summarize
from stepreward.report.style import CSS
from stepreward.report.tables import estimator_quality, final_evaluation


def step(observation="#P#", action="up", **changes):
    return {"observation": observation, "action": action, "output": "<action>up</action>", "reward": -0.1,
            "executed": True, "step_reward": 0.013, "step_advantage": 0.8, "distance": 5.0, **changes}  # fmt: skip


def episode(*steps, **changes):
    return {"task": "held_out seed 5", "success": True, "outcome": 10.4, "truncated": False, "steps": list(steps),
            "final_observation": "#S#", "final_distance": 0.0, **changes}  # fmt: skip


def told(*records, count=9):
    """The names of the episodes that are told, of records `(name, success, steps)`."""
    return [r["task"] for r in telling([episode(*[step()] * n, task=name, success=won) for name, won, n in records], count)]


def test_a_success_and_a_failure_are_told_in_turns_and_the_rest_behind_them():
    records = [("lost a", False, 1), ("won a", True, 4), ("lost b", False, 9), ("won b", True, 3), ("won c", True, 2)]
    assert told(*records) == ["won a", "lost a", "won b", "lost b", "won c"]
    assert told(*records, count=2) == ["won a", "lost a"]
    assert told(*records[::2]) == ["won c", "lost a", "lost b"]


def test_longer_successes_are_told_before_shorter_ones_and_failures_as_they_came():
    assert told(("won short", True, 1), ("won long", True, 5), ("won middle", True, 3)) == ["won long", "won middle", "won short"]
    assert told(("first", False, 1), ("second", False, 5), ("third", False, 3)) == ["first", "second", "third"]
    assert told(("equal a", True, 2), ("equal b", True, 2)) == ["equal a", "equal b"]
    assert told(("empty", True, 0), ("played", False, 1)) == ["played"]


def test_episodes_come_back_as_they_were_written(tmp_path):
    path = write_episodes(tmp_path, 123, 120, [episode(step(), step(action=None, distance=None))])
    assert path == tmp_path / "episodes" / "tick_000123.json"
    expected = {"tick": 123, "iteration": 120, "episodes": [episode(step(), step(action=None, distance=None))]}
    assert read_episodes(path) == expected
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_episodes_take_array_scalars_and_keep_an_unreachable_distance(tmp_path):
    written = episode(
        step(reward=np.float32(0.5), step_reward=jnp.float32(np.nan), distance=math.inf),
        success=np.bool_(True),
        final_distance=np.inf,
    )
    path = write_episodes(tmp_path, 1, 1, [written])
    json.loads(path.read_text(), parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    (read,) = read_episodes(path)["episodes"]
    assert read["success"] is True and read["final_distance"] == math.inf
    assert read["steps"][0]["reward"] == 0.5
    assert read["steps"][0]["step_reward"] is None
    assert read["steps"][0]["distance"] == math.inf


def test_episodes_name_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"episodes\[1\] has no list of `steps`"):
        write_episodes(tmp_path, 0, 0, [episode(), {"task": "x"}])
    with pytest.raises(ValueError, match=r"steps\[0\]\.reward is an array"):
        write_episodes(tmp_path, 0, 0, [episode(step(reward=np.zeros(2)))])
    with pytest.raises(FileNotFoundError, match="iteration_7"):
        read_episodes(tmp_path / "iteration_7.json")
    path = tmp_path / "tick_000001.json"
    for text in ['{"iteration": 1, "epi', "[]", '{"iteration": 1, "episodes": [{"steps": [3]}]}', '{"episodes": []}']:
        path.write_text(text)
        with pytest.raises(ValueError, match="tick_000001.json"):
            read_episodes(path)


SVG = "{http://www.w3.org/2000/svg}"

BOARD = "#####\n#P_O#\n#_X_#\n#_√S#\n#####"


def lines(count=80):
    """A run of three stages whose evaluations start at 4 and end at 82 of 200."""
    records = []
    for i in range(count):
        stage = "sft" if i < 10 else "prm_warmup" if i < 15 else "train"
        record = {"tick": i, "iteration": i + 1, "stage": stage, "step": i, "env_steps": 100 * i, "wall_s": 2.0 * i}
        if stage == "sft":
            record["sft/loss"] = 1 / (1 + i)
        if stage == "train":
            record |= {"rollout/success": i / 100, "time/rollout_s": 2.0, "time/policy_s": 1.0}
        if i in (0, 9, count - 1):
            record |= {"eval/success": {0: 4, 9: 40}.get(i, 82) / 200, "eval/episodes": 200}
        records.append(record)
    return records


def workdir(folder, records=None, config=None, episodes=None):
    if records is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    for iteration, recorded in (episodes or {}).items():
        write_episodes(folder, iteration, iteration, recorded)
    return folder


class Page(HTMLParser):
    """Checks that elements nest, and collects tags, attributes and text."""

    VOID = {"meta", "link", "br", "img", "hr"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def page_of(folder, **options):
    return Page(write_report(folder, **options).read_text(encoding="utf-8"))


def test_the_page_holds_headline_curves_episodes_and_config(tmp_path):
    recorded = [episode(step(BOARD), step(BOARD, action="left", step_reward=-0.2, distance=math.inf))]
    workdir(tmp_path, lines(), {"name": "A run", "method": {"beta": 0.05}}, {79: recorded})
    page = page_of(tmp_path, board_renderer=board_svg)
    text = page.text.replace("\u00a0", " ")
    for part in ["A run", "2.0 % (0.8 to 5.0)", "41.0 % (34.4 to 47.9)", "20.0 % (15.0 to 26.1)", "200 episodes",
                 "80 iterations", "7,900 environment steps", "2 min 38 s", "Success on held-out tasks",
                 "Success in rollouts", "Where the time goes", "Losses", "held_out seed 5", "solved", "↑ up", "← left",
                 "+0.013", "−0.2", "+0.8", "5 → ∞", "∞ → 0", "method.beta", "0.05"]:  # fmt: skip
        assert part in text, part
    for absent in ["KL(policy", "Entropy", "Quality of the credit", "Evaluation", "Grounding", "estimator", "critic"]:
        assert absent not in text
    # Held-out success, rollout success, losses and time, then two steps and the final board.
    assert page.tags.count("svg") == 4 + 3


def test_the_page_needs_no_other_file(tmp_path):
    page = page_of(workdir(tmp_path, lines(), {}, {1: [episode(step())]}))
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "style", "clip-path"):
            assert "//" not in value and (name not in ("href", "xlink:href") or value.startswith("#"))
    assert "url(http" not in (tmp_path / "report.html").read_text() and "@import" not in CSS


def test_curves_take_their_colours_from_the_theme(tmp_path):
    for _, _, svg in learning_curves(lines()):
        used = set(re.findall(r"var\((--\w+)\)", svg))
        assert "--ink" in used and "--c1" in used
        assert all(f"{name}:" in CSS for name in used)
        assert not re.search(r"#0[123]0[123]0\d", svg)
        assert ElementTree.fromstring(svg).tag == SVG + "svg"


def test_each_new_panel_and_each_share_of_the_time_appears_where_it_was_recorded():
    estimator = {f"estimator/{key}": 0.1 for key in ("loss", "held_out_loss")} | {"time/estimator_s": 1.0}
    learned = {key: 0.4 if key.endswith("/score") else 0.5 for panel in PANELS for key in panel.keys if not key.startswith("estimator/")}
    seconds = dict.fromkeys(TIMES, 1.0)
    records = [{"tick": i, "iteration": i, **(estimator if i < 3 else learned | seconds)} for i in range(6)]
    drawn = {title: svg for title, _, svg in learning_curves(records)}
    assert [*drawn] == [panel.title for panel in PANELS] + ["Where the time goes"]
    for title, labels in [("Grounding accuracy", ["held-out tasks", "rollouts"]),
                          ("Loss of the estimator", ["training", "held out"]),
                          ("Quality of the credit", ["step rewards", "advantages"]),
                          ("Where the time goes", TIMES.values())]:  # fmt: skip
        assert all(f">{label}</text>" in drawn[title] for label in labels), title
    # A colour for each part of the time, none of them twice.
    assert len(set(re.findall(r"fill: (var\(--c\d\))", drawn["Where the time goes"]))) == len(TIMES)


def test_a_lone_curve_of_a_panel_of_several_is_named():
    ((_, _, svg),) = learning_curves([{"tick": i, "iteration": i, "credit/advantage_rank_correlation": 0.1 * i} for i in range(3)])
    assert ">advantages</text>" in svg and ">step rewards</text>" not in svg


def test_a_critic_that_starts_far_off_leaves_its_later_curve_readable():
    values = [-5000.0, -3.0, 0.2, 0.5]
    ((_, _, svg),) = learning_curves([{"tick": i, "iteration": i, "credit/explained_variance": v} for i, v in enumerate(values)])
    ticks = [float(text.replace("−", "-")) for text in re.findall(r">(−?\d+\.\d+)</text>", svg)]
    assert -1.05 <= min(ticks) < 0 < max(ticks) < 0.6


def evaluated(**changes):
    """The record of a final evaluation of 2048 tasks, as the runner writes it."""
    found = {"success": (0.25, 0.5), "success_low": (0.232, 0.478), "success_high": (0.269, 0.522), "return": (-2.0719, 2.784),
             "steps_per_episode": (6.78, 6.53), "executed": (0.6359, 0.722), "episodes": (2048.0, 2047.0)}  # fmt: skip
    both = {f"final/{name}_{key}": value[i] for key, value in found.items() for i, name in enumerate(("start", "end"))}
    return {"tick": 80, "iteration": 80, "stage": "evaluate", "wall_s": 160.0, **both, **changes}


def test_scores_are_shown_where_they_say_more_than_success(tmp_path):
    graded = {"final/start_score": 0.61, "final/end_score": 0.83}
    workdir(tmp_path, [*lines(), evaluated(**graded)])
    assert "61" in page_of(tmp_path).text and "policy success score return" in page_of(tmp_path).text.replace("\u00a0", " ")
    plain = [{"tick": i, "iteration": i, "env_steps": i, "eval/success": 0.1 * i, "eval/score": 0.1 * i} for i in range(3)]
    assert "Score" not in [title for title, _, _ in learning_curves(plain)]
    assert "Score" in [title for title, _, _ in learning_curves([r | {"eval/score": 0.5} for r in plain])]


def test_a_final_evaluation_is_a_table_and_the_headline(tmp_path):
    workdir(tmp_path, [*lines(), evaluated()])
    text = page_of(tmp_path).text.replace("\u00a0", " ")
    for part in ["went from 25.0 % (23.2 to 26.9) under the supervised policy to 50.0 % (47.8 to 52.2)", "over 2,047 episodes",
                 "policy success return grounding accuracy steps per episode episodes",
                 "supervised policy (start) 25.0 % (23.2 to 26.9) −2.07 63.6 % 6.8 2,048",
                 "trained policy (end) 50.0 % (47.8 to 52.2) 2.78 72.2 % 6.5 2,047",
                 "The learning curves come from evaluations on 200 episodes each."]:  # fmt: skip
        assert part in text, part
    assert "2.0 % (0.8 to 5.0)" not in text
    _, cards = summarize([*lines(), evaluated()])
    assert [label for _, label, _ in cards] == ["held-out success, start", "held-out success, end", "wall time"]


def test_what_a_final_evaluation_lacks_is_a_dash_and_the_last_one_counts(tmp_path):
    bare = {"tick": 9, "iteration": 9, "final/start_success": 0.1, "final/end_success": 0.2}
    bare |= {"final/end_return": "<b>", "final/start_executed": None}
    assert final_evaluation([evaluated(), bare]) == {"start": {"success": 0.1}, "end": {"success": 0.2}}
    text = page_of(workdir(tmp_path, [bare])).text.replace("\u00a0", " ")
    assert "supervised policy (start) 10.0 % – – – –" in text and "Wilson, over" not in text
    assert final_evaluation([{"tick": 1, "iteration": 1, "final/end_success": 0.2}]) == final_evaluation(lines()) == {}


MEASURED = {"mse": 0.01234, "mse_of_mean": 0.2, "mae": 0.0523, "within_0.1": 0.875, "calibration_error": 0.031, "explained": 0.9,
            "rank_correlation": 0.4217, "rank_correlation_within": -0.0764, "sign_accuracy": 0.68, "steps": 6400.0}  # fmt: skip


def test_the_estimator_has_a_table_that_explains_itself(tmp_path):
    record = {"tick": 7, "iteration": 7, "stage": "estimator", **{f"estimator/{key}": value for key, value in MEASURED.items()}}
    later = {"tick": 8, "iteration": 8, "estimator/loss": 0.3}
    assert estimator_quality([record, later]) == MEASURED and estimator_quality([later]) == {}
    text = page_of(workdir(tmp_path, [record, later], {"estimator": {"held_out": 0.25}})).text.replace("\u00a0", " ")
    for part in ["Progress estimator", "mean squared error 0.0123", "of predicting the mean 0.2000",
                 "mean absolute error 0.052", "errors of at most 0.1 87.5 %", "calibration error 0.031",
                 "rank correlation with true progress +0.42",
                 "within episodes −0.08", "right sign 68.0 %", "6,400 of their steps",
                 "tasks that it was not trained on"]:  # fmt: skip
        assert part in text, part
    del record["estimator/rank_correlation"], record["estimator/steps"]  # an environment that knows no distance
    text = page_of(workdir(tmp_path, [record], {"estimator": {"held_out": 0}})).text
    assert "rank correlation with" not in text and "on the tasks that it was trained on" in text
    for config in ({"estimator": "<b>"}, {}):
        assert "Measured" not in page_of(workdir(tmp_path, [record], config)).text


def test_text_from_models_and_environments_is_escaped(tmp_path):
    nasty = "<script>alert('x')</script>&\"'"
    bad = episode(step(nasty, action=nasty, output=nasty), task=nasty, final_observation=nasty)
    records = [{"tick": i, "iteration": i, "stage": f"$\\frac{nasty}{i}", "policy/loss": 1.0 * i} for i in range(3)]
    folder = workdir(tmp_path, records, {"name": nasty, nasty: nasty}, {1: [bad]})
    for renderer in (board_svg, plain_board):
        page = page_of(folder, board_renderer=renderer)
        assert "script" not in page.tags
        assert page.text.count("<script>alert('x')</script>") >= 8


def test_odd_values_in_an_episode_are_shown_or_left_out(tmp_path):
    odd = {
        "steps": [
            {},
            {"action": "look around", "step_reward": "high", "reward": None, "observation": 3},
            {"step_reward": 0.0, "executed": False, "action": "up"},
        ]
    }
    (tmp_path / "episodes").mkdir()
    (tmp_path / "episodes/tick_000001.json").write_text(json.dumps({"iteration": 1, "episodes": [odd]}))
    text = page_of(workdir(tmp_path, lines()), board_renderer=board_svg).text
    for part in ["no action", "look around", "no effect", "failed", "3 steps"]:
        assert part in text


def test_bars_are_scaled_within_the_episode_and_signed():
    text = episode_html(1, episode(step(step_reward=0.02), step(step_reward=-0.04), step(step_reward=0)), plain_board)
    assert re.findall(r'class="credit (\w+)".*?style="(\w+):50%;width:([\d.]+)%"', text) == [
        ("good", "left", "25.0"),
        ("bad", "right", "50.0"),
        ("zero", "left", "0.0"),
    ]


def test_numbers_have_the_digits_of_the_largest_of_their_episode():
    text = episode_html(1, episode(*(step(step_reward=value) for value in (-0.348, 0.01534, -0.00089, 8.9e-5, 0))), plain_board)
    assert re.findall(r'title="step reward".*?<b>(.*?)</b>', text) == ["−0.348", "+0.015", "−0.001", "≈0", "0"]
    assert [signed(value) for value in (8.92e-05, -1234.5, 0.5, 0.0)] == ["+8.92e−05", "−1.23e+03", "+0.5", "0"]


def test_the_exact_advantage_has_a_bar_of_its_own_scale_beside_the_step_reward():
    text = episode_html(1, episode(step(exact_advantage=0.5), step(exact_advantage=-0.25), step(exact_advantage=None)), plain_board)
    assert re.findall(r'title="exact advantage".*?<b>(.*?)</b>.*?width:([\d.]+)%', text) == [("+0.5", "50.0"), ("−0.25", "25.0")]
    assert text.count('<span class="soft">step reward</span>') == 3
    assert "exact advantage" not in episode_html(1, episode(step()), plain_board)


def test_replays_show_an_early_and_a_late_try_at_one_task_and_a_failure():
    def recorded(task, success):
        return episode(step(), task=task, success=success)

    first = {"iteration": 0, "episodes": [recorded("a", False), recorded("b", False)]}
    last = {"iteration": 9, "episodes": [recorded("c", False), recorded("b", True), recorded("d", True)]}
    chosen = choose_episodes([first, {"iteration": 5, "episodes": []}, last])
    assert [(at, e["task"], e["success"]) for at, e in chosen] == [(0, "b", False), (9, "b", True), (9, "c", False)]
    assert [e["task"] for _, e in choose_episodes([last])] == ["b", "c", "d"]
    assert choose_episodes([{"iteration": 1, "episodes": []}]) == choose_episodes([]) == []
    assert len(choose_episodes([first, last], limit=1)) == 1


def test_a_run_without_metrics_still_shows_its_episodes_and_names_the_missing_file(tmp_path):
    text = page_of(workdir(tmp_path, episodes={3: [episode(step())]})).text
    assert "No metrics at" in text and "metrics.jsonl" in text and "held_out seed 5" in text


def test_empty_metrics_give_a_page_that_says_so(tmp_path):
    assert "No iteration has been recorded yet." in page_of(workdir(tmp_path, [])).text


def test_unreadable_sources_are_named_and_the_rest_is_shown(tmp_path):
    workdir(tmp_path, lines(), episodes={2: [episode(step())]})
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "episodes/tick_000001.json").write_text("[3")
    text = page_of(tmp_path).text
    for part in ["config.json is not valid JSON", "tick_000001.json is not valid JSON", "held_out seed 5",
                 "Success on held-out tasks"]:  # fmt: skip
        assert part in text
    (tmp_path / "metrics.jsonl").write_text('{"tick": 0}\n{"tic\n{"tick": 2}\n')
    text = page_of(tmp_path).text
    assert "metrics.jsonl, line 2 of 3 is corrupt" in text and "held_out seed 5" in text


def test_a_missing_workdir_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_report(tmp_path / "nowhere")


def test_a_single_evaluation_without_a_count_has_no_interval():
    paragraph, cards = summarize([{"tick": 4, "iteration": 4, "eval/success": 0.25}, {"tick": 5, "iteration": 5, "eval/success": None}])
    assert "25.0" in paragraph and "Wilson" not in paragraph
    assert cards == [("25.0\u00a0%", "held-out success", "iteration 4")]


def test_importing_the_report_is_light():
    code = "import sys, stepreward.report; print({'matplotlib', 'scipy', 'jax', 'envs'} & set(sys.modules))"
    root = Path(__file__).parents[1]
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


def test_board_draws_each_symbol_once():
    root = ElementTree.fromstring(board_svg(BOARD).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    assert root.get("viewBox") == "0 0 5 5"
    assert root.get("aria-label") == "Sokoban board, 1 of 2 boxes on target"
    fills = [element.get("fill") for element in root.iter()]
    # Two boxes in two colours, two players (a body each), a target under one player and one alone (a dot each).
    counts = {fill: fills.count(fill) for fill in ("#c98b45", "#4fa35f", "#2f62c9", "#d0473f")}
    assert counts == {"#c98b45": 1, "#4fa35f": 1, "#2f62c9": 2, "#d0473f": 2}
    walls = next(element.get("d") for element in root if element.get("fill") == "#5d6675")
    assert walls.count("M") == BOARD.count("#")


def test_board_ignores_blanks_between_symbols_and_leaves_other_text_as_text():
    spaced = "\n".join("\t".join(row) for row in BOARD.split("\n")) + "\n"
    assert board_svg(spaced) == board_svg(BOARD)
    assert board_svg("You see <b>a box</b>") == "<pre>You see &lt;b&gt;a box&lt;/b&gt;</pre>"
    assert board_svg("") == "<pre></pre>"


def test_mean_and_band_equal_their_formula():
    x = [0, 10, 20]
    ys = np.array([[0.1, 0.4, 0.5], [0.2, 0.3, 0.9], [0.0, 0.8, 0.7]])
    grid, mean, half = mean_and_band([(x, y) for y in ys])
    np.testing.assert_array_equal(grid, x)
    np.testing.assert_allclose(mean, [0.1, 0.5, 0.7])
    np.testing.assert_allclose(half, 4.302652729911275 * np.std(ys, axis=0, ddof=1) / math.sqrt(3))


def test_runs_with_other_steps_are_interpolated_where_all_have_values():
    grid, mean, _ = mean_and_band([([0, 10], [0.0, 1.0]), ([5, 15, 20], [0.5, 0.5, math.nan])])
    np.testing.assert_array_equal(grid, [5, 10])
    np.testing.assert_allclose(mean, [0.5, 0.75])
    assert np.isnan(mean_and_band([([0, 1], [2, 3])])[2]).all()


def test_plot_curves_writes_an_image_or_draws_on_axes(tmp_path):
    from matplotlib.figure import Figure

    arms = {"iStar": [([0, 1], [0.1, 0.5]), ([0, 1], [0.2, 0.6])], "GRPO": [([0, 1], [0.1, 0.2])]}
    path = plot_curves(tmp_path / "new" / "curves.png", arms, y_limits=(0, 1))
    assert path.read_bytes().startswith(b"\x89PNG")
    axes = Figure().subplots()
    assert plot_curves(axes, arms) is axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["iStar (2 seeds)", "GRPO (1 seed)"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.15, 0.55])
    assert len(axes.collections) == 1


@pytest.mark.parametrize("arms, words", [
    ({}, "no arm"),
    ({"a": []}, "'a': There are no runs"),
    ({"a": [([0, 1], [1])]}, "'a': Run 0 has x of shape"),
    ({"a": [([0], [math.nan])]}, "'a': Run 0 has no finite point"),
    ({"a": [([0, 1], [1, 2]), ([5, 6], [1, 2])]}, "'a': There is no x that lies within"),
])  # fmt: skip
def test_plot_curves_names_the_arm_that_is_wrong(tmp_path, arms, words):
    with pytest.raises(ValueError, match=words):
        plot_curves(tmp_path / "curves.png", arms)
    assert not (tmp_path / "curves.png").exists()


def test_sentences_are_wrapped_on_wider_cards():
    assert plain_board("####\n#P_#") == "<pre>####\n#P_#</pre>"
    assert plain_board("Find me a <red> lamp under 40 dollars").startswith('<pre class="prose">Find me a &lt;red&gt; lamp')
    said = episode_html(1, episode(step(observation="You arrive at a very wide desk, and see a pen.")), plain_board)
    assert 'class="steps wide"' in said and 'class="steps"' in episode_html(1, episode(step()), plain_board)
