"""`config.json` of published models: accepted and refused settings, and the mapping of axes. Needs no torch."""

import numpy as np
import pytest

from stepreward.models.hugging_face_config import parse_config
from stepreward.models.hugging_face_tensors import Layout
from stepreward.models.rotary import RopeScaling

PUBLISHED = {  # the layout of published checkpoints, older than `rope_parameters`
    "llama 3.1": (
        dict(
            architectures=["LlamaForCausalLM"],
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            rms_norm_eps=1e-5,
            rope_theta=500000.0,
            attention_bias=False,
            mlp_bias=False,
            pretraining_tp=1,
            hidden_act="silu",
            max_position_embeddings=131072,
            tie_word_embeddings=False,
            rope_scaling=dict(
                factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192, rope_type="llama3"
            ),
        ),
        dict(head_dim=128, rope_theta=500000.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192), tie_embeddings=False),
    ),
    "qwen 2.5": (
        dict(
            architectures=["Qwen2ForCausalLM"],
            vocab_size=151936,
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            hidden_act="silu",
            max_position_embeddings=32768,
            max_window_layers=21,
            sliding_window=32768,
            use_sliding_window=False,
            tie_word_embeddings=True,
        ),
        dict(head_dim=128, qkv_bias=True, qk_norm=False, rope_theta=1e6, tie_embeddings=True, vocab_size=151936),
    ),
    "qwen 3": (
        dict(
            architectures=["Qwen3ForCausalLM"],
            vocab_size=151936,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            rope_scaling=None,
            attention_bias=False,
            hidden_act="silu",
            max_position_embeddings=40960,
            max_window_layers=28,
            sliding_window=None,
            use_sliding_window=False,
            tie_word_embeddings=True,
        ),
        dict(head_dim=128, qk_norm=True, qkv_bias=False, num_kv_heads=8),
    ),
    "qwen 2.5 vl": (
        dict(
            architectures=["Qwen2_5_VLForConditionalGeneration"],
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=11008,
            num_hidden_layers=36,
            num_attention_heads=16,
            num_key_value_heads=2,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            hidden_act="silu",
            max_position_embeddings=128000,
            max_window_layers=70,
            sliding_window=32768,
            use_sliding_window=False,
            tie_word_embeddings=True,
            vision_config={},
            rope_scaling=dict(type="mrope", mrope_section=[16, 24, 24]),
        ),
        dict(head_dim=128, qkv_bias=True, mrope_sections=(16, 24, 24), tie_embeddings=True),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name):
    source, expected = PUBLISHED[name]
    hub = parse_config(source)
    assert expected.items() <= hub.fields.items()
    assert hub.max_length == source["max_position_embeddings"]


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("llama 3.1", dict(architectures=["GPT2LMHeadModel"]), "architecture GPT2LMHeadModel is not supported; supported: Llama"),
        ("llama 3.1", dict(architectures=None), r"\(none given\)"),
        ("qwen 3", dict(architectures=["Qwen3MoeForCausalLM"]), "Qwen3MoeForCausalLM"),
        ("qwen 3", dict(num_experts=128), "num_experts=128"),
        ("llama 3.1", dict(attention_bias=True), "attention_bias=True"),
        ("qwen 3", dict(attention_bias=True), "attention_bias=True"),
        ("llama 3.1", dict(mlp_bias=True), "mlp_bias=True"),
        ("llama 3.1", dict(hidden_act="gelu"), "hidden_act='gelu'"),
        ("llama 3.1", dict(quantization_config={"bits": 4}), "quantization_config"),
        ("llama 3.1", dict(rope_scaling=dict(rope_type="yarn", factor=4.0)), "rope type 'yarn'"),
        ("qwen 2.5", dict(rope_scaling=dict(type="linear", factor=4.0)), "rope type 'linear'"),
        ("qwen 2.5", dict(rope_scaling=dict(type="mrope", mrope_section=[16, 24, 24])), "rope type 'mrope'"),
        ("llama 3.1", dict(rope_scaling=dict(rope_type="llama3", factor=4.0)), "has no key low_freq_factor"),
        ("llama 3.1", dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
        ("qwen 2.5", dict(use_sliding_window=True), "use_sliding_window=True from layer 21 on"),
        ("qwen 3", dict(layer_types=["full_attention", "sliding_attention"]), "layer_types with sliding_attention"),
        ("qwen 2.5 vl", dict(rope_scaling=dict(type="mrope", mrope_section=[16, 24])), "mrope_section"),
        ("qwen 2.5", dict(hidden_size=None), "hidden_size=None must be a positive whole number"),
        ("qwen 2.5", dict(hidden_size=1537), "hidden_size=1537 is not a multiple"),
        ("qwen 2.5", dict(vocab_size="many"), "vocab_size='many'"),
        ("qwen 2.5", dict(rope_theta=0), "rope_theta=0 must be a positive number"),
    ],
)
def test_what_is_not_supported_is_named(name, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_config(PUBLISHED[name][0] | changes)
    assert "\n" not in str(error.value)


def test_a_window_that_no_layer_uses_is_no_error():
    source = PUBLISHED["qwen 2.5"][0]
    assert parse_config(source | dict(use_sliding_window=True, max_window_layers=28)).fields == parse_config(source).fields


def test_layout_reads_any_box():
    rng = np.random.default_rng(0)
    file = rng.normal(size=(12, 5)).astype(np.float32)  # (n h) e with n=3, h=4
    layout = Layout("(n h) e -> e n h", (5, 3, 4), (12, 5))
    expected = file.reshape(3, 4, 5)
    for index in (np.s_[0:3, 0:4, 0:5], np.s_[1:2, 0:4, 2:4], np.s_[1:3, 1:3, 0:1], np.s_[:, 3:, :]):
        np.testing.assert_array_equal(layout.read(lambda box: file[box], index), expected[index])
    ours = layout.to_ours(expected)
    np.testing.assert_array_equal(ours, file.T.reshape(5, 3, 4))
    np.testing.assert_array_equal(layout.to_file(ours), file)
    patches = Layout("e c t y x -> (c t y x) e", (24, 7), (7, 3, 2, 2, 2))
    assert patches.fine_spec((None, "fsdp")) == ("fsdp", None, None, None, None)
    np.testing.assert_array_equal(patches.to_ours(np.ones(patches.fine)).shape, (24, 7))


# --- Rotary positions, wherever they are stated ---

LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)


