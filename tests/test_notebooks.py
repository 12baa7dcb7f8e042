"""The notebooks run from top to bottom at micro size, without network, and show the outputs that their text describes."""

import json
import os
import re

import pytest

NOTEBOOKS = ("istar_colab", "spa_colab")


@pytest.fixture(scope="module")
def read(root):
    """`read(name)`: the notebook as JSON."""
    return lambda name: json.loads((root / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_they_are_committed_without_outputs(read, name):
    cells = read(name)["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)
        assert len("".join(cell["source"]).splitlines()) <= 22, f"{cell['id']} is long"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_they_run(root, name, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for key, value in {"STEPREWARD_NOTEBOOK_SIZE": "micro", "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg",
                       "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    notebook = nbformat.read(root / "notebooks" / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}, timeout=300).execute()
    shown = {cell["id"].partition("-")[2]: cell.get("outputs", []) for cell in notebook.cells}
    text = lambda cell: "".join(out.get("text", "") or str(out.get("data", {})) for out in shown[cell])
    assert not shown["install"] and "-> micro" in text("choose")
    assert [list(out["data"]) for out in shown["train"]] == [["image/png", "text/plain"]]
    assert "iframe" in text("episodes") and "step reward" in text("episodes") and "svg" in text("episodes")
    assert "model.safetensors" in text("save")
    solved = re.search(r"(\d+ of 16)\)", text("evaluate")).group(1)
    assert f"{solved} rooms solved" in text("reload")  # what was saved plays as what was trained
    assert all(out["output_type"] != "stream" or out["name"] == "stdout" for cell in ("train", "episodes", "save") for out in shown[cell])
    assert (tmp_path / "runs" / f"{name.split('_')[0]}_micro" / "metrics.jsonl").is_file()
