"""Builds the tokenizer that a GGUF file describes, as the files of a Hugging Face folder.

Supported are byte-level BPE vocabularies (`tokenizer.ggml.model=gpt2`), which all supported families but the oldest Llamas have. How text is split
before the merges is only named in the file (`tokenizer.ggml.pre`); the rules of a name are those of llama.cpp's `src/llama-vocab.cpp`, which are
those of the models' own `tokenizer.json`.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
_NAMED = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(digits: str):
    """A word at a time, and so many digits at a time."""
    rule = pre_tokenizers.Split(Regex(_WORDS.format(digits=digits)), behavior="isolated")
    return pre_tokenizers.Sequence([rule, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _gpt2(*before):
    return pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])


_SPLITS = {
    "gpt-2": lambda: _gpt2(),
    "smollm": lambda: _gpt2(pre_tokenizers.Digits(individual_digits=True)),
    "llama-bpe": lambda: _split("{1,3}"),
    "qwen2": lambda: _split(""),
}
_SPLITS |= {"llama3": _SPLITS["llama-bpe"], "llama-v3": _SPLITS["llama-bpe"], "deepseek-r1-qwen": _SPLITS["qwen2"]}
_OF_FAMILY = {"qwen2": "qwen2", "qwen3": "qwen2"}  # for files that are older than the setting
_IGNORES_MERGES = {"llama-bpe", "llama3", "llama-v3"}  # a word that is a token is not merged
_COMPOSED = {"qwen2"}  # text is brought to Unicode's composed form first


def files_of(source) -> dict[str, Any]:
    """The tokenizer's files: `tokenizer.json` and a chat template as text, `tokenizer_config.json` as a dict.

    Args:
      source: a `gguf_file.GgufFile`.

    Raises:
      ValueError: the file has no tokenizer, or one that is not supported.
    """
    where, get = str(source.path), lambda key: source.get(f"tokenizer.ggml.{key}")
    kind, tokens, merges, kinds = (get(key) for key in ("model", "tokens", "merges", "token_type"))
    if not tokens or not isinstance(tokens, list):
        raise ValueError(f"{where!r} holds no tokenizer.")
    if kind != "gpt2":
        raise ValueError(
            f"{where!r} has a tokenizer of the kind {kind!r}, which is not supported (supported: byte-level BPE): use the model's Hugging Face folder."
        )
    split = get("pre") or _OF_FAMILY.get(source.architecture)
    if split not in _SPLITS:
        known = ", ".join(_SPLITS)
        raise ValueError(
            f"{where!r}: tokenizer.ggml.pre={split!r} is not supported (supported: {known}): use the model's Hugging Face folder."
        )
    if len(set(tokens)) != len(tokens) or len(kinds or tokens) != len(tokens):
        raise ValueError(f"{where!r}: the tokenizer's tokens are damaged: some are there twice, or not all have a type.")
    try:
        pairs = [tuple(merge.split(" ", 1)) for merge in merges or []]
        model = models.BPE({token: i for i, token in enumerate(tokens)}, pairs, ignore_merges=split in _IGNORES_MERGES)
    except Exception as error:  # the library raises plain exceptions
        raise ValueError(f"{where!r}: the tokenizer's merges are damaged ({error}).") from None
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC() if split in _COMPOSED else None
    tokenizer.pre_tokenizer, tokenizer.decoder = _SPLITS[split](), decoders.ByteLevel()
    for token, number in zip(tokens, kinds or []):  # in order, so that they keep their ids
        if number == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif number == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=False)])
    named = {theirs: tokens[i] for ours, theirs in _NAMED.items() if (i := get(f"{ours}_token_id")) is not None and i < len(tokens)}
    if get("add_bos_token") and "bos_token" in named:
        bos = named["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokens.index(bos))]
        )
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
    template = source.get("tokenizer.chat_template")
    return {
        "tokenizer.json": tokenizer.to_str(),
        "tokenizer_config.json": config,
        **({"chat_template.jinja": template} if isinstance(template, str) and template else {}),
    }