def without(name, *keys):
    return {key: value for key, value in PUBLISHED[name][0].items() if key not in keys}


@pytest.mark.parametrize(
    "name, changes",
    [
        ("qwen 2.5", dict(rope_theta=1e6)),
        ("qwen 2.5", dict(rope_parameters=dict(rope_type="default", rope_theta=1e6))),
        ("qwen 2.5", dict(rope_parameters=dict(rope_type="default", rope_theta=1e6), rope_scaling=dict(rope_type="default"))),
        ("qwen 2.5", dict(rope_theta=1e6, rope_parameters=dict(rope_type="default"))),
        ("qwen 2.5", dict(rope_scaling=dict(rope_theta=1e6))),
        ("qwen 2.5", dict(rope_parameters=dict(rope_type="default", rope_theta=1e6), rope_theta=None)),
    ],
)
def test_a_stated_base_is_read_wherever_it_stands(name, changes):
    assert parse_config(without(name, "rope_theta") | changes).fields["rope_theta"] == 1e6


@pytest.mark.parametrize(
    "inside, outside",
    [
        ({}, dict(rope_theta=5e5)),
        ({}, dict(rope_parameters=dict(rope_type="default", rope_theta=5e5))),
        (dict(rope_theta=5e5), dict(rope_theta=1e4)),
        (dict(rope_parameters=dict(rope_type="default", rope_theta=5e5)), {}),
    ],
)
def test_a_nested_file_s_base_is_read_inside_and_outside(inside, outside):
    text = without("qwen 2.5", "rope_theta", "architectures") | inside
    source = dict(architectures=["Qwen2ForCausalLM"], text_config=text) | outside
    assert parse_config(source).fields["rope_theta"] == 5e5


def test_a_base_beside_the_older_scaling_is_kept():
    source = without("llama 3.1", "rope_theta", "rope_scaling")
    source |= dict(rope_parameters=dict(rope_type="default", rope_theta=5e5), rope_scaling=LLAMA3)
    assert parse_config(source).fields == parse_config(PUBLISHED["llama 3.1"][0]).fields


@pytest.mark.parametrize(
    "rope, message",
    [
        (dict(rope_type="yarn", factor=4.0, beta_fast=32), "rope type 'yarn'"),
        (dict(rope_type="dynamic", factor=2.0), "rope type 'dynamic'"),
        (dict(type="longrope", short_factor=[1.0], long_factor=[1.0]), "rope type 'longrope'"),
        (dict(rope_type="new"), "rope type 'new'"),
        (dict(factor=2.0), "a rope factor of 2.0 with rope type 'default'"),
        (dict(full_attention=dict(rope_type="default", rope_theta=1e6)), "with full_attention is not supported"),
        (dict(rope_type="default", mrope_interleaved=True), "with mrope_interleaved is not supported"),
        (dict(rope_type="default", partial_rotary_factor=0.25), "partial_rotary_factor=0.25"),
        ([1.0], "must be a JSON object"),
    ],
)
@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_other_forms_are_refused_by_name(place, rope, message):
    nested = without("qwen 2.5", "architectures") | {place: rope}
    for source in (PUBLISHED["qwen 2.5"][0] | {place: rope}, dict(architectures=["Qwen2ForCausalLM"], text_config=nested)):
        with pytest.raises(ValueError, match=message):
            parse_config(source)


def test_two_groups_that_contradict_each_other_are_refused():
    source = PUBLISHED["llama 3.1"][0] | dict(rope_parameters=dict(LLAMA3, factor=32.0))
    with pytest.raises(ValueError, match=r"rope_parameters has factor=32.0 but rope_scaling has factor=8.0"):
        parse_config(source)


