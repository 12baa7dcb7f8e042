"""Conversations as tokens, in the format of a model's own chat template.

A template renders whole conversations, but a rollout needs what each turn adds. Both give the same text if the text splits as

    opening · user · request · answer · between · user · request · answer · between · …

where only the users' messages and the answers vary. The four fixed pieces are found by rendering conversations of known
words, and checked with other conversations; so this module names no model family. For Qwen2.5, the opening is the default
system message and `<|im_start|>user⏎`, the request is `<|im_end|>⏎<|im_start|>assistant⏎`, and `between` is
`<|im_end|>⏎<|im_start|>user⏎`. The model samples the first token of `between` itself, and never samples the line end after it.
The known words occur neither in the template nor in the system message, so the content of a conversation does not change
which pieces are found.

A message is tokenised together with the plain text around it, from one control token to the next, as the tokenizer does with a
whole conversation. So the tokens of all turns and answers, joined, are the tokens of the whole conversation, with three
exceptions. The tokens of an answer stay as they were sampled, even if the tokenizer would split the same text in another way.
What a template rewrites (`REWRITES`) stays as it was said. Text that spells a control token stays text.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from stepreward.models.pretrained_tokenizer import PretrainedCodec, load_pretrained_tokenizer
from stepreward.models.tokenizer import CHAT_TEMPLATE, IMAGE_TOKENS, Codec, load_tokenizer
from stepreward.rollout.chat import Chat, check_turn, cut_at_images
from stepreward.text import clean

# How a template may change an earlier turn of a conversation. A policy is trained on the turn as it saw and sampled it.
REWRITES = {
    "thoughts": "the <think> block of an earlier answer is left out",
    "request": "what the request adds before a new answer (an empty <think> block) is left out before an earlier one",
    "last_answer": "what stands before the last answer of a finished conversation is not the request that was sampled from",
    "blanks": "blanks at the ends of an answer are removed",
}
DATE = "26 Jul 2024"  # the date that the templates of Llama 3.1 and 3.2 show by default
# Texts that a template could change: capitals, runs of spaces, line ends, HTML, template syntax, and a long text.
_RICH = (
    "The RED Door,  3 m² Éß中",
    "a\r\nb\n\n\n\nc\td",
    "<b>&amp; 'x' \"y\"</b> {{ z }} {% q %} \\n",
    "Up, down. " * 3_000,
)
_TRIMS = (str, str.strip, str.lstrip, str.rstrip, lambda text: text.strip("\n"))  # how templates trim a message
_BLANKS = ("{}", " \n\t{} \n", "\n{}\n\n", "  {}  ", "<think>\nwhy\n</think>\n\n{}", "{{}}")
_USERS, _ANSWERS = ("first-question", "second-question", "third-question"), ("first-answer", "second-answer")
_SYSTEM = "the-rules"
_FORMS = 16  # how many chat formats are cached


def load_chat(
    folder: str | os.PathLike, system: str | None = None, enable_thinking: bool | None = None, date_string: str = DATE
) -> Chat | TemplateChat:
    """Loads the chat format of a tokenizer folder: `Chat` for a symbol tokenizer of the library, otherwise `TemplateChat`.

    Args:
      folder: a local folder.
      system: the system message; None: the template's default.
      enable_thinking: passed to the template (Qwen3); None: not passed.
      date_string: the date that a template shows; a constant, so that runs repeat.

    Raises:
      FileNotFoundError: there is no such folder, or no tokenizer in it.
      ValueError: the folder has no chat template, the template does not split into turns, or it ignores an option.
    """
    folder = Path(folder)
    if _is_symbol_tokenizer(folder):
        if system is not None or enable_thinking is not None:
            raise ValueError(f"{str(folder)!r} is a symbol tokenizer, which has no system message and no thinking mode.")
        return Chat(load_tokenizer(folder))
    codec = load_pretrained_tokenizer(folder)
    return TemplateChat(codec, system=system, enable_thinking=enable_thinking, date_string=date_string)


def load_codec(folder: str | os.PathLike) -> Codec:
    """Loads the tokenizer of a folder, without a chat format: a symbol tokenizer of the library, or a pretrained model's.

    Raises:
      FileNotFoundError: there is no such folder, or no tokenizer in it.
      ValueError: its files cannot be read as a tokenizer.
    """
    folder = Path(folder)
    return load_tokenizer(folder) if _is_symbol_tokenizer(folder) else load_pretrained_tokenizer(folder)


class _Turns:
    """A template's pieces around messages, as tokens.

    Args:
      codec: the tokenizer.
      form: the pieces.
      opening: the text before the first message, as `(text,)` or as `(before, system message, after)`.
    """

    def __init__(self, codec: PretrainedCodec, form: _Form, opening: tuple[str, ...]):
        self.codec = codec
        self._trim_user, self._trim_answer = form.trim_user, form.trim_answer
        self._first, self._later = _Lead(codec, opening), _Lead(codec, (form.after_end,))
        request = _pieces(form.request, codec.control)
        self._request_head, self._request = request[0], _ids(codec, ["", *request[1:]])
        self._end_id = codec.control[form.end]

    def user_turn(self, text: str, *, first: bool, closes_answer: bool = False, image_tokens: Sequence[int] | None = None) -> np.ndarray:
        """The tokens of a user message and of the beginning of the answer, see `Dialogue`.

        An image of n tokens is `<|vision_start|>`, n × `<|image_pad|>`, `<|vision_end|>`.
        """
        check_turn(first, closes_answer)
        lead = self._first if first else self._later
        parts = cut_at_images(self._trim_user(text), image_tokens)
        images = self._images(image_tokens or ())
        parts[0] = lead.tail + parts[0]
        parts[-1] += self._request_head
        pieces = [[self._end_id] if closes_answer else [], lead.ids, self.codec.encode(parts[0])]
        for image, part in zip(images, parts[1:], strict=True):
            pieces += [image, self.codec.encode(part)]
        return np.concatenate([np.asarray(piece, np.int32) for piece in (*pieces, self._request)])

    def noted(self, turn: np.ndarray, text: str) -> np.ndarray:
        """The tokens of a user turn with a text added to the end of the message, see `Dialogue`. The text is tokenised on its own."""
        request = len(self._request)
        if not request:
            raise ValueError(f"the chat template in {str(self.codec.folder)!r} ends a message with plain text: nothing can be added there.")
        return np.concatenate([turn[:-request], self.codec.encode(text), self._request]).astype(np.int32)

    def answer(self, text: str) -> np.ndarray:
        """The tokens of a whole answer with its end token, trimmed as the template trims it; for demonstrations."""
        return np.append(self.codec.encode(self._trim_answer(text)), np.int32(self._end_id)).astype(np.int32)

    def text(self, tokens: np.ndarray) -> str:
        """What the sampled tokens say, without special tokens. Never raises."""
        return self.codec.decode(tokens)

    def _images(self, counts: Sequence[int]) -> list[list[int]]:
        """The tokens of each image."""
        missing = [token for token in IMAGE_TOKENS if token not in self.codec.control]
        if counts and missing:
            folder = str(self.codec.folder)
            raise ValueError(f"the tokenizer in {folder!r} has no {', '.join(missing)}: its model sees no images.")
        start, pad, end = (self.codec.control.get(token) for token in IMAGE_TOKENS)
        return [[start, *[pad] * count, end] for count in counts]


class TemplateChat(_Turns):
    """The `Dialogue` of a pretrained model's chat template.

    Attributes:
      codec: the tokenizer.
      stop_ids: the token that ends an answer in the template, then the other end tokens of the model's settings. If an
        answer ends with one of the others, that token is kept, and the next turn follows it directly.
      rewrites_history: the keys of `REWRITES` that hold for this template: how the turns that are played differ from
        the template's rendering of the same conversation. Empty for Qwen2.5.

    Raises:
      ValueError: the folder has no chat template, the template does not split into turns, or it ignores an option.
    """

    def __init__(
        self,
        codec: PretrainedCodec,
        *,
        system: str | None = None,
        enable_thinking: bool | None = None,
        date_string: str = DATE,
    ):
        form, opening = _spoken(codec, None if system is None else clean(system), enable_thinking, date_string)
        super().__init__(codec, form, opening)
        self.rewrites_history = form.rewrites
        self.stop_ids = tuple(dict.fromkeys([self._end_id, *codec.eos_ids]))


# --- From a template to its pieces ---


@dataclasses.dataclass(frozen=True)
class _Form:
    """The fixed pieces of a template, as text.

    `between` is `end + after_end`. `said` is the text before an earlier answer, `marks` are the control tokens of every turn, and
    `words` are the messages that the pieces were found with.
    """

    opening: str
    request: str
    said: str
    end: str
    after_end: str
    trim_user: Callable[[str], str]
    trim_answer: Callable[[str], str]
    rewrites: tuple[str, ...]
    marks: frozenset[str]
    words: tuple[str, ...]

    def conversation(self, opening: str) -> str:
        """Two messages and the answer between them, with this opening."""
        first, second, _, answer, _ = self.words
        return opening + first + self.said + answer + self.end + self.after_end + second + self.request


class _Lead:
    """The text before a user message: ids up to the last control token, and the plain text after that token."""

    def __init__(self, codec: PretrainedCodec, text: tuple[str, ...]):
        pieces = _pieces(text[0], codec.control)
        if len(text) == 3:  # a system message is always plain text, and is tokenised with the plain text around it
            head, *others = _pieces(text[2], codec.control)
            pieces = [*pieces[:-1], pieces[-1] + text[1] + head, *others]
        self.ids, self.tail = _ids(codec, pieces[:-1]), pieces[-1]


def _pieces(text: str, tokens: Iterable[str]) -> list[str]:
    """Splits a text at tokens: plain, token, plain, …, plain. Plain pieces may be empty."""
    pattern = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    return re.split(f"({pattern})", text) if pattern else [text]


def _ids(codec: PretrainedCodec, pieces: Sequence[str]) -> np.ndarray:
    """The ids of the pieces that `_pieces` returns: plain, token, plain, …"""
    found = [[codec.control[piece]] if index % 2 else codec.encode(piece) for index, piece in enumerate(pieces)]
    return np.concatenate([np.zeros(0, np.int32), *(np.asarray(ids, np.int32) for ids in found)])


class _Unsplittable(Exception):
    """Why a template does not split into turns."""


def _spoken(codec: PretrainedCodec, system: str | None, enable_thinking: bool | None, date_string: str) -> tuple[_Form, tuple[str, ...]]:
    """A template's format, and the pieces of its opening with this system message.

    The format is found with a system message of known words, and cached. Then the real message replaces the known words, and the
    result must equal what the template renders. If it differs (some templates depend on the words of a system message), the format is
    found with the real message.
    """
    if system is None:
        form = _remembered(codec, None, enable_thinking, date_string)
        return form, (form.opening,)
    shown = repr(system if len(system) <= 80 else f"{system[:80]}…")
    told = ValueError(
        f"the chat template in {str(codec.folder)!r} does not show the system message {shown}, or the message holds special "
        "tokens: change it, or leave it out and tell the rules in the first user message."
    )
    if _pieces(system, codec.special)[1:]:
        raise told
    known = _free_word(codec, _SYSTEM)
    form = _remembered(codec, known, enable_thinking, date_string)
    before, shows, after = form.opening.partition(known)
    if not shows or known in after:
        raise told
    if _pieces(system, {*codec.special, *form.marks})[1:]:
        raise told
    render = _renderer(codec, system, enable_thinking, date_string)
    first, second, _, answer, _ = form.words
    whole = render(first, answer, second)
    for trim in _TRIMS:
        if whole == form.conversation(before + trim(system) + after):
            return form, (before, trim(system), after)
    form = _found(codec, system, enable_thinking, date_string)
    if _pieces(system, codec.control)[1:] or system.strip() not in form.opening:
        raise told
    return form, (form.opening,)


def _found(codec: PretrainedCodec, system: str | None, enable_thinking: bool | None, date_string: str) -> _Form:
    """Finds the format of a template with this system message, and checks it."""
    folder = repr(str(codec.folder))
    if not codec.has_template:
        raise ValueError(f"{folder} holds no chat template: take an instruction-tuned model, or add a chat_template.jinja.")
    render = _renderer(codec, system, enable_thinking, date_string)
    try:
        form = _split(codec, render, tuple(_free_word(codec, word, system or "") for word in (*_USERS, *_ANSWERS)))
    except Exception as error:  # a template may raise anything
        why = error if isinstance(error, _Unsplittable) else f"rendering failed ({type(error).__name__}: {_line(error)})"
        raise ValueError(
            f"the chat template in {folder} cannot be played turn by turn: {why}. Take a model with another template, or put a "
            "chat_template.jinja there whose turns only add text."
        ) from error
    if enable_thinking is not None and render(_USERS[0], enable_thinking=not enable_thinking) == render(_USERS[0]):
        raise ValueError(f"the chat template in {folder} has no thinking mode: leave enable_thinking unset.")
    codec.mark_special(sorted(form.marks))
    _check_tokens(codec, form, render)
    return form


_remembered = functools.lru_cache(maxsize=_FORMS)(_found)


def _renderer(codec: PretrainedCodec, system: str | None, enable_thinking: bool | None, date_string: str) -> Callable[..., str]:
    variables = {"date_string": date_string} | ({} if enable_thinking is None else {"enable_thinking": enable_thinking})
    start = [] if system is None else [{"role": "system", "content": system}]

    def render(*contents: str, **others) -> str:
        """Renders a conversation; if it ends with a user's message, a request for an answer follows."""
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
        return codec.render([*start, *turns], add_generation_prompt=len(contents) % 2 == 1, **(variables | others))

    return render


