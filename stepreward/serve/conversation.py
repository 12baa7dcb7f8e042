"""A client's messages as tokens, in the pieces that a rollout puts together."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Sequence

import numpy as np

from stepreward.rollout.chat import Dialogue

_REMEMBERED = 32  # chat forms, of as many system messages
_MOST_CHARACTERS = 2**24  # that a tokenizer may hold in memory: clients, unlike environments, seldom repeat themselves


class Conversations:
    """Tokenises conversations that a client sends as text.

    The history is what the turns of a rollout would be: earlier answers are followed by the end token, and nothing that a
    message says becomes a special token. Where a template rewrites the past (`TemplateChat.rewrites_history`), it stays as
    it was sent.

    Args:
      form: makes the chat form of a system message and a thinking mode; None is the model's own.

    Attributes:
      chat: the form without a system message of the client's.
    """

    def __init__(self, form: Callable[[str | None, bool | None], Dialogue]):
        self._form, self._lock = form, threading.Lock()
        self._forms: collections.OrderedDict[tuple[str | None, bool | None], Dialogue] = collections.OrderedDict()
        self._characters = 0
        self.chat = self._form_of(None, None)

    def prompt(self, messages: Sequence[tuple[str, str]], thinking: bool | None = None) -> np.ndarray:
        """The tokens up to where the next answer begins, int32 `[T]`.

        Args:
          messages: `(role, text)`: perhaps a `system` message, then `user` and `assistant` in turn, `user` first and last.
          thinking: what the template is told of its thinking mode.

        Raises:
          ValueError: the roles come in another order, or the template does not show such a system message or mode.
        """
        check_roles([role for role, _ in messages])
        system = messages[0][1] if messages[0][0] == "system" else None
        turns = messages[system is not None :]
        with self._lock:  # a tokenizer has settings that change for the length of a call
            self._characters += sum(len(text) for _, text in messages)
            if self._characters > _MOST_CHARACTERS:
                self.chat.codec.forget()
                self._characters = 0
            chat = self._form_of(system, thinking)
            pieces = [chat.user_turn(turns[0][1], first=True)]
            for (_, answer), (_, text) in zip(turns[1::2], turns[2::2], strict=True):
                pieces += [chat.answer(answer), chat.user_turn(text, first=False)]
        return np.concatenate(pieces)

    def _form_of(self, system: str | None, thinking: bool | None) -> Dialogue:
        key = system, thinking
        if key not in self._forms:
            self._forms[key] = self._form(system, thinking)
        self._forms.move_to_end(key)
        while len(self._forms) > _REMEMBERED:
            self._forms.popitem(last=False)
        return self._forms[key]


def check_roles(roles: Sequence[str]) -> None:
    """Raises ValueError unless it is `[system] user (assistant user)*`."""
    said = roles[1:] if roles and roles[0] == "system" else roles
    expected = ["user" if index % 2 == 0 else "assistant" for index in range(len(said))]
    if len(said) % 2 == 0 or list(said) != expected:
        raise ValueError(
            f"messages have the roles {', '.join(roles) or '(none)'}: give at most one system message first, then user and "
            "assistant in turn, with a user message at the end."
        )