# --- Keys of other families ---


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("llama 3.1", dict(sliding_window=4096), "sliding_window=4096"),
        ("llama 3.1", dict(layer_types=["sliding_attention"] * 32), "layer_types with sliding_attention"),
        ("llama 3.1", dict(logits_scaling=8.0), "logits_scaling=8.0"),
        ("llama 3.1", dict(logit_scale=0.0625), "logit_scale=0.0625"),
        ("llama 3.1", dict(attention_multiplier=0.0156), "attention_multiplier=0.0156"),
        ("llama 3.1", dict(query_pre_attn_scalar=256), "query_pre_attn_scalar=256"),
        ("llama 3.1", dict(residual_multiplier=0.22, embedding_multiplier=12.0), "embedding_multiplier=12.0; residual_multiplier=0.22"),
        ("qwen 3", dict(attn_logit_softcapping=50.0), "attn_logit_softcapping=50.0"),
        ("qwen 3", dict(is_causal=False), "is_causal=False"),
        ("qwen 3", dict(no_rope_layers=[1, 1, 1, 0]), "no_rope_layers with layers without rotary positions"),
        ("llama 3.1", dict(compression_config={"format": "int"}), "quantization_config"),
        ("llama 3.1", dict(qkv_bias=True), "qkv_bias=True"),
        ("llama 3.1", dict(use_qk_norm=True), "use_qk_norm=True"),
        ("qwen 2.5", dict(use_qkv_bias=False), "use_qkv_bias=False"),
        ("llama 3.1", dict(num_local_experts=8), "num_local_experts=8"),
    ],
)
def test_keys_that_change_the_computation_are_named(name, changes, message):
    nested = dict(architectures=PUBLISHED[name][0]["architectures"], text_config=without(name, "architectures") | changes)
    for source in (PUBLISHED[name][0] | changes, nested):
        with pytest.raises(ValueError, match=message):
            parse_config(source)


@pytest.mark.parametrize(
    "name, changes",
    [
        ("llama 3.1", dict(logits_scaling=1.0, attention_multiplier=128**-0.5, query_pre_attn_scalar=128, sliding_window=None)),
        ("llama 3.1", dict(use_sliding_window=False, sliding_window=4096)),
        ("llama 3.1", dict(layer_types=["full_attention"] * 32, partial_rotary_factor=1.0, is_causal=True, use_bias=False)),
        ("qwen 2.5", dict(qkv_bias=True, attention_bias=False, num_experts=0, final_logit_softcapping=None)),
        ("qwen 3", dict(use_qk_norm=True, use_qkv_bias=False)),
    ],
)
def test_neutral_values_change_nothing(name, changes):
    assert parse_config(PUBLISHED[name][0] | changes).fields == parse_config(PUBLISHED[name][0]).fields


# What each key of another family may say, without changing what the decoder computes, and a value that changes it.
NEUTRAL = {
    **dict.fromkeys(("mlp_bias", "attention_out_bias", "use_bias", "bias", "parallel_attn", "use_parallel_residual"), (False, True)),
    **dict.fromkeys(("logit_scale", "logits_scaling", "embedding_multiplier", "residual_multiplier", "scale_emb"), (1, 2)),
    **dict.fromkeys(("mup_width_scale", "lm_head_multiplier", "rotary_pct", "rope_ratio"), (1, 0.5)),
    **dict.fromkeys(("clip_qkv", "final_logit_softcapping", "attn_logit_softcapping"), (0, 30.0)),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "kv_lora_rank", "q_lora_rank"), (0, 8)),
    **dict.fromkeys(("attention_chunk_size", "attention_sinks", "attn_temperature_tuning", "num_kv_shared_layers"), (0, 4)),
    **dict.fromkeys(("alibi", "rope_interleaved", "mrope_interleaved", "use_bidirectional_attention"), (False, True)),
    "hidden_activation": ("silu", "gelu"), "position_embedding_type": ("rope", "alibi"), "use_rope": (True, False),
    "no_rope_layer_interval": (0, 4), "rope_local_base_freq": (None, 10_000.0), "is_causal": (True, False),
}  # fmt: skip


@pytest.mark.parametrize("key", NEUTRAL)
def test_each_key_of_another_family_has_values_that_change_nothing_and_others(key):
    source, (neutral, other) = PUBLISHED["llama 3.1"][0], NEUTRAL[key]
    assert parse_config(source | {key: neutral}).fields == parse_config(source).fields
    with pytest.raises(ValueError, match=f"{key}={other}|{key}='{other}'"):
        parse_config(source | {key: other})


def test_a_key_outside_the_text_config_is_read_where_the_inside_has_none():
    text = without("qwen 2.5", "architectures", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings")
    outside = dict(architectures=["Qwen2ForCausalLM"], rms_norm_eps=1e-5, tie_word_embeddings=True, max_position_embeddings=512)
    hub = parse_config(dict(outside, text_config=text))
    assert (hub.fields["norm_eps"], hub.fields["tie_embeddings"], hub.max_length) == (1e-5, True, 512)
