"""Forms of prompts that several environments share: how answers are written and read. An environment adds its words in a subclass."""

from __future__ import annotations

from collections.abc import Sequence

from stepreward.envs.parsing import labelled, tagged, write_labelled, write_tagged
from stepreward.envs.protocol import Observation


class CompactForm:
    """For tiny models: the task, the observation, and the last actions; the answer is the bare action."""

    def first(self, observation: Observation) -> str:
        """`task: …`, then the observation."""
        return self.window(observation, ())

    def later(self, observation: Observation) -> str:
        """The observation."""
        return observation["text"]

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """The task, the actions of `history` and the observation."""
        return f"task: {observation.get('task', '')}\n{done(history)}{observation['text']}"

    def parse(self, text: str) -> str | None:
        """The first line that is not blank; None without one."""
        if not isinstance(text, str):
            return None
        return next((line.strip() for line in text.splitlines() if line.strip()), None)

    def answer(self, action: str) -> str:
        """The action itself."""
        return action


class TaggedForm:
    """The form of iStar and verl-agent: thoughts in <think> tags, then the action in <action> tags. A subclass writes `later` and `window`.

    An answer without thoughts holds no action, unless `require_think` is False.
    """

    thought = "Next I should {action}."

    def __init__(self, require_think: bool = True):
        self.require_think = require_think

    def first(self, observation: Observation) -> str:
        """As `window`, without a history."""
        return self.window(observation, ())

    def parse(self, text: str) -> str | None:
        """The text in the first action tags, on one line; None without them, for a blank, or without <think> tags."""
        inside = tagged(text, require_think=self.require_think)
        return " ".join(inside.split()) or None if inside is not None else None

    def answer(self, action: str) -> str:
        """A short thought and the action, in their tags."""
        return write_tagged(self.thought.format(action=action), action)


class TurnsForm:
    """The form of ReAct: the full history as turns, answers in `Thought: …` and `Action: …` lines. A subclass writes `first`."""

    thought = "Next I should {action}."

    def later(self, observation: Observation) -> str:
        """`Observation: …`."""
        return f"Observation: {observation['text']}"

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """The opening of `first` with the turns of `history` and this observation, in one message."""
        turns = [before for before, _ in history] + [observation]
        text = self.first(turns[0])
        for (_, output), after in zip(history, turns[1:], strict=True):
            text += f"\n{output}\n{self.later(after)}"
        return text

    def parse(self, text: str) -> str | None:
        """The text after the first `Action:`, up to the end of its line; None without one."""
        return labelled(text)

    def answer(self, action: str) -> str:
        """A short thought and the action, on their labelled lines."""
        return write_labelled(self.thought.format(action=action), action)


def done(history: Sequence[tuple[Observation, str]]) -> str:
    """The line `done: …` with the actions of a history; "" without one."""
    return f"done: {'; '.join(' '.join(output.split()) for _, output in history)}\n" if history else ""
