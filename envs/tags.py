"""Prompts whose answers say the kind of their thought, as RLVMR asks (arXiv 2507.22844).

* `TagsAnswers` turns a prompt with <think> and <action> into one with RLVMR's tags: `<explore>…</explore><action>go north</action>`.
* `CompactTags` does the same for a compact prompt of a tiny model: `<explore></explore>go north`.

`stepreward.envs.parsing.TAGS` has the kinds, and `tag_of` reads the kind of an answer. An answer with no kind, or with several, holds no
action.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from stepreward.envs.parsing import TAGS, tag_of
from stepreward.envs.protocol import Observation, Prompt

PLANNING, EXPLORE, REFLECTION, MONITOR = TAGS

REQUEST = """First write one thought, between the two tags that say its kind:
- <planning> and </planning>: how to do the task, step by step. Plan at the start, and when a plan has failed.
- <explore> and </explore>: what to try in order to find something new.
- <reflection> and </reflection>: why your last action failed, and how to do better.
- <monitor> and </monitor>: how far the task is done, and whether the next action follows the plan.
Use one kind only. Then write exactly one action between <action> and </action>."""

_THOUGHTS = {
    PLANNING: "I plan to begin with {}.",
    EXPLORE: "I try something new: {}.",
    REFLECTION: "My last action failed, so I go on with {}.",
    MONITOR: "I follow the plan and go on with {}.",
}


def kind_of(events: Sequence[Sequence[str]]) -> str:
    """Returns the tag that a demonstration's step gets.

    The first step is planning. A later step is reflection if the action before it failed, otherwise explore if it reaches a new state,
    otherwise monitor. So RLVMR's rules reward the tags of a won demonstration.

    Args:
      events: names of the events of each step of the episode up to this one (`protocol.EVENT_NAMES`).
    """
    if len(events) <= 1:
        return PLANNING
    if "error" in events[-2]:
        return REFLECTION
    return EXPLORE if "new_state" in events[-1] else MONITOR


class TagsAnswers:
    """A first base class for a prompt class; its second base has `require_think` and writes `self.request`."""

    request = REQUEST

    def __init__(self):
        super().__init__(require_think=False)

    def parse(self, text: str) -> str | None:
        """The action as the second base reads it; None unless the answer has tags of exactly one kind of thought."""
        return None if tag_of(text) is None else super().parse(text)

    def answer(self, action: str) -> str:
        """What an expert would write at the first step."""
        return self.answer_in(action, ())

    def answer_in(self, action: str, events: Sequence[Sequence[str]]) -> str:
        """A short thought in the tags of its kind (`kind_of`), and the action in its tags."""
        tag = kind_of(events)
        return f"<{tag}>{_THOUGHTS[tag].format(action)}</{tag}><action>{action}</action>"


class CompactTags:
    """A compact prompt for tiny models, whose answers begin with an empty pair of tags; messages are those of `prompt`.

    Args:
      prompt: a prompt whose answers are bare actions.
    """

    words = tuple(f"<{tag}></{tag}>" for tag in TAGS)

    def __init__(self, prompt: Prompt):
        self._prompt = prompt

    def first(self, observation: Observation) -> str:
        """The first message of `prompt`."""
        return self._prompt.first(observation)

    def later(self, observation: Observation) -> str:
        """A later message of `prompt`."""
        return self._prompt.later(observation)

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """The message of `prompt` with the answers of `history` without their tags."""
        return self._prompt.window(observation, [(before, _untagged(output)) for before, output in history])

    def parse(self, text: str) -> str | None:
        """The action after the tags; None unless the answer has tags of exactly one kind of thought."""
        return None if tag_of(text) is None else self._prompt.parse(_untagged(text))

    def answer(self, action: str) -> str:
        """What an expert would write at the first step."""
        return self.answer_in(action, ())

    def answer_in(self, action: str, events: Sequence[Sequence[str]]) -> str:
        """The empty tags of the kind of thought (`kind_of`), and the action."""
        tag = kind_of(events)
        return f"<{tag}></{tag}>{self._prompt.answer(action)}"


def _untagged(text: str) -> str:
    """Returns what follows the first pair of tags; the text itself unless it has tags of exactly one kind."""
    tag = tag_of(text)
    if tag is None:
        return text
    return re.split(f"<{tag}>.*?</{tag}>", text, maxsplit=1, flags=re.IGNORECASE | re.ASCII | re.DOTALL)[-1]
