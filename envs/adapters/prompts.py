"""Prompts for any text environment. They show the environment's text unchanged."""

from __future__ import annotations

from collections.abc import Sequence

from stepreward.envs.choosing import choose
from stepreward.envs.parsing import labelled, tagged, write_labelled, write_tagged
from stepreward.envs.protocol import Observation, Prompt
from stepreward.envs.tags import CompactTags, TagsAnswers


class CompactPrompt:
    """For tiny models: the task, the turns of the window and the observation, with no other words; the answer is the bare action."""

    def first(self, observation: Observation) -> str:
        """The task, unless the observation begins with it, and the observation."""
        return "\n".join(_opening(observation))

    def later(self, observation: Observation) -> str:
        """The observation."""
        return observation["text"]

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """The task, the observation and answer of each turn of `history`, and the observation."""
        told = [line for before, answer in history for line in (before["text"], answer)]
        *task, now = _opening(observation, told)
        return "\n".join([*task, *told, now])

    def parse(self, text: str) -> str | None:
        """The stripped text; None when it is empty."""
        return (text.strip() or None) if isinstance(text, str) else None

    def answer(self, action: str) -> str:
        """The action itself."""
        return action


class TaggedPrompt:
    """The form of iStar and verl-agent: task, window and observation; the answer is `<think>…</think><action>…</action>`.

    An answer without thoughts holds no action, unless `require_think` is False.
    """

    request = "Think step by step between <think> and </think>, then write one action between <action> and </action>."

    def __init__(self, require_think: bool = True):
        self.require_think = require_think

    def first(self, observation: Observation) -> str:
        """The task, the observation and the answer format."""
        return self.window(observation, [])

    def later(self, observation: Observation) -> str:
        """The observation and the answer format."""
        return f"{observation['text']}\n\n{self._request(observation)}"

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """As `first`, with the turns of `history` before the observation."""
        turns = [f"Observation: {before['text']}\nYour answer: {answer}" for before, answer in history]
        told = [f"Your last turns, oldest first ({len(turns)}):", *turns] if turns else []
        *task, now = _opening(observation, told)
        return "\n\n".join([*task, *told, f"Now: {now}" if told else now, self._request(observation)])

    def parse(self, text: str) -> str | None:
        """The text in the action tags; None without them, without thoughts if required, or when it is empty."""
        return tagged(text, require_think=self.require_think) or None

    def answer(self, action: str) -> str:
        """A short thought and the action, in their tags."""
        return write_tagged(f"I go on with {action}.", action)

    def _request(self, observation: Observation) -> str:
        return _choices(observation) + self.request


class TagsPrompt(TagsAnswers, TaggedPrompt):
    """The form of RLVMR: the messages of `TaggedPrompt`, which ask for a thought in tags that say its kind."""


class LabelledPrompt:
    """The form of SPA and ReAct, with full history: the answer has a line `Thought: …` and a line `Action: …`."""

    def first(self, observation: Observation) -> str:
        """The form of the answer, the task and the observation."""
        form = "At each turn write a line 'Thought: ...' with your reasons, then a line 'Action: ...' with one action."
        return "\n\n".join([form, *_opening(observation), _choices(observation)]).strip()

    def later(self, observation: Observation) -> str:
        """The observation."""
        return f"Observation: {observation['text']}"

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """As `first`, with the turns of `history` before the observation."""
        turns = [f"Observation: {before['text']}\n{answer}" for before, answer in history]
        return "\n\n".join([self.first(observation), *turns, self.later(observation)] if turns else [self.first(observation)])

    def parse(self, text: str) -> str | None:
        """The text after the first `Action:`, up to the end of its line; None without one."""
        return labelled(text)

    def answer(self, action: str) -> str:
        """A short thought and the action, each on its labelled line."""
        return write_labelled(f"I go on with {action}.", action)


def _opening(observation: Observation, told: Sequence[str] = ()) -> list[str]:
    """The task and the observation; the observation alone when it, or the first turn in `told`, already states the task."""
    task, text = observation.get("task"), observation["text"]
    return [text] if not task or text.startswith(task) or (told and told[0] == task) else [task, text]


def _choices(observation: Observation) -> str:
    admissible = observation.get("admissible")
    return f"You can do one of: {', '.join(admissible)}.\n" if admissible else ""


_PROMPTS = {
    "compact": CompactPrompt, "istar": TaggedPrompt, "spa": LabelledPrompt, "tags": TagsPrompt,
    "compact_tags": lambda: CompactTags(CompactPrompt()),
}  # fmt: skip


def prompts(name: str) -> Prompt:
    """Returns the prompt with a name of `_PROMPTS`. Raises ValueError that lists the names for an unknown one."""
    return choose("prompt", name, _PROMPTS)()
