"""The tokenizers of the tiny presets, and `TextCodec`, which converts between text and token ids at run time.

A symbol tokenizer has one token for each known word (such as the environment's actions) and one for each other character, so a
board has one token a cell, and each cell's token is at a fixed position. It is trained on the environment's own text and saved as
a normal Hugging Face folder, which `AutoTokenizer.from_pretrained` loads. A piece tokenizer does the same for environments whose
text is sentences. Only `tokenizers` is imported here, because `transformers` takes a second to import and the folder is only three
small JSON files.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from stepreward.text import REPLACEMENT, whole

PAD, USER, ASSISTANT, END, UNKNOWN = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>", "<|unknown|>"
SPECIAL_TOKENS = (PAD, USER, ASSISTANT, END, UNKNOWN)
# An image is written as a start token, one placeholder for each of its embeddings, and an end token. The names are Qwen2-VL's.
IMAGE_TOKENS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
PLACEHOLDER_ID = len(SPECIAL_TOKENS) + 1  # of <|image_pad|> in a tokenizer with image tokens

# <|user|>content<|assistant|>content<|end|>, with no separators: an answer costs two tokens besides its content.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_LONG = 20_000  # characters; encoding a text of this length takes milliseconds


def train_symbol_tokenizer(texts: Iterable[str], words: Sequence[str], path: str | os.PathLike, *, images: bool = False) -> TextCodec:
    """Makes a symbol tokenizer for an environment's text, saves it as the folder `path`, and loads it.

    Ids 0 to 4 are the special tokens `<|pad|>`, `<|user|>`, `<|assistant|>`, `<|end|>` and `<|unknown|>`. With `images`, ids 5 to 7
    are `<|vision_start|>`, `<|image_pad|>` and `<|vision_end|>`. Then come the words in the order given, and the characters of
    `texts` and `words` in code-point order, so the same texts and words give the same ids. Any other character is encoded as
    `<|unknown|>`.

    Args:
      texts: all text of the environment and its prompt, in any order; only the set of characters matters.
      words: strings that become one token each; if several match, the longest wins. A word that starts or ends with a letter or
        digit is not matched inside a longer word. A fixed sentence of the rules may also be a word.
      path: the folder to write; files of an older tokenizer in it are replaced.
      images: whether messages may contain images.

    Returns:
      The codec that `load_tokenizer(path)` returns.

    Raises:
      ValueError: if a word is empty or a special token.
    """
    words, special = list(dict.fromkeys(map(whole, words))), (*SPECIAL_TOKENS, *(IMAGE_TOKENS if images else ()))
    for word in words:
        if not word or word in special:
            raise ValueError(f"a word of the tokenizer must not be empty or a special token; got {word!r}")
    characters = set().union(*(set(whole(text)) for text in texts), *map(set, words))
    vocabulary = list(dict.fromkeys([*special, *words, *sorted(characters)]))

    tokenizer = tokenizers.Tokenizer(models.WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(_pattern(words)), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in special])
    _save(tokenizer, Path(path), special)
    return load_tokenizer(path)


# A space is part of the word that follows it; runs of digits and single punctuation marks are pieces of their own. The text between
# punctuation marks, as in `[red lamp]`, therefore has the same tokens everywhere.
_PIECES = r" ?\p{L}+|\p{N}+|[^\s\p{L}\p{N}]|\s"


def train_piece_tokenizer(texts: Iterable[str], vocab_size: int, path: str | os.PathLike, *, images: bool = False) -> TextCodec:
    """Makes a tokenizer of word pieces (byte-level BPE), saves it as the folder `path`, and loads it.

    Ids 0 to 4 (with `images`, 0 to 7) are the special tokens, followed by the 256 bytes, and then by merges in the order of their
    frequency in `texts`. Any text can be encoded, and none becomes `<|unknown|>`. The same texts in the same order give the same ids.

    Args:
      texts: the text of the environment and its prompt; repeat a text as often as it occurs.
      vocab_size: the largest number of ids; at least 261, or 264 with images.
      path: the folder to write; files of an older tokenizer in it are replaced.
      images: whether messages may contain images.

    Returns:
      The codec that `load_tokenizer(path)` returns.

    Raises:
      ValueError: if `vocab_size` is too small.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = (*SPECIAL_TOKENS, *(IMAGE_TOKENS if images else ()))
    least = len(special) + len(alphabet)
    if vocab_size < least:
        raise ValueError(f"a tokenizer of word pieces needs vocab_size of at least {least}; got {vocab_size}")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(_PIECES), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    added = [tokenizers.AddedToken(t, special=True, normalized=False) for t in special]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=added, initial_alphabet=sorted(alphabet), show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(map(whole, texts), trainer)
    _save(tokenizer, Path(path), special)
    return load_tokenizer(path)


def load_tokenizer(path: str | os.PathLike) -> TextCodec:
    """Loads a tokenizer folder that `train_symbol_tokenizer` or `train_piece_tokenizer` wrote.

    Raises:
      FileNotFoundError: if there is no such folder, or it holds no `tokenizer.json`.
      ValueError: if its `tokenizer.json` is not a tokenizer, or lacks one of the special tokens.
    """
    path = Path(path)
    file = path / "tokenizer.json"
    if not path.is_dir():
        raise FileNotFoundError(f"no tokenizer folder {str(path)!r}")
    if not file.is_file():
        raise FileNotFoundError(f"{str(path)!r} is not a tokenizer folder: it holds no tokenizer.json")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises a bare Exception
        raise ValueError(f"{str(file)!r} is not a tokenizer: {error}") from None
    return TextCodec(tokenizer)


