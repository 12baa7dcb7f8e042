"""Tiny random models of transformers, saved as folders, for comparison in the tests of loading and saving."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY = 40
SIZES = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16, rope_theta=50.0
)
VISION = dict(depth=1, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=32, patch_size=2, fullatt_block_indexes=[0])


def _text(kind, **settings):
    config = getattr(transformers, f"{kind}Config")(**SIZES, **settings, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    return getattr(transformers, f"{kind}ForCausalLM"), config


def _vision_language(**settings):
    text = dict(
        SIZES,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=None,
        rope_parameters=dict(rope_type="default", mrope_section=[1, 1, 2], rope_theta=1e4),
    )
    config = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=VISION,
        image_token_id=38,
        video_token_id=39,
        vision_start_token_id=36,
        vision_end_token_id=37,
        **settings,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration, config


MODELS = {
    "llama, llama3 rope, groups of 1": lambda: _text("Llama", num_key_value_heads=4, rope_parameters=dict(LLAMA3)),
    "llama, tied, groups of 4": lambda: _text("Llama", num_key_value_heads=1, tie_word_embeddings=True),
    "llama, explicit head_dim": lambda: _text("Llama", num_key_value_heads=2, head_dim=6),
    "qwen2, tied": lambda: _text("Qwen2", num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2, untied": lambda: _text("Qwen2", num_key_value_heads=1, rms_norm_eps=1e-3),
    "qwen3": lambda: _text("Qwen3", num_key_value_heads=2, head_dim=16),
    "qwen3, tied, groups of 4": lambda: _text("Qwen3", num_key_value_heads=1, head_dim=4, tie_word_embeddings=True),
    "qwen2.5-vl": _vision_language,
}


@functools.cache
def made(name: str):
    """`(model, folder)`: a model whose every weight is random, norms and biases too, and the folder it was saved to."""
    model_class, config = MODELS[name]()
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.3)
    folder = Path(tempfile.mkdtemp()) / "model"
    model.save_pretrained(folder)
    return model, folder


def logits(model, tokens, mask=None) -> np.ndarray:
    """The logits of a transformers model, float32 `[B, T, V]`."""
    with torch.no_grad():
        mask = None if mask is None else torch.tensor(mask)
        return model(torch.tensor(tokens), attention_mask=mask).logits.float().numpy()


def loaded(folder, **settings):
    """What transformers makes of a folder."""
    auto = transformers.AutoModelForCausalLM
    if "vision_config" in json.loads((Path(folder) / "config.json").read_text()):
        auto = transformers.AutoModelForImageTextToText
    return auto.from_pretrained(folder, local_files_only=True, **settings).eval()
