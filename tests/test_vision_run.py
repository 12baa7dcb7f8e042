"""VisualSokoban end to end with a tiny Qwen2.5-VL folder: a policy that sees, with a PRM that sees and with one of text."""

import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_chat_templates import FAMILIES, make_folder

from stepreward.training import demonstrating
from stepreward.training.train import Runner

CHANGES = {
    "environment.name": "picture_game", "model.preset": "checkpoint", "rollout.max_prompt_tokens": 96, "rollout.max_answer_tokens": 6,
    "rollout.max_row_tokens": 102, "rollout.max_steps": 4, "rollout.groups": 2, "sft.episodes": 20, "sft.updates": 40, "sft.log_every": 20,
    "sft.rows": 16, "sft.learning_rate": 1e-2, "train.env_steps": 60, "eval.episodes": 4, "eval.every": 10, "eval.prm_as_policy_every": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Qwen2.5-VL model of two layers, its tokenizer, template and image processor."""
    path = make_folder(tmp_path_factory.mktemp("hub") / "Qwen2.5-VL-tiny-Instruct", *FAMILIES["qwen2_vl"])
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(path)
    start, end, pad = tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>", "<|image_pad|>"])
    torch.manual_seed(0)
    config = transformers.Qwen2_5_VLConfig(
        vision_config=dict(
            depth=2,
            hidden_size=16,
            num_heads=2,
            intermediate_size=24,
            out_hidden_size=24,
            patch_size=8,
            window_size=32,
            fullatt_block_indexes=[1],
        ),
        text_config=dict(
            vocab_size=448,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=1,
            bos_token_id=None,
            eos_token_id=None,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
        ),
        image_token_id=pad,
        video_token_id=447,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    transformers.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(path)
    processor = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 8, "merge_size": 2, "temporal_patch_size": 2,
                 "min_pixels": 256, "max_pixels": 2304}  # fmt: skip
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


def finished(config, workdir):
    runner = Runner(config, workdir)
    runner.run()
    records = runner.history()
    sft = [r["sft/loss"] for r in records if "sft/loss" in r]
    assert sft[-1] < 0.8 * sft[0]
    rl = [r for r in records if r["stage"] == "train"]
    assert rl and max(r["policy/sampler_gap"] for r in rl) < 1e-4  # the trainer sees the pictures that the sampler saw
    return runner


def test_a_policy_that_sees_with_a_prm_that_sees(folder, micro_config, tmp_path):
    runner = finished(micro_config(CHANGES | {"model.path": str(folder)}), tmp_path / "run")
    assert runner.learner.auxiliaries["prm"].model.config.vision is not None
    episode = demonstrating.demonstration_episodes(runner.parts.demonstrations[:1], runner.parts)[0]
    assert all(step.images is not None for step in episode.steps)
    record = runner.parts.demonstrations[0]
    (shown,) = demonstrating._pictures([record], runner.parts.collector.pool)
    assert len(shown) == len(record.actions) + 1 and shown[0].shape == (96, 96, 3) and (shown[0] != shown[1]).any()


def test_a_policy_that_sees_with_a_prm_of_text(folder, micro_config, tmp_path):
    """As the paper has it: the PRM is a text model with the same tokenizer, for which a picture is placeholder tokens."""
    text = make_folder(tmp_path / "text", *FAMILIES["qwen2_vl"])
    torch.manual_seed(1)
    config = transformers.Qwen2Config(
        vocab_size=448, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(text)
    changes = {"model.path": str(folder), "prm.path": str(text), "prm.resync": False}
    runner = finished(micro_config(CHANGES | changes), tmp_path / "run")
    assert runner.learner.model.config.vision is not None and runner.learner.auxiliaries["prm"].model.config.vision is None
