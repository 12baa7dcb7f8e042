"""The run display: what a terminal, a log file and a quiet run show."""

import io

import pytest
from rich.console import Console

from stepreward.display import RunDisplay, format_duration, format_success, summary_rows
from stepreward.training.main_job import table_facts


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def console(terminal, width=100):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system="truecolor", _environ={})


SECONDS = {"rollout": 3.0, "scoring": 0.5, "PRM": 0.5, "policy": 1.0}


def test_a_terminal_shows_every_figure():
    clock, out = Clock(), console(terminal=True)
    with RunDisplay(total=40, console=out, clock=clock) as display:
        display.update(stage="rl", completed=0)
        clock.now += 20
        display.update(completed=10, success=0.425, tokens_per_second=12345.6, sampled_tokens=9876, seconds=SECONDS)
        page = Console(file=io.StringIO(), width=100, _environ={})
        page.print(display)
    text = page.file.getvalue()
    for part in ["rl", "━", "10/40", "1 min 00 s left", "success 42.5 %", "12,346 tokens/s", "9,876 tokens sampled",
                 "rollout 3.00 s 60%", "scoring 0.50 s 10%", "PRM 0.50 s 10%", "policy 1.00 s 20%"]:  # fmt: skip
        assert part in text
    assert "\x1b[" in out.file.getvalue()
    assert "success 42.5 %" in out.file.getvalue()


def test_a_file_gets_plain_lines_every_few_updates():
    out, clock = console(terminal=False), Clock()
    with RunDisplay(total=25, console=out, every=10, clock=clock) as display:
        for i in range(1, 26):
            clock.now += 2
            display.update(stage="rl", completed=i, success=0.5, seconds=SECONDS)
    lines = out.file.getvalue().splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["rl 1/25", "rl 10/25", "rl 20/25", "rl 25/25"]
    assert lines[1] == ("rl 10/25 | success 50.0 % | rollout 3.00 s | scoring 0.50 s | PRM 0.50 s | policy 1.00 s | 30 s left")
    assert all(character.isprintable() or character == "\n" for character in out.file.getvalue())


def test_a_long_plain_line_is_not_wrapped():
    out = console(terminal=False, width=20)
    with RunDisplay(total=1, console=out) as display:
        display.update(stage="rl", completed=1, success=0.5, tokens_per_second=1e6, seconds=SECONDS)
    assert len(out.file.getvalue().splitlines()) == 1


def test_a_new_phase_starts_its_time_anew_and_a_resumed_run_counts_its_own_iterations_only():
    clock = Clock()
    with RunDisplay(total=10, quiet=True, clock=clock) as display:
        display.update(stage="sft", completed=0)
        assert display.seconds_left() is None
        clock.now += 5
        display.update(completed=10)
        assert display.seconds_left() == 0
        display.update(stage="rl", completed=60, total=100)
        clock.now += 30
        display.update(completed=70)
        assert display.seconds_left() == 90


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_prints_nothing(terminal):
    out = console(terminal)
    with RunDisplay(total=1, quiet=True, console=out) as display:
        display.update(stage="rl", completed=1)
        display.final_table([("wall time", "3 s")])
    assert out.file.getvalue() == ""


def test_an_unknown_total_and_names_with_markup_are_shown_as_they_are():
    page = Console(file=io.StringIO(), width=100, _environ={})
    display = RunDisplay(total=None, quiet=True)
    display.update(stage="[red]rl", completed=1500, seconds={"[b]": 0.0})
    page.print(display)
    display = RunDisplay(console=page, quiet=False)
    display.update(stage="[red]rl", completed=1500)
    display.final_table([("[b]", "[i]")])
    assert page.file.getvalue().count("1,500") == 2
    assert page.file.getvalue().count("[red]rl") == 2
    assert "[i]" in page.file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_the_end_shows_both_intervals_the_time_and_the_whole_path_of_the_report(terminal):
    out = Console(file=io.StringIO(), force_terminal=terminal, width=80, color_system=None, _environ={})
    path = "somewhere/" + "deep/" * 15 + "report.html"
    with RunDisplay(console=out) as display:
        display.final_table(summary_rows(start=(4, 200), end=(82, 200), wall_s=3725, report=path))
    text = out.file.getvalue()
    for part in ["held-out success, start", "2.0 % (0.8 to 5.0, 4 of 200)", "41.0 % (34.4 to 47.9, 82 of 200)",
                 "1 h 02 min"]:  # fmt: skip
        assert part in text
    assert path in "".join(character for character in text if character not in "│ \n")
    assert ("│" in text) == terminal


