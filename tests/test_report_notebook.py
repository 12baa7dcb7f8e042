"""What a notebook shows of a run, during and after training."""

import types

import pytest

from stepreward.metrics import MetricsWriter
from stepreward.report import write_episodes
from stepreward.report.notebook import LiveCurves, show_episodes

RECORDS = [
    {"tick": 1, "iteration": 0, "stage": "sft", "env_steps": 0, "wall_s": 1.5, "eval/success": 0.25},
    {"tick": 2, "iteration": 1, "stage": "train", "env_steps": 1234, "wall_s": 65.0, "rollout/success": 0.5, "prm/pair_accuracy": 0.75},
]


@pytest.fixture
def runner(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        for record in RECORDS:
            metrics.write(record)
    return types.SimpleNamespace(workdir=tmp_path, finished=False)


def test_curves_are_drawn_now_and_then_and_at_the_end(runner):
    shown = []
    curves = LiveCurves({"prm/pair_accuracy": "pairs"}, "PRM", every_s=3600, show=shown.append)
    for _ in range(3):
        curves(runner, {})
    assert len(shown) == 1 and shown[0].startswith(b"\x89PNG")
    runner.finished = True
    curves(runner, {})
    assert len(shown) == 2


@pytest.mark.parametrize("count", [1, 2])
def test_a_panel_may_be_empty_still(recwarn, count):
    png = LiveCurves({"estimator/loss": "training"}, "Estimator", show=None).draw(RECORDS[:count])
    assert png.startswith(b"\x89PNG") and not [w for w in recwarn if "matplotlib" in str(w.filename) or "layout" in str(w.message)]


def test_episodes_are_framed_and_escaped(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no recorded episodes yet"):
        show_episodes(tmp_path)
    step = {"observation": "a <b> & c", "action": "up", "output": "<script>", "reward": 0.0, "executed": True, "step_reward": 0.125}
    episode = {"task": "room 1", "success": True, "outcome": 1.0, "steps": [step], "final_observation": "end"}
    write_episodes(tmp_path, 3, 2, [episode, episode | {"success": False, "task": "room 2"}])
    shown = show_episodes(tmp_path, lambda text: f"<i>{len(text)}</i>", limit=1)._repr_html_()
    assert shown.startswith("<iframe srcdoc=") and shown.count("<") == 2 and "+0.125" in shown and "room 1" in shown
    assert "room 2" not in shown and "&amp;lt;script&amp;gt;" in shown
