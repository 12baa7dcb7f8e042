"""Prompts for VirtualHome, modelled on those of published experiments."""

from __future__ import annotations

from collections.abc import Sequence

from stepreward.envs.choosing import choose
from stepreward.envs.forms import CompactForm, TaggedForm, TurnsForm
from stepreward.envs.parsing import tagged
from stepreward.envs.protocol import Observation, Prompt
from stepreward.envs.virtualhome.actions import FORMS, write
from stepreward.envs.virtualhome.actions import Named as _Named

_WORLD = """You control a household robot in a home of several rooms and carry out one task, one action a turn.
After each action you are told what you are close to and what you hold.
An action that cannot be done changes nothing, and you are told: Nothing happens."""

_HINTS = """Go to things before you use them, open what is closed before you reach in, hold a thing before you put it anywhere.
You have two hands, and you must stand up before you walk on."""

_LIST = "\n".join(
    f"{number}. {write(verb, tuple(_Named(each) for each in ('{object}', '{place}')[: form.count('{}')]))}"
    for number, (verb, form) in enumerate(FORMS.items(), start=1)
)


def _task(observation: Observation) -> str:
    return observation.get("task", "")


class IStarPrompt(TaggedForm):
    """verl-agent's form, which iStar uses: rules, task, last turns, observation, admissible actions; think and action tags.

    As in the paper, an answer without thoughts holds no action. verl-agent shows the last two turns.
    """

    thought = "The next thing to do is to {action}."

    def later(self, observation: Observation) -> str:
        """The observation, the possible actions and the answer format."""
        return f"You observe: {observation['text']}\n{self._choices(observation)}\n\n{self._request()}"

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """As `first`, with the turns of `history` before the observation."""
        told = "".join(f"\nObservation: {before['text']}\nYour answer: {output}" for before, output in history)
        past = f"Your last turns, oldest first ({len(history)}):{told}\n\n" if history else ""
        return f"{_WORLD}\n{_HINTS}\n\nYour task: {_task(observation)}\n\n{past}{self.later(observation)}"

    def parse(self, text: str) -> str | None:
        """The text between the first <action> and the next </action>; None without them, for a blank, or without <think> tags."""
        return tagged(text, require_think=self.require_think) or None

    def _choices(self, observation: Observation) -> str:
        if "admissible" in observation:
            listed = ", ".join(f"'{each}'" for each in observation["admissible"])
            return f"Actions that can be done now, among others: [{listed}]"
        return f"The actions, with your objects for the braces:\n{_LIST}"

    def _request(self) -> str:
        return "First think step by step between <think> and </think>, then write one action between <action> and </action>."


class SpaPrompt(TurnsForm):
    """SPA-RL's form: an instruction with the 42 actions, then the full history as turns; `Thought: …` and `Action: …` lines.

    SPA-RL also shows a solved example before the task; this prompt does not.
    """

    thought = "The next thing to do is to {action}."

    def first(self, observation: Observation) -> str:
        """The instruction, the answer format, the task and the first observation."""
        return (
            f"{_WORLD}\n{_HINTS}\n\nThe actions, where {{object}} and {{place}} are things in the home:\n{_LIST}\n\n"
            "Answer every turn in two lines:\nThought: what you conclude, and what to do next\nAction: one action of the list\n\n"
            f"The task is {_task(observation)}.\nObservation: {observation['text']}"
        )


_PROMPTS = {"compact": CompactForm, "istar": IStarPrompt, "spa": SpaPrompt}


def prompts(name: str) -> Prompt:
    """Returns the prompt named compact, istar or spa. Raises ValueError for an unknown name, and lists the known ones."""
    return choose("VirtualHome prompt", name, _PROMPTS)()
