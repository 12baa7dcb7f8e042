"""The comparison of arms, on synthetic runs."""

import importlib
import json


def test_finished_runs_become_a_table(root, monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(root / "experiments"))
    compare = importlib.import_module("compare")
    for arm, rise in (("istar", 0.2), ("rloo", 0.1)):
        for seed in (0, 1):
            folder = tmp_path / f"{arm}_{seed}"
            folder.mkdir()
            success = lambda i: 0.3 + (rise + (0.02 if arm == "istar" else 0.03) * seed) * i
            lines = [
                {"iteration": i, "env_steps": 1000 * i, "wall_s": 9.0, "eval/success": success(i), "eval/score": 0.5 + rise * i}
                | {"rollout/sampled_tokens": 3000.0 * i, "rollout/replayed_steps": 5.0}
                for i in range(3)
            ]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    compare.summarise(tmp_path, ["istar", "rloo", "absent"], [0, 1, 2])
    head, _, istar, rloo = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in (head, istar, rloo)}) == 1
    assert istar.startswith("| istar | 2 | 0.300 ±") and "| 0.800 ± 0.000 |" in istar  # score at the end: the last two evaluations
    assert "| 2,000 | 6,000 | 15 | 9 |" in rloo  # what it cost: counters, and the sum of what was replayed
    assert "| 0.095 ± " in rloo and (tmp_path / "curves.png").stat().st_size > 1000
    assert len(json.loads((tmp_path / "results.json").read_text())) == 4

    compare.summarise(tmp_path, ["istar", "rloo"], [0, 1], "score")
    *_, istar, rloo = capsys.readouterr().out.splitlines()
    assert istar.startswith("| istar | 2 | 0.500 ± 0.000 | 0.800 ± 0.000 | 0.700 ± 0.000 |")
    assert "| 0.100 ± 0.000 (p = " in rloo
