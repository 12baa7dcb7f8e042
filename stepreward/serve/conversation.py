"""A client's messages as tokens, in the pieces that a rollout puts together."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Sequence

import numpy as np

from stepreward.rollout.chat import Dialogue

_REMEMBERED = 32  # chat forms, of as many system messages
_MOST_CHARACTERS = 2**24  # that a tokenizer may hold in memory: clients, unlike environments, seldom repeat themselves


class TooLong(ValueError):
    """A message that fits no conversation."""


class Conversations:
    """Tokenises conversations that a client sends as text.

    The history is what the turns of a rollout would be: earlier answers are followed by the end token, and nothing that a
    message says becomes a special token. Where a template rewrites the past (`TemplateChat.rewrites_history`), it stays as
    it was sent.

    Several threads may ask at once. Tokenising, which takes as long as the text is long, holds up none of the others.

    Args:
      form: makes the chat form of a system message and a thinking mode; None is the model's own. It is called by one thread at a
        time, and must leave the tokenizer of the forms that it made as it is.

    Attributes:
      chat: the form without a system message of the client's.
    """

    def __init__(self, form: Callable[[str | None, bool | None], Dialogue]):
        self._form, self._making = form, threading.Lock()
        self._lock = threading.Lock()  # of what is remembered; never held for long
        self._forms: collections.OrderedDict[tuple[str | None, bool | None], Dialogue] = collections.OrderedDict()
        self._characters = 0
        self.chat = self._form_of(None, None)

    def most_characters(self, tokens: int) -> int:
        """How many characters a conversation of so many tokens has at most: no token stands for more than its own spelling."""
        return tokens * self.chat.codec.longest_token

    def prompt(self, messages: Sequence[tuple[str, str]], thinking: bool | None = None, most: int | None = None) -> np.ndarray:
        """The tokens up to where the next answer begins, int32 `[T]`.

        Args:
          messages: `(role, text)`: perhaps a `system` message, then `user` and `assistant` in turn, `user` first and last.
          thinking: what the template is told of its thinking mode.
          most: tokens that a system message may have; None: any number.

        Raises:
          TooLong: the system message has more.
          ValueError: the roles come in another order, or the template does not show such a system message or mode.
        """
        check_roles([role for role, _ in messages])
        system = messages[0][1] if messages[0][0] == "system" else None
        turns = messages[system is not None :]
        with self._lock:
            self._characters += sum(len(text) for _, text in messages)
            forget = self._characters > _MOST_CHARACTERS
            self._characters = 0 if forget else self._characters
        if forget:
            self.chat.codec.forget()
        if most is not None and system is not None:  # before a template is rendered with it, many times over
            count = len(self.chat.codec.encode(system))
            if count > most:
                raise TooLong(f"the system message has {count} tokens")
        chat = self._form_of(system, thinking)
        pieces = [chat.user_turn(turns[0][1], first=True)]
        for (_, answer), (_, text) in zip(turns[1::2], turns[2::2], strict=True):
            pieces += [chat.answer(answer), chat.user_turn(text, first=False)]
        return np.concatenate(pieces)

    def _form_of(self, system: str | None, thinking: bool | None) -> Dialogue:
        key = system, thinking
        found = self._forms.get(key)
        if found is None:
            with self._making:
                found = self._forms.get(key) or self._form(system, thinking)  # another thread may have made it meanwhile
        with self._lock:
            self._forms[key] = found
            self._forms.move_to_end(key)
            while len(self._forms) > _REMEMBERED:
                self._forms.popitem(last=False)
        return found


def check_roles(roles: Sequence[str]) -> None:
    """Raises ValueError unless it is `[system] user (assistant user)*`."""
    said = roles[1:] if roles and roles[0] == "system" else roles
    expected = ["user" if index % 2 == 0 else "assistant" for index in range(len(said))]
    if len(said) % 2 == 0 or list(said) != expected:
        raise ValueError(
            f"messages have the roles {', '.join(roles) or '(none)'}: give at most one system message first, then user and "
            "assistant in turn, with a user message at the end."
        )
