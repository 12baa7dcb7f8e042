"""Prompts for ScienceWorld, modelled on those of published experiments."""

from __future__ import annotations

from collections.abc import Sequence

from stepreward.envs.choosing import choose
from stepreward.envs.parsing import labelled, tagged, write_labelled, write_tagged
from stepreward.envs.protocol import Observation, Prompt
from stepreward.envs.tags import CompactTags, TagsAnswers

_WORLD = """You do an experiment of elementary science in a simulated house, by one action a turn, and are told what comes of it.
These are the actions, where OBJ is a thing that you see, and LOC is a place:
open OBJ, close OBJ, activate OBJ, deactivate OBJ
connect OBJ to OBJ, disconnect OBJ: parts of an electric circuit
use OBJ, use OBJ on OBJ: a tool, such as a thermometer
look around, look at OBJ, look in OBJ, read OBJ
pick up OBJ, put down OBJ, move OBJ to OBJ
pour OBJ into OBJ, dunk OBJ into OBJ, mix OBJ: the contents of a container react
go to LOC, teleport to LOC: teleport works only in simplified tasks
eat OBJ, flush OBJ
focus on OBJ: shows that this is the object that the task asks for; a wrong one ends the task
wait: lets ten moments pass; wait1: lets one pass
inventory, task: what you hold; what you have to do
If an action could mean several things, you are asked for the number of one."""

_REQUEST = """First think step by step between <think> and </think>.
Then write exactly one action between <action> and </action>."""


def _task(observation: Observation) -> str:
    return observation.get("task", "")


def _choices(observation: Observation) -> str:
    if "admissible" not in observation:
        return ""
    return f"\nActions that are possible now: {', '.join(observation['admissible'])}"


class CompactPrompt:
    """For tiny models: the task, the observation, and the last actions; the answer is the bare action."""

    def first(self, observation: Observation) -> str:
        """`task: …`, then the observation."""
        return f"task: {_task(observation)}\n{observation['text']}"

    def later(self, observation: Observation) -> str:
        """The observation."""
        return observation["text"]

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """The task, the actions of `history` and the observation."""
        done = f"done: {'; '.join(' '.join(output.split()) for _, output in history)}\n" if history else ""
        return f"task: {_task(observation)}\n{done}{observation['text']}"

    def parse(self, text: str) -> str | None:
        """The first line that is not blank; None without one."""
        if not isinstance(text, str):
            return None
        return next((line.strip() for line in text.splitlines() if line.strip()), None)

    def answer(self, action: str) -> str:
        """The action itself."""
        return action


class IStarPrompt:
    """verl-agent's form, which RLVMR and iStar use: rules, task, last turns, observation; think and action tags.

    An answer without thoughts holds no action, unless `require_think` is False.
    """

    request = _REQUEST

    def __init__(self, require_think: bool = True):
        self.require_think = require_think

    def first(self, observation: Observation) -> str:
        """The rules, the task, the observation and the answer format."""
        return self.window(observation, ())

    def later(self, observation: Observation) -> str:
        """The observation and the answer format."""
        return f"You observe: {observation['text']}{_choices(observation)}\n\nIt is your turn. {self.request}"

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """As `first`, with the turns of `history` (two in verl-agent) before the observation."""
        told = "".join(f"\nObservation: {view['text']}\nYour action: {self.parse(output) or 'none'}" for view, output in history)
        past = f"Your last turns, oldest first ({len(history)}):{told}\n\n" if history else ""
        return f"{_WORLD}\n\nYour task: {_task(observation)}\n\n{past}{self.later(observation)}"

    def parse(self, text: str) -> str | None:
        """The text in the first action tags, on one line; None without them, for a blank, or without <think> tags."""
        inside = tagged(text, require_think=self.require_think)
        return " ".join(inside.split()) or None if inside is not None else None

    def answer(self, action: str) -> str:
        """A short thought and the action, in their tags."""
        return write_tagged(f"Next I should {action}.", action)


class TagsPrompt(TagsAnswers, IStarPrompt):
    """The form of RLVMR: the messages of `IStarPrompt`, which ask for a thought in tags that say its kind."""


class SpaPrompt:
    """The form of ReAct: the rules and the task, then the full history as turns; `Thought: …` and `Action: …` lines."""

    def first(self, observation: Observation) -> str:
        """The rules, the answer format, the task and the first observation."""
        return (
            f"{_WORLD}\n\nAnswer every turn in two lines:\nThought: what you conclude, and what to do next\nAction: one action\n\n"
            f"Your task: {_task(observation)}\n{self.later(observation)}"
        )

    def later(self, observation: Observation) -> str:
        """`Observation: …`."""
        return f"Observation: {observation['text']}{_choices(observation)}"

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
        return write_labelled(f"Next I should {action}.", action)


_PROMPTS = {
    "compact": CompactPrompt, "istar": IStarPrompt, "spa": SpaPrompt, "tags": TagsPrompt,
    "compact_tags": lambda: CompactTags(CompactPrompt()),
}  # fmt: skip


def prompts(name: str) -> Prompt:
    """Returns the prompt with a name of `_PROMPTS`. Raises ValueError for an unknown name, and lists the known ones."""
    return choose("ScienceWorld prompt", name, _PROMPTS)()
