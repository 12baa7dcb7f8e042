"""Prompts for Sokoban, modelled on those of published experiments."""

from __future__ import annotations

from collections.abc import Sequence

from stepreward.envs.choosing import choose
from stepreward.envs.parsing import tagged, write_tagged
from stepreward.envs.protocol import Observation, Prompt
from stepreward.envs.sokoban.core import ACTIONS
from stepreward.envs.tags import CompactTags, TagsAnswers

_RULES = """You are playing Sokoban: push every box onto a target.
You move one cell at a time: up, down, left or right.
When a box is in your way you push it one cell further, if the cell behind it is neither a wall nor another box.
You cannot pull a box, so a box in a corner is lost unless a target is there."""

_OPENING = f"""{_RULES}

Symbols of the board:
- # is a wall
- _ is free floor
- O is a target without a box
- X is a box
- √ is a box on a target
- P is you
- S is you, standing on a target"""

_CHOICES = f"You can do one of: {', '.join(ACTIONS)}."
_REQUEST = "First think step by step between <think> and </think>, then write exactly one action between <action> and </action>."

_IMAGE_TEXT = f"""{_RULES}

What the picture shows:
- brick cells are walls, sand-coloured cells are free floor
- a black cell with a red frame and a red diamond is a target
- a brown crate is a box, a crate with a green frame is a box on a target
- the green figure is you

The board now: <image>

{_CHOICES}
{_REQUEST}"""


def _told(history: Sequence[tuple[Observation, str]]) -> str:
    """Writes the turns of a window, followed by an empty line; returns an empty string when there are none."""
    if not history:
        return ""
    turns = "\n\n".join(f"Board:\n{before['text']}\nYour action: {action}" for before, action in history)
    return f"Your last turns, oldest first ({len(history)}):\n\n{turns}\n\n"


class CompactPrompt:
    """For tiny models: the inside of the board in reading order, one symbol a cell; the answer is the action's word alone."""

    def first(self, observation: Observation) -> str:
        """The board without its outer wall and without line breaks: (height − 2) · (width − 2) symbols."""
        return "".join(row[1:-1] for row in observation["text"].split("\n")[1:-1])

    def later(self, observation: Observation) -> str:
        """As `first`: every message is the whole board."""
        return self.first(observation)

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """As `first`: the board is the whole state, so it shows no history."""
        return self.first(observation)

    def parse(self, text: str) -> str | None:
        """The action if the stripped text is one of the four words, in upper or lower case; None otherwise."""
        if not isinstance(text, str):
            return None
        word = text.strip().lower()
        return word if word in ACTIONS else None

    def answer(self, action: str) -> str:
        """The action itself."""
        return action


class ShortPrompt(CompactPrompt):
    """For small language models: the inside of the board with a space before each symbol, so that each is a token; the answer is one word."""

    def first(self, observation: Observation) -> str:
        """The board without its outer wall, a line a row."""
        return "\n".join(" " + " ".join(row[1:-1]) for row in observation["text"].split("\n")[1:-1])


class CompactImagePrompt(CompactPrompt):
    """For tiny vision models: one `<image>` and no words; the answer is the action's word alone."""

    def first(self, observation: Observation) -> str:
        """The placeholder of the picture."""
        return "<image>"


class IStarPrompt:
    """The form of iStar and verl-agent for text rooms: rules, last turns, board; thoughts and action in tags.

    The paper counts an answer without thoughts as invalid, so `parse` returns None for it. The paper's code executes such an
    answer and only marks it as invalid; `require_think=False` does the same. If the action tags contain several of up, down,
    left and right, the first in this order counts, whatever their order in the text. verl-agent shows the last two turns.
    """

    request = _REQUEST

    def __init__(self, require_think: bool = True):
        self.require_think = require_think

    def first(self, observation: Observation) -> str:
        """The rules, the legend, the board and the answer format."""
        return f"{_OPENING}\n\n{self.later(observation)}"

    def later(self, observation: Observation) -> str:
        """The board and the answer format."""
        return f"The board now:\n{observation['text']}\n\n{_CHOICES}\n{self.request}"

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """The rules, the legend, the turns of `history`, the board and the answer format."""
        return f"{_OPENING}\n\n{_told(history)}{self.later(observation)}"

    def parse(self, text: str) -> str | None:
        """The action between the first <action> and the next </action>; None without them, or without <think> tags if required."""
        inside = tagged(text, require_think=self.require_think)
        return None if inside is None else next((action for action in ACTIONS if action in inside.lower()), None)

    def answer(self, action: str) -> str:
        """A short thought and the action, in their tags."""
        return write_tagged(f"The shortest way on is {action}.", action)


class TagsPrompt(TagsAnswers, IStarPrompt):
    """The form of RLVMR: the messages of `IStarPrompt`, which ask for a thought in tags that say its kind."""


class IStarImagePrompt(IStarPrompt):
    """iStar's form for pictures: the same text with one `<image>` at every step, without history."""

    def first(self, observation: Observation) -> str:
        """The constant text."""
        return _IMAGE_TEXT

    def later(self, observation: Observation) -> str:
        """The constant text."""
        return _IMAGE_TEXT

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """The constant text, without history."""
        return _IMAGE_TEXT


class RagenPrompt:
    """RAGEN's form with one action a turn: `<think>…</think><answer>Right</answer>`.

    RAGEN allows several actions in a turn (`Right || Up`). Here a turn is one step, so such an answer holds no action.
    """

    def first(self, observation: Observation) -> str:
        """The rules, the legend, the board and the answer format."""
        return f"{_OPENING}\n\n{self.later(observation)}"

    def later(self, observation: Observation) -> str:
        """The board and the answer format."""
        return (
            f"The board now:\n{observation['text']}\n\n"
            "Answer with one of Up, Down, Left, Right, like this: <think>your thoughts</think><answer>Right</answer>"
        )

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """The rules, the legend, the turns of `history`, the board and the answer format."""
        return f"{_OPENING}\n\n{_told(history)}{self.later(observation)}"

    def parse(self, text: str) -> str | None:
        """The word between the first <answer> and the next </answer> if it is an action, in upper or lower case; None otherwise."""
        word = (tagged(text, "answer", require_think=False) or "").lower()
        return word if word in ACTIONS else None

    def answer(self, action: str) -> str:
        """A short thought and the action, in their tags."""
        return write_tagged(f"The shortest way on is {action}.", action.capitalize(), "answer")


_PROMPTS = {
    "compact": CompactPrompt, "short": ShortPrompt, "istar": IStarPrompt, "istar_image": IStarImagePrompt, "compact_image": CompactImagePrompt,
    "ragen": RagenPrompt, "tags": TagsPrompt, "compact_tags": lambda: CompactTags(CompactPrompt()),
}  # fmt: skip


def prompts(name: str) -> Prompt:
    """Returns the prompt with a name of `_PROMPTS`. Raises ValueError for an unknown name, and lists the known ones."""
    return choose("Sokoban prompt", name, _PROMPTS)()
