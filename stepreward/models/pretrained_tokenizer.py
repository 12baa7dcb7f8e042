"""The tokenizer of a pretrained model: a Hugging Face folder, with its chat template if it has one.

`tokenizer.json` is used unchanged: the tokenizer classes of some model families rebuild parts of it from fixed settings, and then
disagree with a folder whose settings differ. No code from the folder is run. `transformers` takes seconds to import and is
imported at the first call.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepreward.models.chat_template import FIXED_DATE
from stepreward.models.tokenizer import Codec

# Used for padding if a tokenizer names no padding token; padding is masked, so any id would do.
_PADDING = ("<|finetune_right_pad_id|>", "<|endoftext|>")


def load_pretrained_tokenizer(path: str | os.PathLike) -> PretrainedCodec:
    """Loads a local tokenizer folder: `tokenizer.json`, `tokenizer_config.json`, and a chat template in either file or a separate one.

    If `tokenizer.json` is missing, `transformers` builds the tokenizer from the folder's other files if it can.

    Raises:
      FileNotFoundError: if there is no such folder, or it holds no tokenizer.
      ValueError: if its files cannot be read as a tokenizer.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no tokenizer folder {str(path)!r}")
    has_file = (path / "tokenizer.json").is_file()
    if not has_file and not any((path / name).is_file() for name in ("tokenizer.model", "vocab.json", "tokenizer_config.json")):
        raise FileNotFoundError(f"{str(path)!r} is not a tokenizer folder: it holds no tokenizer.json")
    if has_file:
        from transformers import PreTrainedTokenizerFast as loader
    else:
        from transformers import AutoTokenizer as loader  # also imports torch if it is installed
    try:
        tokenizer = loader.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        return PretrainedCodec(tokenizer, path)
    except Exception as error:  # malformed files make the two libraries raise errors of many types
        raise ValueError(f"the tokenizer in {str(path)!r} cannot be read: {error}") from error


