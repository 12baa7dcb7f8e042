"""Prompts for WebShop, modelled on those of published experiments."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stepreward.envs.choosing import choose
from stepreward.envs.parsing import labelled, tagged, write_labelled, write_tagged
from stepreward.envs.protocol import Observation, Prompt
from stepreward.envs.webshop.pages import parse, without_instruction

LONGEST = 13_000  # characters; a longer message drops its history, as in verl-agent
TURNS = 2  # turns of history

_FORM = """search[words] looks for products; you choose the words.
click[name] clicks something on the page; the name must be one of those that can be clicked."""

_REQUEST = """It is your turn to act.
First think step by step between <think> and </think> about which of these actions brings you closer to the purchase that is
asked for. Then write exactly one action between <action> and </action>."""

_SPA_RULES = f"""You are shopping in a web shop and follow an instruction.
Each turn you see the page and the actions that are possible on it, and you answer with one action:
{_FORM}
An action that is not possible changes nothing. Choose the words of a search with care.
Buying ends the task, so choose the options that the instruction names first.
Answer in this form:
Thought: what you think
Action: click[something]"""

_CHINESE = re.compile("[\u4e00-\u9fff]")


def _admissible(observation: Observation) -> str:
    return "\n".join(f"'{action}'," for action in observation.get("admissible", ()))


class CompactPrompt:
    """For tiny models: the observation alone, whose compact form includes the request; the answer is the bare action."""

    def first(self, observation: Observation) -> str:
        """The observation's text."""
        return observation["text"]

    def later(self, observation: Observation) -> str:
        """As `first`: every compact page repeats the request."""
        return observation["text"]

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """As `first`: the page shows what has been chosen, so it shows no history."""
        return observation["text"]

    def parse(self, text: str) -> str | None:
        """The stripped text in lower case if it is a search or a click; None otherwise."""
        action = text.strip().lower() if isinstance(text, str) else ""
        return action if action.endswith("]") and parse(action) else None

    def answer(self, action: str) -> str:
        """The action itself."""
        return action


class IStarPrompt:
    """The form of iStar and verl-agent: the task, the last two turns, the page, the possible actions; thoughts and action in tags.

    The page is shown without the instruction, its strings in quotes. A message of more than 13,000 characters drops its
    history. The paper counts an answer without thoughts, or with Chinese characters, as invalid, so `parse` returns None
    for it. The paper's code executes such an answer and only marks it as invalid; `require_think=False` does the same.
    """

    def __init__(self, require_think: bool = True):
        self.require_think = require_think

    def first(self, observation: Observation) -> str:
        """The task, the page, the admissible actions and the answer format."""
        return f"{self._opening(observation)}\n\n{self.later(observation)}"

    def later(self, observation: Observation) -> str:
        """The page, the admissible actions and the answer format."""
        return f"The page now: {self._page(observation)}\n\nYou can do:\n[\n{_admissible(observation)}\n]\n\n{_REQUEST}"

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """As `first`, with the last two turns of `history` before the page, unless the message would be too long."""
        message = f"{self._opening(observation)}\n\n{self._told(history)}{self.later(observation)}"
        return message if len(message) <= LONGEST else self.first(observation)

    def parse(self, text: str) -> str | None:
        """The text in the first action tags, in lower case; None without them, and for an invalid answer."""
        inside = tagged(text, require_think=self.require_think)
        if not inside or (self.require_think and _CHINESE.search(text)):
            return None
        return inside.lower()

    def answer(self, action: str) -> str:
        """A short thought and the action, in their tags."""
        return write_tagged(f"The next step to the product is {action}.", action)

    def _opening(self, observation: Observation) -> str:
        return f"You are an expert at shopping in the web shop WebShop.\nYour task: {observation.get('task', '')}"

    def _page(self, observation: Observation) -> str:
        return without_instruction(observation["text"], observation.get("task", ""))

    def _told(self, history: Sequence[tuple[Observation, str]]) -> str:
        turns = list(history)[-TURNS:]
        if not turns:
            return ""
        told = "\n\n".join(f"Page: {self._page(before)}\nYour action: {self.parse(output) or output}" for before, output in turns)
        return f"Your last turns, oldest first ({len(turns)}):\n\n{told}\n\n"


class SPAPrompt:
    """SPA-RL's form, without its worked example: rules, pages and full history; `Thought: …` and `Action: …` lines."""

    def first(self, observation: Observation) -> str:
        """The rules, followed by `later`."""
        return f"{_SPA_RULES}\n\n{self.later(observation)}"

    def later(self, observation: Observation) -> str:
        """The page and the admissible actions."""
        possible = ", ".join(observation.get("admissible", ()))
        return f"Observation:\n{observation['text']}\n\nPossible actions: {possible}"

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """The rules, the turns of `history`, and this page with its admissible actions."""
        told = "".join(f"Observation:\n{before['text']}\n{output.strip()}\n\n" for before, output in history)
        return f"{_SPA_RULES}\n\n{told}{self.later(observation)}"

    def parse(self, text: str) -> str | None:
        """The text after the first `Action:`, up to the end of its line; None without one."""
        return labelled(text)

    def answer(self, action: str) -> str:
        """A short thought and the action, on their labelled lines."""
        return write_labelled(f"The next step to the product is {action}.", action)


_PROMPTS = {"compact": CompactPrompt, "istar": IStarPrompt, "spa": SPAPrompt}


def prompts(name: str) -> Prompt:
    """Returns the prompt named compact, istar or spa. Raises ValueError for an unknown name, and lists the known ones."""
    return choose("WebShop prompt", name, _PROMPTS)()
