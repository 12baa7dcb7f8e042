"""Checkpoints: everything saved is restored, and what cannot be restored is one clear error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepreward import checkpoint
from stepreward.checkpoint import Checkpoints, find_folder, holds_checkpoints


def tree():
    return {
        "model": {"weights": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3) / 3, "layers": [jnp.ones(2), jnp.full((2,), 2.5)]},
        "updates": jnp.asarray(7, jnp.int32),
        "key": np.asarray(jax.random.key_data(jax.random.key(3))),
        "mask": np.array([[True, False]]),
        "moments": (np.zeros((1, 1), np.float32), np.broadcast_to(np.arange(3), (2, 3))),
    }


def zeros(tree):
    return jax.tree.map(lambda x: np.zeros_like(x) if isinstance(x, np.ndarray) else jnp.zeros_like(x), tree)


def written(path, *steps, keep=5):
    checkpoints = Checkpoints(path, keep=keep)
    for step in steps:
        checkpoints.save(step, jax.tree.map(lambda x: x + step if x.dtype == np.int32 else x, tree()), {"tick": step})
    checkpoints.wait()
    return checkpoints


def test_every_dtype_comes_back_exactly(tmp_path):
    written(tmp_path, 4).close()
    step, found, counters = Checkpoints(tmp_path).restore(zeros(tree()))
    assert step == 4 and counters == {"tick": 4} and int(found["updates"]) == 11
    assert jax.tree.structure(found) == jax.tree.structure(tree())
    expected = tree() | {"updates": jnp.asarray(11, jnp.int32)}
    for old, new in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert isinstance(new, np.ndarray) == isinstance(old, np.ndarray) and new.dtype == old.dtype
        np.testing.assert_array_equal(np.asarray(new), np.asarray(old))
    key = jax.random.wrap_key_data(jnp.asarray(found["key"]))
    np.testing.assert_array_equal(jax.random.uniform(key, (3,)), jax.random.uniform(jax.random.key(3), (3,)))


def test_a_part_may_be_read_alone(tmp_path):
    checkpoints = written(tmp_path, 1)
    _, found, _ = checkpoints.restore({"model": {"weights": jnp.zeros((2, 3), jnp.bfloat16)}})
    np.testing.assert_array_equal(found["model"]["weights"], tree()["model"]["weights"])
    assert list(found) == ["model"]


def test_the_latest_or_the_named_one(tmp_path):
    checkpoints = written(tmp_path, 3, 10, 20)
    assert checkpoints.restore(tree())[0] == 20 and checkpoints.counters() == {"tick": 20}
    step, found, counters = checkpoints.restore(tree(), 10)
    assert step == 10 and int(found["updates"]) == 17 and counters == checkpoints.counters(10) == {"tick": 10}


def test_the_latest_few_are_kept(tmp_path):
    checkpoints = written(tmp_path, *range(1, 6), keep=2)
    assert checkpoints.steps() == [4, 5]
    checkpoints.close()
    assert Checkpoints(tmp_path, keep=2).steps() == [4, 5]


def test_the_arrays_are_those_at_the_time_of_saving(tmp_path):
    """Writing goes on in the background while the run changes, or donates, what it saved."""
    checkpoints = Checkpoints(tmp_path)
    host, device = np.zeros(200_000, np.float32), jnp.zeros(200_000)
    checkpoints.save(1, {"host": host, "device": device}, {})
    host += 1
    jax.jit(lambda x: x + 1, donate_argnums=0)(device)
    checkpoints.wait()
    _, found, _ = checkpoints.restore({"host": host, "device": jnp.zeros(200_000)})
    assert not found["device"].any() and not found["host"].any()


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    checkpoints = written(tmp_path, 2)
    checkpoints.save(2, tree(), {"tick": 99})
    checkpoints.wait()
    assert checkpoints.counters() == {"tick": 2}


def test_no_checkpoint_yet(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [] and checkpoints.counters() is None
    with pytest.raises(FileNotFoundError, match="existing: none"):
        checkpoints.restore(tree())


@pytest.mark.parametrize(
    "change, step, error, words",
    [
        ({"updates": jnp.zeros((3,), jnp.int32)}, None, ValueError, r"'updates' has shape \(\), but the config needs \(3,\)"),
        ({"extra": jnp.zeros(())}, None, ValueError, "has no array 'extra'"),
        ({}, 9, FileNotFoundError, "no checkpoint 9 .*existing: 1, 2"),
    ],
    ids=["shape", "missing array", "missing step"],
)
def test_what_cannot_be_read_is_named(tmp_path, change, step, error, words):
    checkpoints = written(tmp_path, 1, 2)
    with pytest.raises(error, match=words):
        checkpoints.restore(tree() | change, step)


@pytest.mark.parametrize("shape", [(3, 2), (2, 4), (6,)])
def test_another_shape_is_told_by_the_array_s_path_and_both_shapes(tmp_path, shape):
    checkpoints, template = written(tmp_path, 1), tree()
    template["model"]["weights"] = jnp.zeros(shape, jnp.bfloat16)
    with pytest.raises(ValueError) as error:
        checkpoints.restore(template)
    words = str(error.value)
    assert f"checkpoint 1: array 'model/weights' has shape (2, 3), but the config needs {shape}" in words and "\n" not in words


def test_an_absent_array_is_told_by_its_path(tmp_path):
    checkpoints, template = written(tmp_path, 1), tree()
    template["model"]["layers"].append(jnp.ones(2))
    with pytest.raises(ValueError, match="checkpoint 1 has no array 'model/layers/2': it was written with another config"):
        checkpoints.restore(template)


def test_a_damaged_checkpoint_is_named(tmp_path):
    written(tmp_path, 1).close()
    folder = tmp_path / "checkpoints" / "1" / "arrays"
    for file in [p for p in folder.rglob("*") if p.is_file() and p.parent.name == "d"]:
        file.write_bytes(b"")
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match="checkpoint 1 in .* cannot be read .*delete its folder"):
        checkpoints.restore(tree())
    checkpoints.close()


def test_reading_needs_a_workdir_and_writes_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoints: check that it is the workdir of a run"):
        Checkpoints(tmp_path, read_only=True)
    assert not list(tmp_path.iterdir())
    written(tmp_path, 1, 2, 3).close()
    reader = Checkpoints(tmp_path, keep=1, read_only=True)
    assert reader.restore(tree())[0] == 3 and reader.steps() == [1, 2, 3]


def test_another_folder(tmp_path):
    folder = str(tmp_path / "disk" / "a")
    checkpoints = Checkpoints(tmp_path / "run", folder=folder)
    assert not holds_checkpoints(folder) and not holds_checkpoints(str(tmp_path / "none"))
    checkpoints.save(3, tree(), {"tick": 3})
    checkpoints.close()
    assert holds_checkpoints(folder) and not (tmp_path / "run").exists()
    reader = Checkpoints(tmp_path / "run", read_only=True, folder=folder)
    assert reader.steps() == [3] and reader.counters() == {"tick": 3}
    with pytest.raises(FileNotFoundError, match="checkpoint.folder='.*/none' holds no checkpoints"):
        Checkpoints(tmp_path / "run", read_only=True, folder=str(tmp_path / "none"))


@pytest.mark.parametrize("folder", ["s3://bucket/run", "gs:/bucket/run", "gs:///run", "http://x/y"])
def test_other_urls_are_no_folders(folder):
    with pytest.raises(ValueError, match="must be a local folder, or gs://BUCKET/FOLDER"):
        find_folder(folder)


def test_a_bucket_needs_its_package(monkeypatch):
    monkeypatch.setattr(checkpoint.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^checkpoint.folder='gs://bucket/run' needs the package gcsfs: pip install -e '.\[gcs\]'.$"):
        Checkpoints("run", folder="gs://bucket/run")


def test_a_bucket_that_cannot_be_opened_is_one_line(monkeypatch):
    fsspec = pytest.importorskip("fsspec")

    def fails(*args, **kwargs):
        raise OSError("no\ncredentials")

    monkeypatch.setattr(checkpoint.importlib.util, "find_spec", lambda name: name == "gcsfs")
    monkeypatch.setattr(fsspec, "filesystem", fails)
    assert str(find_folder("gs://bucket/run")) == "gs://bucket/run"
    for ask in (holds_checkpoints, lambda folder: Checkpoints("run", read_only=True, folder=folder)):
        with pytest.raises(ValueError, match=r"'gs://bucket/run' cannot be opened \(OSError: no credentials\)\.$"):
            ask("gs://bucket/run")
