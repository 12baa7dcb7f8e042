"""Prompts for ScienceWorld, modelled on those of published experiments."""

from __future__ import annotations

from collections.abc import Sequence

from stepreward.envs.choosing import choose
from stepreward.envs.forms import CompactForm, TaggedForm, TurnsForm
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


class IStarPrompt(TaggedForm):
    """verl-agent's form, which RLVMR and iStar use: rules, task, last turns, observation; think and action tags.

    An answer without thoughts holds no action, unless `require_think` is False.
    """

    request = _REQUEST

    def later(self, observation: Observation) -> str:
        """The observation and the answer format."""
        return f"You observe: {observation['text']}{_choices(observation)}\n\nIt is your turn. {self.request}"

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """As `first`, with the turns of `history` (two in verl-agent) before the observation."""
        told = "".join(f"\nObservation: {view['text']}\nYour action: {self.parse(output) or 'none'}" for view, output in history)
        past = f"Your last turns, oldest first ({len(history)}):{told}\n\n" if history else ""
        return f"{_WORLD}\n\nYour task: {_task(observation)}\n\n{past}{self.later(observation)}"


class TagsPrompt(TagsAnswers, IStarPrompt):
    """The form of RLVMR: the messages of `IStarPrompt`, which ask for a thought in tags that say its kind."""


class SpaPrompt(TurnsForm):
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


_PROMPTS = {
    "compact": CompactForm, "istar": IStarPrompt, "spa": SpaPrompt, "tags": TagsPrompt,
    "compact_tags": lambda: CompactTags(CompactForm()),
}  # fmt: skip


def prompts(name: str) -> Prompt:
    """Returns the prompt with a name of `_PROMPTS`. Raises ValueError for an unknown name, and lists the known ones."""
    return choose("ScienceWorld prompt", name, _PROMPTS)()
