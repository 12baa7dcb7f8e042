"""The tokenizer of a pretrained model: a Hugging Face folder, with its chat template where it has one.

`tokenizer.json` is taken as it stands: the tokenizer classes of some model families rebuild parts of it from fixed settings, and
then disagree with a folder whose settings differ. No code from the folder is run. `transformers` takes seconds to import
and is loaded at the first call.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepreward.models.chat_template import FIXED_DATE
from stepreward.models.tokenizer import Codec

# Used as padding where a tokenizer names none; padding is masked, so any id would do.
_PADDING = ("<|finetune_right_pad_id|>", "<|endoftext|>")


def load_pretrained_tokenizer(path: str | os.PathLike) -> "PretrainedCodec":
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

    What counts as special is what the tokenizer itself marks so (`<|im_end|>`, `<|eot_id|>`), and `mark_special`; tokens that
    it adds as plain words (`<think>` of Qwen3) are read from text and shown in it.

    Attributes:
      folder: where it was loaded from.
      pad_id: token used as padding; where the tokenizer names none, its end of text.
      eos_ids: tokens that end a text: of `generation_config.json` where there is one, and of the tokenizer.
      special, added: token → id, of the special tokens and of all that were added to the trained vocabulary.
      vocab_size: one more than the largest id; a model's embedding may have more rows.
      has_template: whether there is a chat template.
    """

    def __init__(self, tokenizer, folder: Path):
        backend = tokenizer.backend_tokenizer
        added = backend.get_added_tokens_decoder()
        known = set(backend.get_vocab(with_added_tokens=True).values())
        vocab_size = max(known) + 1
        self.folder, self._pretrained = folder, tokenizer
        self.added = {token.content: index for index, token in added.items()}
        self.special = {token.content: index for index, token in added.items() if token.special}
        eos_id = tokenizer.eos_token_id
        self.eos_ids = tuple(dict.fromkeys([*_generation_ends(folder), *([] if eos_id is None else [eos_id])]))
        others = [self.special[token] for token in _PADDING if token in self.special]
        pad_id = next(i for i in [tokenizer.pad_token_id, *others, *self.eos_ids, 0] if i is not None)
        holes = set(range(vocab_size)) - known
        super().__init__(backend, pad_id, vocab_size, self.special.values(), holes, remembered=8_192)
        self.has_template = bool(tokenizer.chat_template)

    @property
    def template(self) -> str:
        """The source of the chat template."""
        return self._pretrained.get_chat_template()

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool, **variables: Any) -> str:
        """Returns the chat template of `messages` as text; raises what the template raises.

        Args:
          messages: mappings with `role` and `content`.
          add_generation_prompt: ends the text where the next answer begins.
          variables: what else the template may read; `date_string` stands for any date that it asks for.
        """
        template = self.template
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
        added = self._tokenizer.get_added_tokens_decoder()
        new = [added[self.added[token]] for token in tokens if token not in self.special]
        for token in new:  # its other settings stay
            self.special[token.content] = self.added[token.content]
            token.special = True
        if new:
            self._tokenizer.add_special_tokens(new)
        self._skipped = frozenset(self.special.values())
        self.forget()

    def encode_template(self, text: str) -> np.ndarray:
        """Returns the ids of a template's text, int32 `[T]`, special tokens in it recognised: not for what users say."""
        self._tokenizer.encode_special_tokens = False
        try:
            return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
        finally:
            self._tokenizer.encode_special_tokens = True


def _generation_ends(folder: Path) -> list[int]:
    """End tokens that the model's generation settings name, one id or several; none without the file."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return []
    ends = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    return [] if ends is None else [int(i) for i in (ends if isinstance(ends, list) else [ends])]
