"""The words around a Sokoban environment, after the experiments that used them."""

from __future__ import annotations

from collections.abc import Sequence

from stepreward.envs.choosing import choose
from stepreward.envs.parsing import tagged, write_tagged
from stepreward.envs.protocol import Observation, Prompt
from stepreward.envs.sokoban.core import ACTIONS

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

_REQUEST = f"""You can do one of: {", ".join(ACTIONS)}.
First think step by step between <think> and </think>, then write exactly one action between <action> and </action>."""

_IMAGE_TEXT = f"""{_RULES}

What the picture shows:
- brick cells are walls, sand-coloured cells are free floor
- a black cell with a red frame and a red diamond is a target
- a brown crate is a box, a crate with a green frame is a box on a target
- the green figure is you

The board now: <image>

{_REQUEST}"""


def _told(history: Sequence[tuple[Observation, str]]) -> str:
    """The turns of a window as text, with an empty line after them; nothing for no turns."""
    if not history:
        return ""
    turns = "\n\n".join(f"Board:\n{before['text']}\nYour action: {action}" for before, action in history)
    return f"Your last turns, oldest first ({len(history)}):\n\n{turns}\n\n"


class CompactPrompt:
    """For tiny models: the inside of the board in reading order, one symbol a cell; the answer is the bare word."""

    def first(self, observation: Observation) -> str:
        """The board without its outer wall and without line ends: (height − 2) · (width − 2) symbols."""
        return "".join(row[1:-1] for row in observation["text"].split("\n")[1:-1])

    def later(self, observation: Observation) -> str:
        """As `first`: every message is the whole board."""
        return self.first(observation)

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """As `first`: the board is all there is to know, so no history is told."""
        return self.first(observation)

    def parse(self, text: str) -> str | None:
        """The action when the stripped text is one of the four words, in any case; None otherwise."""
        if not isinstance(text, str):
            return None
        word = text.strip().lower()
        return word if word in ACTIONS else None

    def answer(self, action: str) -> str:
        """The action itself."""
        return action


class CompactImagePrompt(CompactPrompt):
    """For tiny models that see: one `<image>` and not a word; the answer is the bare word."""

    def first(self, observation: Observation) -> str:
        """The place of the picture."""
        return "<image>"


class IStarPrompt:
    """iStar's and verl-agent's form for text rooms: rules, the last turns, the board, thoughts and action in tags.

    The paper counts an answer without thoughts as invalid, so `parse` gives None for it; its release executes it all
    the same and only marks it as invalid: `require_think=False` executes it. In both, the first of up, down, left and
    right (in this order, not in that of the text) that the action tags contain is taken. verl-agent tells the last
    two turns.
    """

    def __init__(self, require_think: bool = True):
        self.require_think = require_think

    def first(self, observation: Observation) -> str:
        """The rules, the legend, the board and the form of the answer."""
        return f"{_OPENING}\n\n{self.later(observation)}"

    def later(self, observation: Observation) -> str:
        """The board and the form of the answer."""
        return f"The board now:\n{observation['text']}\n\n{_REQUEST}"

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """The rules, the legend, the turns of `history`, the board and the form of the answer."""
        return f"{_OPENING}\n\n{_told(history)}{self.later(observation)}"

    def parse(self, text: str) -> str | None:
        """The action between the first <action> and </action>; None without them, or without <think> tags."""
        inside = tagged(text, require_think=self.require_think)
        return None if inside is None else next((action for action in ACTIONS if action in inside.lower()), None)

    def answer(self, action: str) -> str:
        """The action in its tags, after a short thought."""
        return write_tagged(f"The shortest way on is {action}.", action)


class IStarImagePrompt(IStarPrompt):
    """iStar's form for pictures: the same words at every step with one `<image>` in them, and no history."""

    def first(self, observation: Observation) -> str:
        """The constant text."""
        return _IMAGE_TEXT

    def later(self, observation: Observation) -> str:
        """The constant text."""
        return _IMAGE_TEXT

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """The constant text: no history is told."""
        return _IMAGE_TEXT


class RagenPrompt:
    """RAGEN's form with one action a turn: `<think>…</think><answer>Right</answer>`.

    RAGEN lets a turn hold several actions (`Right || Up`). Here a turn is one step, so such an answer holds no action.
    """

    def first(self, observation: Observation) -> str:
        """The rules, the legend, the board and the form of the answer."""
        return f"{_OPENING}\n\n{self.later(observation)}"

    def later(self, observation: Observation) -> str:
        """The board and the form of the answer."""
        return (
            f"The board now:\n{observation['text']}\n\n"
            "Answer with one of Up, Down, Left, Right, like this: <think>your thoughts</think><answer>Right</answer>"
        )

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """The rules, the legend, the turns of `history`, the board and the form of the answer."""
        return f"{_OPENING}\n\n{_told(history)}{self.later(observation)}"

    def parse(self, text: str) -> str | None:
        """The word between the first <answer> and </answer> when it is an action, in any case; None otherwise."""
        word = (tagged(text, "answer", require_think=False) or "").lower()
        return word if word in ACTIONS else None

    def answer(self, action: str) -> str:
        """The action in its tags, after a short thought."""
        return write_tagged(f"The shortest way on is {action}.", action.capitalize(), "answer")


_PROMPTS = {
    "compact": CompactPrompt, "istar": IStarPrompt, "istar_image": IStarImagePrompt, "compact_image": CompactImagePrompt,
    "ragen": RagenPrompt,
}  # fmt: skip


def prompts(name: str) -> Prompt:
    """The prompt of a name: compact, istar, istar_image, compact_image or ragen. Raises ValueError that lists them when unknown."""
    return choose("Sokoban prompt", name, _PROMPTS)()
