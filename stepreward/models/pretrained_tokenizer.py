"""The tokenizer of a pretrained model: a Hugging Face folder, with its chat template where it has one.

`tokenizer.json` is taken as it stands: the tokenizer classes of some model families rebuild parts of it from fixed settings, and
then disagree with a folder whose settings differ. No code from the folder is run. `transformers` takes seconds to import
and is loaded at the first call.
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

# Used as padding where a tokenizer names none; padding is masked, so any id would do.
_PADDING = ("<|finetune_right_pad_id|>", "<|endoftext|>")


def load_pretrained_tokenizer(path: str | os.PathLike) -> PretrainedCodec:
    """Loads a local tokenizer folder: `tokenizer.json`, `tokenizer_config.json`, and a chat template in it or beside it.

    A folder without `tokenizer.json` is converted from its other files when `transformers` knows how.

    Raises:
      FileNotFoundError: there is no such folder, or it holds no tokenizer.
      ValueError: its files are not a tokenizer.
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
        from transformers import AutoTokenizer as loader  # loads torch too, where that is installed
    try:
        tokenizer = loader.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        return PretrainedCodec(tokenizer, path)
    except Exception as error:  # whatever the files make the two libraries raise
        raise ValueError(f"{str(path)!r} does not hold a tokenizer that can be read: {error}") from error


class PretrainedCodec(Codec):
    """The codec of a pretrained model's tokenizer; the last 8,192 different texts are remembered.

    Text never becomes a control token, whatever it says: neither one that the tokenizer marks as special (`<|im_end|>`) nor one that
    it adds without that mark (`<think>` and `<tool_call>` of Qwen3). Only what a chat template writes itself becomes such a token.
    Decoding leaves the special ones out, those of `mark_special` included, and shows the others: an answer's `<think>` is part of
    what it says. Added tokens of letters, digits and blanks alone are words, and are read from text.

    Attributes:
      folder: where it was loaded from.
      pad_id: token used as padding; where the tokenizer names none, its end of text.
      eos_ids: tokens that end a text, wherever the folder names them: in `generation_config.json`, `config.json`, its
        `text_config`, `tokenizer_config.json` or `special_tokens_map.json`.
      special, control, added: token → id: of the special tokens, of all that text never becomes, and of all that were added to
        the trained vocabulary.
      vocab_size: one more than the largest id; a model's embedding may have more rows.
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
        self._unknown = tokenizer.unk_token_id  # what a text holds that the vocabulary does not: this one is made of text
        self._control = frozenset(self.control.values()) - {self._unknown}
        if not tokenizer.chat_template:
            tokenizer.chat_template = _processor_template(folder)
        self.has_template = bool(tokenizer.chat_template)

    @property
    def template(self) -> str:
        """The source of the chat template; empty where there is none, or several of which none is the default."""
        try:
            return self._pretrained.get_chat_template()
        except ValueError:  # `render` raises it, and says why
            return ""

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool, **variables: Any) -> str:
        """Returns the chat template of `messages` as text; raises what the template raises.

        Args:
          messages: mappings with `role` and `content`.
          add_generation_prompt: ends the text where the next answer begins.
          variables: what else the template may read; `date_string` stands for any date that it asks for.
        """
        template = self.template or self._pretrained.get_chat_template()  # which says why there is none
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
        """Makes added tokens special: from here on they are never read from text, nor shown in it.

        A few tokenizers add the marks of their turns as plain words (`<｜User｜>`).
        """
        tokens = list(tokens)
        self.special.update({token: self.added[token] for token in tokens})
        self._forbid(tokens)
        self._skipped, self._control = frozenset(self.special.values()), frozenset(self.control.values()) - {self._unknown}
        self.forget()

    def _forbid(self, tokens: Iterable[str]) -> None:
        """Keeps tokens from being made of text: to the tokenizer they are special, which `Codec` has it ignore in text."""
        added, new = self._tokenizer.get_added_tokens_decoder(), []
        for token in tokens:
            if token not in self.control:
                self.control[token] = self.added[token]
                new.append(added[self.added[token]])
                new[-1].special = True  # its other settings stay
        if new:
            self._tokenizer.add_special_tokens(new)

    def encode_template(self, text: str) -> np.ndarray:
        """Returns the ids of a template's text, int32 `[T]`, special tokens in it recognised: not for what users say."""
        self._tokenizer.encode_special_tokens = False
        try:
            return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
        finally:
            self._tokenizer.encode_special_tokens = True


def _is_words(token: str) -> bool:
    """Whether an added token is ordinary text: letters, digits and blanks, as a word or a long run of spaces is."""
    return all(unicodedata.category(character)[0] in "LMNZ" or character.isspace() for character in token)


def _stated_ends(folder: Path) -> list[int]:
    """The ids that the folder's settings state as ends of a text, those of the generation settings first.

    Raises:
      ValueError: one is not a token's id; the file and the value are named.
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
                raise ValueError(f"{name} has eos_token_id={stated!r}: give a token's id, or a list of them")
            ends.append(end)
    return ends


def _named_ends(folder: Path) -> list[str]:
    """The tokens that the tokenizer's settings name as the end of a text."""
    ends = [_settings(folder, name).get("eos_token") for name in ("tokenizer_config.json", "special_tokens_map.json")]
    ends = [end.get("content") if isinstance(end, dict) else end for end in ends]
    return [end for end in ends if isinstance(end, str)]


def _processor_template(folder: Path) -> str | None:
    """The template of `chat_template.json`, where the processors of vision-language models used to keep it."""
    template = _settings(folder, "chat_template.json").get("chat_template")
    return template if isinstance(template, str) else None


def _settings(folder: Path, name: str) -> dict[str, Any]:
    """A file's JSON object; nothing without the file."""
    file = folder / name
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name} must hold a JSON object")
    return content
