"""The metrics file: exact values, strict JSON, resume, incomplete lines, and Wilson intervals."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from stepreward.metrics import MetricsWriter, read_metrics, series, to_json, wilson_interval


def strict(text):
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_writes_scalars_of_every_kind_as_strict_json(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(
            {
                "tick": np.int64(3),
                "stage": "train",
                "policy/loss": np.float32(0.1),
                "prm/loss": jnp.float32(0.1),
                "time/rollout_s": jnp.asarray(0.5, jnp.bfloat16),
                "rollout/entropy": jnp.nan,
                "rollout/return": np.float64("inf"),
                "env_steps": 2**40,
                "rollout/executed": jnp.asarray([True]),
            }
        )
    record = strict((tmp_path / "metrics.jsonl").read_text())
    assert record == {
        "tick": 3, "stage": "train", "policy/loss": float(np.float32(0.1)), "prm/loss": float(np.float32(0.1)),
        "time/rollout_s": 0.5, "rollout/entropy": None, "rollout/return": None, "env_steps": 2**40,
        "rollout/executed": True,
    }  # fmt: skip
    assert read_metrics(tmp_path) == [record]


def test_resume_gives_the_same_file_as_an_uninterrupted_run(tmp_path):
    def write(folder, iterations, resume=None):
        with MetricsWriter(tmp_path / folder, resume) as writer:
            for i in iterations:
                writer.write({"tick": i, "stage": "sft", "sft/loss": 1 / (i + 3)})
                writer.write({"tick": i, "stage": "sft", "eval/success": i / 7})

    write("whole", range(6))
    write("parts", range(5))
    with open(tmp_path / "parts" / "metrics.jsonl", "ab") as file:
        file.write(b'{"tick": 5, "sft/lo')
    write("parts", range(3, 6), resume=2)
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["metrics.jsonl"]


def test_resume_at_iteration_zero_keeps_that_iteration_alone(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for i in range(3):
            writer.write({"tick": i})
    MetricsWriter(tmp_path, 0).close()
    assert [record["tick"] for record in read_metrics(tmp_path)] == [0]


def test_a_run_from_its_beginning_starts_an_empty_file_even_over_a_corrupt_one(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("garbage\n{}\n")
    MetricsWriter(tmp_path, None).close()
    assert read_metrics(tmp_path) == []


def test_a_complete_last_line_without_its_newline_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"tick": 1}\n{"tick": 2}')
    with MetricsWriter(tmp_path, 2) as writer:
        writer.write({"tick": 3})
    assert [record["tick"] for record in read_metrics(tmp_path)] == [1, 2, 3]


def test_every_line_survives_a_kill(tmp_path):
    code = f"""
        import os, signal
        from stepreward.metrics import MetricsWriter
        writer = MetricsWriter({str(tmp_path)!r})
        for i in range(5):
            writer.write({{"tick": i}})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=Path(__file__).parents[1])
    assert result.returncode != 0
    assert [record["tick"] for record in read_metrics(tmp_path)] == list(range(5))


def test_read_names_the_missing_file_and_the_corrupt_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="metrics.jsonl"):
        read_metrics(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"tick": 1}\n{"tic\n{"tick": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 of 3"):
        read_metrics(path)
    with pytest.raises(ValueError, match="line 2 of 3"):
        MetricsWriter(tmp_path, 3)
    path.write_text('{"tick": 1}\n3\n{"tick": 3}\n')
    with pytest.raises(ValueError, match="line 2 of 3.*not a JSON object"):
        read_metrics(path)


@pytest.mark.parametrize("tail", [b'{"tick": 2, "a', b"\xff\xfe\n", b"\x00\x00\x00", b"3\n"])
def test_read_drops_a_torn_last_line(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"tick": 1}\n' + tail)
    assert read_metrics(path) == [{"tick": 1}]


@pytest.mark.parametrize("tick", [None, -1, True, 1.5, "3"])
def test_a_record_needs_a_tick(tmp_path, tick):
    with MetricsWriter(tmp_path) as writer, pytest.raises(ValueError, match="tick"):
        writer.write({"tick": tick})
    assert read_metrics(tmp_path) == []


def test_an_array_is_not_a_metric():
    with pytest.raises(ValueError, match=r"policy/loss is an array of shape \(2,\)"):
        to_json(np.zeros(2), "policy/loss")
    with pytest.raises(TypeError, match="policy/loss is a set"):
        to_json({1}, "policy/loss")


def test_series_keeps_finite_numbers_in_order():
    records = [{"tick": 0, "a": 1}, {"tick": 1}, {"tick": 2, "a": None}, {"tick": 3, "a": 2.5},
               {"tick": 4, "a": "high"}, {"a": 9}]  # fmt: skip
    x, y = series(records, "a")
    np.testing.assert_array_equal(x, [0, 3])
    np.testing.assert_array_equal(y, [1, 2.5])
    assert series([], "a")[0].shape == (0,)


@pytest.mark.parametrize("successes, n", [(0, 10), (10, 10), (3, 10), (82, 200), (1, 1)])
def test_wilson_interval_equals_scipys(successes, n):
    for confidence in (0.8, 0.95, 0.99):
        theirs = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
        np.testing.assert_allclose(wilson_interval(successes, n, confidence), (theirs.low, theirs.high), atol=1e-12)


def test_wilson_interval_refuses_invalid_counts():
    for successes, n in [(0, 0), (3, 2), (-1, 4)]:
        with pytest.raises(ValueError, match="successes"):
            wilson_interval(successes, n)