class Codec:
    """Converts between text and token ids. Text is never encoded as a special token, and decoded text never shows one.

    Args:
      tokenizer: the tokenizer. The codec modifies it: from now on it reads the names of special tokens in a text as plain characters.
      pad_id: the padding token.
      vocab_size: number of ids; ids are `0 .. vocab_size - 1`.
      skipped: ids that `decode` omits, which are the special tokens.
      replaced: ids that `decode` shows as U+FFFD; ids outside `0 .. vocab_size - 1` are always shown so.
      remembered: how many results of `encode` are cached.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        pad_id: int,
        vocab_size: int,
        skipped: Iterable[int],
        replaced: Iterable[int],
        remembered: int = 65_536,
    ):
        # An environment's text is data: the characters `<|end|>` in it must not become the token that ends a turn.
        tokenizer.encode_special_tokens = True
        self.pad_id, self.vocab_size = pad_id, vocab_size
        self._tokenizer, self._skipped, self._replaced = tokenizer, frozenset(skipped), frozenset(replaced)
        self._control = self._skipped  # ids that text is never encoded as
        self._encode = functools.lru_cache(maxsize=remembered)(self._encode_once)

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text as a read-only int32 array `[T]`; no special token is added or recognised.

        The results for the most recent texts are cached, because observations repeat.
        """
        return self._encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of token ids without special tokens; never raises.

        An unknown token and ids outside `0 .. vocab_size - 1` become U+FFFD, which no action contains.

        Args:
          ids: integers of any value, such as an int32 array `[T]`.
        """
        pieces, run = [], []
        for index in map(int, ids):
            if index in self._skipped:
                continue
            if 0 <= index < self.vocab_size and index not in self._replaced:
                run.append(index)
                continue
            pieces += [self._said(run), REPLACEMENT]
            run = []
        return "".join([*pieces, self._said(run)])

    def _said(self, ids: list[int]) -> str:
        # The caller has removed the ids in `skipped`; the tokenizer itself counts more tokens as special.
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def forget(self) -> None:
        """Clears the cache of `encode`."""
        self._encode.cache_clear()

    @functools.cached_property
    def longest_token(self) -> int:
        """Characters of the longest token as spelled in the vocabulary: no token covers more characters of a text."""
        return max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)))

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token, special ones included, and its id."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def _encode_once(self, text: str) -> np.ndarray:
        ids = np.asarray(self._ids(whole(text)), dtype=np.int32)
        ids.flags.writeable = False
        return ids

    def _ids(self, text: str) -> list[int]:
        if len(text) < _LONG:
            found = self._tokenizer.encode(text, add_special_tokens=False)
        else:  # only `encode_batch` releases the GIL, so that a server's other threads can run
            (found,) = self._tokenizer.encode_batch([text], add_special_tokens=False)
        if self._control.isdisjoint(found.ids):
            return found.ids
        # The trained vocabulary contains a control token and matched its name as a word: split the name after its first character.
        places = zip(found.ids, found.offsets)
        cuts = [start + 1 for index, (start, end) in places if index in self._control and end - start > 1]
        if not cuts:
            return [index for index in found.ids if index not in self._control]
        parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)])]
        return [index for part in parts for index in self._ids(part)]


class TextCodec(Codec):
    """The codec of a symbol or piece tokenizer; it caches the encodings of the last 65,536 different texts.

    Attributes:
      pad_id, user_id, assistant_id, end_id, unknown_id: ids of the special tokens.
      image_ids: ids of an image's start, placeholder and end; None if the tokenizer was made without images.
      vocab_size: number of ids including special tokens; ids are `0 .. vocab_size - 1`.

    Raises:
      ValueError: if the tokenizer lacks one of the special tokens.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
        if missing:
            raise ValueError(f"the tokenizer lacks the special tokens {', '.join(missing)}")
        pad_id, self.user_id, self.assistant_id, self.end_id, self.unknown_id = map(tokenizer.token_to_id, SPECIAL_TOKENS)
        image_ids = tuple(map(tokenizer.token_to_id, IMAGE_TOKENS))
        self.image_ids = None if None in image_ids else image_ids
        super().__init__(
            tokenizer,
            pad_id,
            tokenizer.get_vocab_size(with_added_tokens=True),
            skipped=(pad_id, self.user_id, self.assistant_id, self.end_id, *(self.image_ids or ())),
            replaced=(self.unknown_id,),
        )


def _pattern(words: Sequence[str]) -> str:
    """Regular expression of one token: a known word (longest first), or else any single character."""
    alternatives = []
    for word in sorted(words, key=len, reverse=True):
        before = r"(?<![A-Za-z0-9])" if re.match(r"[A-Za-z0-9]", word) else ""
        after = r"(?![A-Za-z0-9])" if re.search(r"[A-Za-z0-9]\Z", word) else ""
        alternatives.append(before + re.escape(word) + after)
    return "|".join([*alternatives, r"[\s\S]"])


def _save(tokenizer: tokenizers.Tokenizer, path: Path, special: Sequence[str]) -> None:
    """Writes the three files of a Hugging Face tokenizer folder."""
    path.mkdir(parents=True, exist_ok=True)
    others = [token for token in special if token not in (PAD, END, UNKNOWN)]
    roles = {"pad_token": PAD, "eos_token": END, "unk_token": UNKNOWN}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles,
        "additional_special_tokens": others,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2**31 - 1,
    }
    tokenizer.save(str(path / "tokenizer.json"))
    for name, content in (
        ("tokenizer_config.json", settings),
        ("special_tokens_map.json", {**roles, "additional_special_tokens": others}),
    ):
        (path / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
