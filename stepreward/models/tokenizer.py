"""The tokenizers of the tiny presets, and `TextCodec`, which turns text into token ids and back at run time.

A symbol tokenizer has one token for each known word (the environment's actions, say) and one for each other character,
so a board is one token a cell and a cell's token stands at a fixed place. It is trained on the environment's own text
and saved as a normal Hugging Face folder, which `AutoTokenizer.from_pretrained` loads. A piece tokenizer does the same for
environments that speak in sentences. Only `tokenizers` is imported
here: `transformers` takes a second to import, and the folder is three small JSON files.
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
# What an image is written as: a start, as many placeholders as it has embeddings, an end. Qwen2-VL's names.
IMAGE_TOKENS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
PLACEHOLDER_ID = len(SPECIAL_TOKENS) + 1  # of a symbol tokenizer with image tokens

# <|user|>content<|assistant|>content<|end|>, with nothing between: a turn costs two tokens besides its words.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_LONG = 20_000  # characters that take milliseconds to tokenise


def train_symbol_tokenizer(texts: Iterable[str], words: Sequence[str], path: str | os.PathLike, *, images: bool = False) -> TextCodec:
    """Makes the tokenizer of an environment's text, saves it as the folder `path`, and loads it.

    Ids: the special tokens `<|pad|>`, `<|user|>`, `<|assistant|>`, `<|end|>`, `<|unknown|>` are 0 to 4 (with
    `images`, `<|vision_start|>`, `<|image_pad|>`, `<|vision_end|>` are 5 to 7), the words follow in the order given, then the
    characters of `texts` and `words` in code-point order, so the same texts and words give the same ids. A
    character seen in neither becomes `<|unknown|>`.

    Args:
      texts: everything that the environment and its prompt may say, in any order; only the set of characters matters.
      words: strings that become one token each, the longest first where several fit; a word that starts or ends with a
        letter or digit is not found inside a longer word. A fixed sentence of the rules may be one too.
      path: the folder to write; files of an older tokenizer there are replaced.
      images: whether messages show images.

    Returns:
      The codec that `load_tokenizer(path)` returns.

    Raises:
      ValueError: a word is empty or is a special token.
    """
    words, special = list(dict.fromkeys(map(whole, words))), (*SPECIAL_TOKENS, *(IMAGE_TOKENS if images else ()))
    for word in words:
        if not word or word in special:
            raise ValueError(f"a word of the tokenizer may not be empty or a special token; got {word!r}")
    characters = set().union(*(set(whole(text)) for text in texts), *map(set, words))
    vocabulary = list(dict.fromkeys([*special, *words, *sorted(characters)]))

    tokenizer = tokenizers.Tokenizer(models.WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(_pattern(words)), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in special])
    _save(tokenizer, Path(path), special)
    return load_tokenizer(path)


# Spaces go with the word that they precede; digits, and every punctuation mark, stand alone, so that what stands between marks, as
# `[red lamp]` does, is made of the same tokens wherever it stands.
_PIECES = r" ?\p{L}+|\p{N}+|[^\s\p{L}\p{N}]|\s"


def train_piece_tokenizer(texts: Iterable[str], vocab_size: int, path: str | os.PathLike, *, images: bool = False) -> TextCodec:
    """Makes a tokenizer of pieces of words (byte-level BPE), saves it as the folder `path`, and loads it.

    Ids: the special tokens are 0 to 4 (with `images`, 0 to 7), the 256 bytes follow, then merges by how often they occur in
    `texts`; any text can be written, and nothing becomes `<|unknown|>`. The same texts in the same order give the same ids.

    Args:
      texts: what the environment and its prompt say, as often as it is said.
      vocab_size: number of ids, at most; at least 261, or 264 with images.
      path: the folder to write; files of an older tokenizer there are replaced.
      images: whether messages show images.

    Returns:
      The codec that `load_tokenizer(path)` returns.

    Raises:
      ValueError: vocab_size is too small.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = (*SPECIAL_TOKENS, *(IMAGE_TOKENS if images else ()))
    least = len(special) + len(alphabet)
    if vocab_size < least:
        raise ValueError(f"a tokenizer of pieces has at least {least} of them; got {vocab_size}")
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
    """Loads the tokenizer folder that `train_symbol_tokenizer` or `train_piece_tokenizer` wrote.

    Raises:
      FileNotFoundError: there is no such folder, or it holds no `tokenizer.json`.
      ValueError: its `tokenizer.json` is not a tokenizer, or lacks one of the special tokens.
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
    """Text to token ids and back over one tokenizer; its special tokens are never made from text, nor shown in it.

    Args:
      tokenizer: the codec changes it: from here on it reads the names of special tokens in a text as plain characters.
      pad_id: token used as padding.
      vocab_size: number of ids; ids are `0 .. vocab_size - 1`.
      skipped: ids that `decode` leaves out: special tokens.
      replaced: ids that `decode` shows as U+FFFD, as it does ids outside `0 .. vocab_size - 1`.
      remembered: how many results of `encode` are kept.
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
        # What an environment says is data: the characters `<|end|>` in it must not become the token that ends a turn.
        tokenizer.encode_special_tokens = True
        self.pad_id, self.vocab_size = pad_id, vocab_size
        self._tokenizer, self._skipped, self._replaced = tokenizer, frozenset(skipped), frozenset(replaced)
        self._control = self._skipped  # what text never becomes
        self._encode = functools.lru_cache(maxsize=remembered)(self._encode_once)

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text as a read-only int32 array `[T]`; no special token is added or recognised.

        The results of the last texts are kept, as observations repeat.
        """
        return self._encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of token ids, special tokens left out; never raises.

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
        # What is left out is decided by the caller: the tokenizer calls more tokens special than `skipped` does.
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def forget(self) -> None:
        """Drops the remembered results of `encode`."""
        self._encode.cache_clear()

    @functools.cached_property
    def longest_token(self) -> int:
        """Characters of the longest token as the vocabulary spells it: no token stands for more of a text."""
        return max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)))

    def _encode_once(self, text: str) -> np.ndarray:
        ids = np.asarray(self._ids(whole(text)), dtype=np.int32)
        ids.flags.writeable = False
        return ids

    def _ids(self, text: str) -> list[int]:
        if len(text) < _LONG:
            found = self._tokenizer.encode(text, add_special_tokens=False)
        else:  # only a batch lets Python's other threads run meanwhile: those of a server
            (found,) = self._tokenizer.encode_batch([text], add_special_tokens=False)
        if self._control.isdisjoint(found.ids):
            return found.ids
        # The trained vocabulary holds a control token, and finds its name as a word: the name is cut after its first character.
        places = zip(found.ids, found.offsets)
        cuts = [start + 1 for index, (start, end) in places if index in self._control and end - start > 1]
        if not cuts:
            return [index for index in found.ids if index not in self._control]
        parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)])]
        return [index for part in parts for index in self._ids(part)]


class TextCodec(Codec):
    """The codec of a symbol tokenizer; the last 65,536 different texts are remembered.

    Attributes:
      pad_id, user_id, assistant_id, end_id, unknown_id: ids of the special tokens.
      image_ids: ids of an image's start, placeholder and end; None where the tokenizer was made without images.
      vocab_size: number of ids, the special tokens included; ids are `0 .. vocab_size - 1`.

    Raises:
      ValueError: the tokenizer lacks one of the special tokens.
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
    """Regular expression of one token: a known word, the longest first, or else any one character."""
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