class PretrainedCodec(Codec):
    """The codec of a pretrained model's tokenizer; it caches the encodings of the last 8,192 different texts.

    Text is never encoded as a control token: neither as one that the tokenizer marks as special (`<|im_end|>`) nor as one that it
    adds without that mark (`<think>` and `<tool_call>` of Qwen3). Only text that the chat template itself writes becomes such a
    token. Decoding omits special tokens, including those of `mark_special`, and shows the other control tokens, because `<think>`
    is part of an answer. Added tokens that consist of letters, digits and spaces are ordinary words, and text may contain them.

    Attributes:
      folder: the folder that the tokenizer was loaded from.
      pad_id: the padding token; if the tokenizer names none, another special token such as the end of text.
      eos_ids: tokens that end a text, from `generation_config.json`, `config.json`, its `text_config`, `tokenizer_config.json` and
        `special_tokens_map.json`.
      special: special tokens, token → id.
      control: tokens that text is never encoded as, token → id.
      added: tokens that were added to the trained vocabulary, token → id.
      vocab_size: the largest id plus 1; a model's embedding may have more rows.
      has_template: whether there is a chat template.
    """

    def __init__(self, tokenizer, folder: Path):
        backend = tokenizer.backend_tokenizer
        added = backend.get_added_tokens_decoder()
        known = set(backend.get_vocab(with_added_tokens=True).values())
        vocab_size = max(known) + 1
        self.folder, self._pretrained, self._tokenizer = folder, tokenizer, backend
        self.added = {token.content: index for index, token in added.items()}
        named = [backend.token_to_id(token) for token in _named_ends(folder)]
        ends = [*_stated_ends(folder), tokenizer.eos_token_id, *named]
        self.eos_ids = tuple(dict.fromkeys(index for index in ends if index is not None))
        self.special = {token.content: i for i, token in added.items() if token.special or i in self.eos_ids}
        self.control: dict[str, int] = {}
        self._forbid(token for token in self.added if token in self.special or not _is_words(token))
        others = [self.special[token] for token in _PADDING if token in self.special]
        pad_id = next(i for i in [tokenizer.pad_token_id, *others, *self.eos_ids, 0] if i is not None)
        holes = set(range(vocab_size)) - known
        super().__init__(backend, pad_id, vocab_size, self.special.values(), holes, remembered=8_192)
        self._unknown = tokenizer.unk_token_id  # the one control token that text may become: for text outside the vocabulary
        self._control = frozenset(self.control.values()) - {self._unknown}
        if not tokenizer.chat_template:
            tokenizer.chat_template = _processor_template(folder)
        self.has_template = bool(tokenizer.chat_template)

    @property
    def template(self) -> str:
        """The source of the chat template; empty if there is none, or if there are several and none is the default."""
        try:
            return self._pretrained.get_chat_template()
        except ValueError:  # `render` raises this error again
            return ""

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool, **variables: Any) -> str:
        """Renders `messages` with the chat template, as text. Errors that the template raises are passed on.

        Args:
          messages: mappings with `role` and `content`.
          add_generation_prompt: whether the text ends with the header of the next answer.
          **variables: further variables of the template; `date_string` replaces any date that the template asks for.
        """
        template = self.template or self._pretrained.get_chat_template()  # raises an error that says why there is none
        if "strftime_now" in template:
            template = FIXED_DATE + template
        return self._pretrained.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **variables,
        )

    def mark_special(self, tokens: Iterable[str]) -> None:
        """Makes added tokens special: from now on text is never encoded as them, and decoding omits them.

        A few tokenizers add the markers of turns (`<｜User｜>`) without marking them as special.
        """
        tokens = list(tokens)
        self.special.update({token: self.added[token] for token in tokens})
        self._forbid(tokens)
        self._skipped, self._control = frozenset(self.special.values()), frozenset(self.control.values()) - {self._unknown}
        self.forget()

    def _forbid(self, tokens: Iterable[str]) -> None:
        """Keeps text from being encoded as these tokens: marks them as special in the tokenizer, which `Codec` has read the names of
        special tokens as plain characters."""
        added, new = self._tokenizer.get_added_tokens_decoder(), []
        for token in tokens:
            if token not in self.control:
                self.control[token] = self.added[token]
                new.append(added[self.added[token]])
                new[-1].special = True  # its other settings are kept
        if new:
            self._tokenizer.add_special_tokens(new)

    def encode_template(self, text: str) -> np.ndarray:
        """Encodes text that a template wrote, int32 `[T]`, recognising special tokens. Never use it for text from users."""
        self._tokenizer.encode_special_tokens = False
        try:
            return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
        finally:
            self._tokenizer.encode_special_tokens = True


def _is_words(token: str) -> bool:
    """Whether an added token is ordinary text: only letters, digits and spaces, such as a word or a long run of spaces."""
    return all(unicodedata.category(character)[0] in "LMNZ" or character.isspace() for character in token)


def _stated_ends(folder: Path) -> list[int]:
    """The ids that the folder's settings state as ends of a text, those of the generation settings first.

    Raises:
      ValueError: if a stated value is not a token id; the error names the file and the value.
    """
    model = _settings(folder, "config.json")
    text = model.get("text_config")
    places = [
        ("generation_config.json", _settings(folder, "generation_config.json")),
        ("config.json", model),
        ("text_config of config.json", text if isinstance(text, dict) else {}),
    ]
    ends = []
    for name, settings in places:
        stated = settings.get("eos_token_id")
        for end in stated if isinstance(stated, list) else [] if stated is None else [stated]:
            if isinstance(end, bool) or not isinstance(end, int) or end < 0:
                raise ValueError(f"{name} has eos_token_id={stated!r}, which must be a token id or a list of token ids")
            ends.append(end)
    return ends


def _named_ends(folder: Path) -> list[str]:
    """The tokens that the tokenizer's settings name as the end of a text."""
    ends = [_settings(folder, name).get("eos_token") for name in ("tokenizer_config.json", "special_tokens_map.json")]
    ends = [end.get("content") if isinstance(end, dict) else end for end in ends]
    return [end for end in ends if isinstance(end, str)]


def _processor_template(folder: Path) -> str | None:
    """The template in `chat_template.json`, where processors of vision-language models used to store it."""
    template = _settings(folder, "chat_template.json").get("chat_template")
    return template if isinstance(template, str) else None


def _settings(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file."""
    file = folder / name
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name} must hold a JSON object")
    return content
