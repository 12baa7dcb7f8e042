"""Encodes a client's messages as tokens, from the same pieces as a rollout."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Sequence

import numpy as np

from stepreward.rollout.chat import Dialogue

_REMEMBERED = 32  # chat forms to cache, one for each system message and thinking mode
_MOST_CHARACTERS = 2**24  # encoded before the tokenizer's cache is cleared: clients, unlike environments, seldom repeat texts


class TooLong(ValueError):
    """A message is too long for any conversation."""


class Conversations:
    """Encodes conversations that a client sends as text.

    The history is encoded like the turns of a rollout: earlier answers are followed by the end token, and text of a message never
    becomes a special token. If the model's template rewrites earlier turns (`TemplateChat.rewrites_history`), they are still encoded
    as the client sent them.

    Several threads may call `prompt` at once; encoding a long text does not block the others.

    Args:
      form: returns the chat form for a system message and a thinking mode; None for either means the model's own. It is called by
        one thread at a time, and must not change the tokenizer of forms that it returned before.

    Attributes:
      chat: the chat form with the model's own system message and thinking mode.
    """

    def __init__(self, form: Callable[[str | None, bool | None], Dialogue]):
        self._form, self._making = form, threading.Lock()
        self._lock = threading.Lock()  # guards the caches; never held for long
        self._forms: collections.OrderedDict[tuple[str | None, bool | None], Dialogue] = collections.OrderedDict()
        self._characters = 0
        self.chat = self._form_of(None, None)

    def most_characters(self, tokens: int) -> int:
        """An upper bound on the characters of `tokens` tokens: no token covers more characters than its own spelling has."""
        return tokens * self.chat.codec.longest_token

    def prompt(self, messages: Sequence[tuple[str, str]], thinking: bool | None = None, most: int | None = None) -> np.ndarray:
        """Returns the tokens up to where the next answer begins, int32 `[T]`.

        Args:
          messages: `(role, text)` pairs: an optional `system` message, then alternating `user` and `assistant` messages, with a
            `user` message first and last.
          thinking: the template's `enable_thinking`; None is the model's own setting.
          most: most tokens of a system message; None means no limit.

        Raises:
          TooLong: if the system message has more than `most` tokens.
          ValueError: if the roles are in another order, or the template does not support the system message or the thinking mode.
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
        if most is not None and system is not None:  # checked before making a form, which renders the template many times
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
                found = self._forms.get(key) or self._form(system, thinking)  # another thread may have made it in the meantime
        with self._lock:
            self._forms[key] = found
            self._forms.move_to_end(key)
            while len(self._forms) > _REMEMBERED:
                self._forms.popitem(last=False)
        return found


def check_roles(roles: Sequence[str]) -> None:
    """Raises ValueError unless the roles are `[system] user (assistant user)*`."""
    said = roles[1:] if roles and roles[0] == "system" else roles
    expected = ["user" if index % 2 == 0 else "assistant" for index in range(len(said))]
    if len(said) % 2 == 0 or list(said) != expected:
        raise ValueError(
            f"messages have the roles {', '.join(roles) or '(none)'}: give at most one system message, first, and then alternating "
            "user and assistant messages that begin and end with a user message."
        )
