"""Makes small GGUF files, as llama.cpp's converter does."""

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter, TokenType, quants
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

WIDTH, HEADS, KV_HEADS, MLP, LAYERS = 256, 4, 2, 256, 2
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
K_TYPES = {Kind.Q4_K: (0, 2), Kind.Q6_K: (208,)}  # types that gguf cannot write, with the places of their scales (fp16) in a block


def vocabulary():
    """Tokens and merges of a byte-level BPE that has seen a few words and runs of spaces."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(SPECIAL), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    found.train_from_iterator(
        ["the cat sat on the mat   and   the dog's bone", "we're  here, they've  gone 12 123 1234\n\n\n"] * 20, trainer
    )
    import json

    model = json.loads(found.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [" ".join(merge) for merge in model["merges"]]


def random_tensor(rng, shape, kind):
    """Data of a type: what `GGUFWriter.add_tensor` takes."""
    if kind not in K_TYPES:
        return quants.quantize(rng.normal(size=shape, scale=0.1).astype(np.float32), kind)
    rows, width = shape
    size = quants.quant_shape_to_byte_shape((1, 256), kind)[1]
    blocks = rng.integers(0, 256, (rows, width // 256, size), np.uint8)
    for place in K_TYPES[kind]:
        blocks[..., place : place + 2] = np.float16(rng.uniform(1e-4, 1e-3, (rows, width // 256, 1))).view(np.uint8)
    return blocks.reshape(rows, -1)


def write(
    path, architecture="llama", kind=Kind.F16, *, pre="smollm", model="gpt2", settings=(), tensors=(), drop=(), tokenizer=True, seed=0
):
    """Writes a file with random weights; `settings` adds or replaces keys, `tensors` adds (name, data, type), `drop` leaves tensors out."""
    rng, writer, a = np.random.default_rng(seed), GGUFWriter(path, architecture), architecture
    head = 128 if a == "qwen3" else WIDTH // HEADS
    tokens, merges = vocabulary()
    values = {
        f"{a}.block_count": LAYERS, f"{a}.context_length": 128, f"{a}.embedding_length": WIDTH, f"{a}.feed_forward_length": MLP,
        f"{a}.attention.head_count": HEADS, f"{a}.attention.head_count_kv": KV_HEADS, f"{a}.attention.key_length": head,
        f"{a}.attention.value_length": head, f"{a}.rope.dimension_count": head, f"{a}.rope.freq_base": 10_000.0,
        f"{a}.attention.layer_norm_rms_epsilon": 1e-5,
    } | dict(settings)  # fmt: skip
    for key, value in values.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool, list: writer.add_array}
        if value is not None:
            add[type(value)](key, value)
    if tokenizer:
        writer.add_tokenizer_model(model)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in tokens])
        writer.add_token_merges(merges)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_chat_template(TEMPLATE)
    shapes = {"token_embd": (len(tokens), WIDTH), "output": (len(tokens), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        for name, shape in {
            "attn_norm": (WIDTH,), "attn_q": (HEADS * head, WIDTH), "attn_k": (KV_HEADS * head, WIDTH), "attn_v": (KV_HEADS * head, WIDTH),
            "attn_output": (WIDTH, HEADS * head), "ffn_norm": (WIDTH,), "ffn_gate": (MLP, WIDTH), "ffn_up": (MLP, WIDTH), "ffn_down": (WIDTH, MLP),
            **({"attn_q_norm": (head,), "attn_k_norm": (head,)} if a == "qwen3" else {}),
        }.items():  # fmt: skip
            shapes[f"blk.{layer}.{name}"] = shape
            if a == "qwen2" and name in ("attn_q", "attn_k", "attn_v"):
                writer.add_tensor(f"blk.{layer}.{name}.bias", rng.normal(size=shape[0], scale=0.1).astype(np.float32))
    for name, shape in shapes.items():
        if name not in drop:
            own = kind if len(shape) > 1 else Kind.F32
            data = random_tensor(rng, shape, own) if len(shape) > 1 else 1 + rng.normal(size=shape, scale=0.1).astype(np.float32)
            writer.add_tensor(f"{name}.weight", data, raw_dtype=own)
    for name, data, own in tensors:
        writer.add_tensor(name, data, raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
