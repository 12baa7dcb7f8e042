"""A whole vision-language model with its tower, loaded from a folder and saved again."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
vision = pytest.importorskip("stepreward.models.vision")
test_vision_parity = pytest.importorskip("test_vision_parity")

from stepreward.models.hugging_face import load_params, read_config
from stepreward.models.hugging_face_save import save_pretrained
from stepreward.models.hugging_face_tensors import Checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("vision") / "model"
    test_vision_parity.published().save_pretrained(path)
    return path


def test_a_model_with_its_tower_is_loaded(folder):
    hub = read_config(folder)
    config = hub.decoder(vision=vision.vision_config(hub.source))
    assert config == test_vision_parity.MODEL
    loaded, expected = load_params(folder, config), test_vision_parity.published_decoder()[1]
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_older_names_are_read(folder, tmp_path):
    """The names and the nested configuration that some versions of transformers wrote."""
    import safetensors.numpy

    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    renamed = {
        ("model." + name if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1)): value
        for name, value in tensors.items()
    }
    assert "model.visual.merger.ln_q.weight" in renamed and "model.language_model.norm.weight" in renamed
    safetensors.numpy.save_file(renamed, tmp_path / "model.safetensors")
    source = json.loads((folder / "config.json").read_text())
    flat = {**source.pop("text_config"), **source}  # the published layout
    rope = flat.pop("rope_parameters")
    flat |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    (tmp_path / "config.json").write_text(json.dumps(flat))
    hub = read_config(tmp_path)
    config = hub.decoder(vision=vision.vision_config(hub.source))
    assert config == test_vision_parity.MODEL
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path, config), load_params(folder, config))


@pytest.mark.parametrize("sees", [True, False])
def test_round_trip(folder, tmp_path, sees):
    """Saved with its tower, or without: the tower then comes from the source."""
    hub = read_config(folder)
    config = hub.decoder(scan_layers=True, vision=vision.vision_config(hub.source) if sees else None)
    params = jax.tree.map(lambda x: x + 1, load_params(folder, config))
    out = save_pretrained(tmp_path / "out", config, params, source_folder=folder, max_shard_bytes=30_000)
    before, after = Checkpoint(folder), Checkpoint(out)
    assert before.shapes == after.shapes
    for name, shape in before.shapes.items():
        index = tuple(map(slice, shape))
        changed = 1 if sees or not name.startswith("visual.") else 0
        np.testing.assert_array_equal(after.read(name, index), before.read(name, index) + np.float32(changed))


def test_another_tower_is_an_error(folder):
    hub = read_config(folder)
    tower = dataclasses.replace(vision.vision_config(hub.source), mlp_dim=20)
    with pytest.raises(ValueError, match="'visual.blocks.0.mlp.down_proj.weight' has shape"):
        load_params(folder, hub.decoder(vision=tower), dtype=jnp.float32)