def _free_word(codec: PretrainedCodec, word: str, *texts: str) -> str:
    """The word, with a number appended if the template or one of the texts contains it."""
    taken = [codec.template, *texts]
    names = itertools.chain([word], (f"{word}-{n}" for n in itertools.count(2)))
    return next(name for name in names if not any(name in text for text in taken))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _split(codec: PretrainedCodec, render: Callable[..., str], words: tuple[str, ...]) -> _Form:
    u1, u2, u3, a1, a2 = words
    opening, request = _cut(render(u1), u1)
    before, said, between, asked = _cut(render(u1, a1, u2), u1, a1, u2)
    if before != opening or asked != request:
        raise _Unsplittable("it writes the first message or the last request otherwise when the conversation goes on")
    if not request.startswith(said):
        raise _Unsplittable("it puts other text before an earlier answer than before a new one")
    if _cut(render(u1, a1, u2, a2, u3), u1, a1, u2, a2, u3) != [opening, said, between, said, between, request]:
        raise _Unsplittable("it writes later turns otherwise than the second one")
    plain, *rest = _pieces(between, codec.added)
    if plain or not rest:
        raise _Unsplittable("an answer does not end with a token of its own")
    end, after_end = rest[0], "".join(rest[1:])
    _, _, _, last, ending = _cut(render(u1, a1, u2, a2), u1, a1, u2, a2)
    if not ending.startswith(end):
        raise _Unsplittable("the last answer does not end as the others do")

    trim_user = _trim(render, opening, request, (*_BLANKS, *_RICH))
    answered = lambda text: render(u1, text, u2)
    trim_answer = _trim(answered, opening + u1 + said, between + u2 + request, (*_BLANKS[:4], *_RICH))
    if trim_user is None or trim_answer is None:
        raise _Unsplittable("it changes the text of a message by more than its outer blanks")
    thinks = render(u1, f"<think>\nwhy-so\n</think>\n\n{a1}", u2)
    found = {
        "thoughts": "why-so" not in thinks,
        "request": said != request,
        "last_answer": last != request,
        "blanks": trim_answer is not str,
    }
    rewrites = tuple(name for name in REWRITES if found[name])
    marks = frozenset([*rest[::2], *_pieces(said, codec.added)[1::2]])
    return _Form(opening, request, said, end, after_end, trim_user, trim_answer, rewrites, marks, words)