def test_summary_without_evaluations_has_time_alone():
    assert summary_rows(start=None, end=None, wall_s=61) == [("wall time", "1 min 01 s")]
    assert format_success(0, 0) == "no episodes"


ON_THE_WAY = [
    {"eval/success": 0.25, "eval/episodes": 16, "eval/executed": 0.5, "eval/steps_per_episode": 9.0},
    {"estimator/loss": 0.1, "estimator/mse": 0.0123, "estimator/mse_of_mean": 0.2},
    {"eval/success": 0.375, "eval/episodes": 16, "eval/executed": 0.75, "eval/steps_per_episode": 7.0},
    {"rollout/success": 0.1},
]
FINAL = {
    "final/start_success": 0.25, "final/start_episodes": 32.0, "final/start_executed": 0.6359,
    "final/start_steps_per_episode": 6.78,
    "final/end_success": 0.3125, "final/end_episodes": 32.0, "final/end_executed": 0.622, "final/end_steps_per_episode": 6.53,
}  # fmt: skip


def test_the_final_evaluation_goes_before_those_on_the_way():
    estimator = ("progress estimator", "squared error 0.0123, predicting the mean 0.2000")
    assert summary_rows(wall_s=61, **table_facts([*ON_THE_WAY, FINAL])) == [
        ("held-out success, start", "25.0 % (13.3 to 42.1, 8 of 32 tasks of the final evaluation)"),
        ("held-out success, end", "31.2 % (18.0 to 48.6, 10 of 32 tasks of the final evaluation)"),
        ("grounding accuracy", "63.6 % at the start, 62.2 % at the end"),
        ("steps per episode", "6.8 at the start, 6.5 at the end"),
        estimator, ("wall time", "1 min 01 s"),
    ]  # fmt: skip
    assert summary_rows(wall_s=61, **table_facts(ON_THE_WAY)) == [
        ("held-out success, start", "25.0 % (10.2 to 49.5, 4 of 16)"), ("held-out success, end", "37.5 % (18.5 to 61.4, 6 of 16)"),
        ("grounding accuracy", "50.0 % at the start, 75.0 % at the end"), ("steps per episode", "9.0 at the start, 7.0 at the end"),
        estimator, ("wall time", "1 min 01 s"),
    ]  # fmt: skip


def test_the_table_says_what_lengths_cost():
    records = [{"rollout/too_long": 3.0, "rollout/row_full": 1.0, "rollout/observations_cut": 0.0}, {"rollout/too_long": 2.0}]
    assert summary_rows(start=None, end=None, wall_s=61, cut=table_facts(records)["cut"])[0] == (
        "episodes ended by a length limit",
        "6, see the report",
    )
    assert "cut" not in table_facts([{"rollout/too_long": 0.0}])


def test_a_run_that_recorded_less_has_fewer_rows():
    assert table_facts([{"rollout/success": 0.1}]) == {"start": None, "end": None}
    old = [{"eval/success": 0.5, "eval/episodes": 4}, {"eval/success": 0.75, "eval/episodes": 4, "eval/executed": 0.9}]
    assert table_facts(old) == {"start": (2, 4), "end": (3, 4)}


def test_durations():
    assert [format_duration(s) for s in (0, 59.6, 3599, 3600, 90000, float("inf"))] == [
        "0 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "25 h 00 min", "unknown time"]  # fmt: skip
