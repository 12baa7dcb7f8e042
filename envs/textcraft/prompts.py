"""Prompts for TextCraft, modelled on those of published experiments."""

from __future__ import annotations

from collections.abc import Sequence

from stepreward.envs.choosing import choose
from stepreward.envs.forms import CompactForm, TaggedForm, TurnsForm, done
from stepreward.envs.parsing import tagged
from stepreward.envs.protocol import Observation, Prompt

_RULES = """You craft items as in Minecraft. You are given crafting commands and a goal, and you reach the goal step by step.
The actions are, in lower case:
1. get {number} {item}: takes an item from the world, if no command crafts it
2. craft {number} {item} using {number} {item}, {number} {item}: crafts by one of the commands, with exactly its numbers
3. inventory: lists what you hold
An ingredient may be a kind of item, such as planks; then use one item of that kind, such as oak planks.
You must hold all ingredients before you craft. You may use what you know of Minecraft, but not every command is needed."""

_REQUEST = "First think step by step between <think> and </think>, then write one action between <action> and </action>."


def _now(observation: Observation) -> str:
    """The observation, or nothing at the first turn of the benchmark's form, whose text is the task."""
    return "" if observation["text"] == observation.get("task") else observation["text"]


class CompactPrompt(CompactForm):
    """For tiny models: the goal and its recipes, then what is held; the answer is the bare action."""

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """The task, the actions of `history` and the observation."""
        return f"{observation.get('task', '')}\n{done(history)}{_now(observation)}".strip()

    def parse(self, text: str) -> str | None:
        """The first line that is not blank, in lower case; None without one."""
        found = super().parse(text)
        return found.lower() if found is not None else None


class IStarPrompt(TaggedForm):
    """verl-agent's form, which iStar uses: rules, task, last turns, observation, possible actions; think and action tags.

    As in the paper, an answer without thoughts holds no action. verl-agent shows the last two turns.
    """

    def later(self, observation: Observation) -> str:
        """The observation, the possible actions and the answer format."""
        said = [f"You observe: {_now(observation)}"] if _now(observation) else []
        if "admissible" in observation:
            listed = ", ".join(f"'{each}'" for each in observation["admissible"])
            said.append(f"Actions that can be done now, among others: [{listed}]")
        return "\n".join([*said, "", _REQUEST])

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """As `first`, with the turns of `history` before the observation."""
        told = "".join(f"\nObservation: {_now(before) or 'none'}\nYour answer: {output}" for before, output in history)
        past = f"Your last turns, oldest first ({len(history)}):{told}\n\n" if history else ""
        return f"{_RULES}\n\n{observation.get('task', '')}\n\n{past}{self.later(observation)}"

    def parse(self, text: str) -> str | None:
        """The text in the first action tags, in lower case; None without them, for a blank, or without <think> tags."""
        inside = tagged(text, require_think=self.require_think)
        return inside.lower() or None if inside is not None else None


class SpaPrompt(TurnsForm):
    """The form of ReAct and AgentPRM: the rules and the task, then the full history as turns; `Thought: …` and `Action: …` lines."""

    def first(self, observation: Observation) -> str:
        """The rules, the answer format, the task and, in the short form, what is held."""
        return (
            f"{_RULES}\n\nAnswer every turn in two lines:\nThought: what you conclude, and what to do next\nAction: one action\n\n"
            f"{observation.get('task', '')}\n{_now(observation)}"
        ).strip()

    def parse(self, text: str) -> str | None:
        """The text after the first `Action:`, up to the end of its line, in lower case; None without one."""
        found = super().parse(text)
        return found.lower() if found is not None else None


_PROMPTS = {"compact": CompactPrompt, "istar": IStarPrompt, "spa": SpaPrompt}


def prompts(name: str) -> Prompt:
    """Returns the prompt named compact, istar or spa. Raises ValueError for an unknown name, and lists the known ones."""
    return choose("TextCraft prompt", name, _PROMPTS)()