def _cut(text: str, *words: str) -> list[str]:
    """The pieces around words, each of which must occur once, in this order."""
    pieces = []
    for word in words:
        piece, found, text = text.partition(word)
        if not found or word in text:
            raise _Unsplittable(f"it does not write every message once ({word!r} went missing or came twice)")
        pieces.append(piece)
    return [*pieces, text]


def _trim(render: Callable[[str], str], before: str, after: str, forms: Sequence[str]) -> Callable[[str], str] | None:
    """How the template trims a message; None if it changes messages in another way."""
    texts = ["", *(form.replace("{}", "word") for form in forms)]
    rendered = [render(text) for text in texts]
    return next((trim for trim in _TRIMS if rendered == [before + trim(text) + after for text in texts]), None)


def _check_tokens(codec: PretrainedCodec, form: _Form, render: Callable[..., str]) -> None:
    """Checks that turns have the tokens of the same text in one piece, also around unusual blanks.

    Raises:
      ValueError: they differ, as they do for a tokenizer that marks the beginning of a text.
    """
    chat = _Turns(codec, form, (form.opening,))
    for blanks in _BLANKS:
        text = blanks.replace("{}", "push the box, 12 times")
        if _pieces(text, codec.control)[1:]:
            continue  # a control token spelt in a message is text, but a token when the whole is tokenised
        whole = codec.encode_template(render(text))
        later = codec.encode_template(form.end + form.after_end + form.trim_user(text) + form.request)
        same = np.array_equal(whole, chat.user_turn(text, first=True))
        if not same or not np.array_equal(later, chat.user_turn(text, first=False, closes_answer=True)):
            raise ValueError(
                f"the tokenizer in {str(codec.folder)!r} cuts a conversation otherwise than its turns one by one, so its "
                "template cannot be played turn by turn: take a byte-level tokenizer such as Llama-3's or Qwen's."
            )


def _is_symbol_tokenizer(folder: Path) -> bool:
    file = folder / "tokenizer_config.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("chat_template") == CHAT_TEMPLATE
    except (OSError, ValueError, AttributeError):  # loading it will report what is wrong
        return False
