"""Prompts for conversations, used by the embedded world and by the package."""

from __future__ import annotations

from collections.abc import Sequence

from stepreward.envs.choosing import choose
from stepreward.envs.parsing import labelled, tagged, write_labelled, write_tagged
from stepreward.envs.protocol import Observation, Prompt

LEAVE = "left the conversation"

_RULES = f"""You take part in a conversation and play one of the two people in it. Speak as that person would, in character.
Pursue your private goal: the other person does not know it, nor your secret.
You say one thing a turn. When your goal is reached, or nothing more can be gained, you may write: {LEAVE}"""

_TAGS = f"""First reason about the talk between <think> and </think>; nobody hears that.
Then write what you say now, or {LEAVE}, between <action> and </action>."""

_LABELS = f"""Answer in two lines, like this:
Thought: what you think of the talk and what to do next
Action: what you say now, or {LEAVE}"""


def _told(observation: Observation) -> str:
    talk = observation.get("talk", (("They", observation["text"]),))
    return "\n".join(f"{who}: {words}" for who, words in talk if words)


def _turn(observation: Observation) -> str:
    if "turn" not in observation:
        return "It is your turn."
    return f"It is your turn, number {observation['turn']} of {observation['turns']}."


def _answerable(action: str | None) -> str | None:
    return action if action and action.strip() else None


class CompactPrompt:
    """For tiny models: the task and the conversation line by line; the answer is the bare utterance, such as `offer 45`."""

    def first(self, observation: Observation) -> str:
        """The task and the partner's words."""
        return f"{observation['task']}\n{observation['text']}" if observation.get("task") else observation["text"]

    def later(self, observation: Observation) -> str:
        """The partner's words."""
        return observation["text"]

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """The task and the conversation, the player's lines marked with `>`. It comes from the observation; `history` is ignored."""
        talk = observation.get("talk")
        if not talk:
            return self.first(observation)
        lines = "\n".join(f"> {words}" if who == observation.get("you") else words for who, words in talk)
        return f"{observation['task']}\n{lines}" if observation.get("task") else lines

    def parse(self, text: str) -> str | None:
        """The first line of the stripped text; None for a blank text."""
        return _answerable(text.strip().split("\n")[0].strip() if isinstance(text, str) else None)

    def answer(self, action: str) -> str:
        """The action itself."""
        return action


class IStarPrompt:
    """iStar's form (arXiv 2509.19199): role, private goal, conversation so far, turn; thoughts and utterance in tags.

    An answer without thoughts holds no action, unless `require_think=False`.
    """

    def __init__(self, require_think: bool = True):
        self.require_think = require_think

    def first(self, observation: Observation) -> str:
        """The rules, the role and goal, the conversation so far, and the answer format."""
        task = f"\n\n{observation['task']}" if observation.get("task") else ""
        talk = _told(observation)
        talk = f"\n\nThe conversation so far:\n{talk}" if talk else "\n\nYou open the conversation."
        return f"{_RULES}{task}{talk}\n\n{_turn(observation)}\n{_TAGS}"

    def later(self, observation: Observation) -> str:
        """The partner's words, the turn, and the answer format."""
        return f"The other person: {observation['text']}\n\n{_turn(observation)}\n{_TAGS}"

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """As `first`: the observation has the whole conversation; `history` is ignored."""
        return self.first(observation)

    def parse(self, text: str) -> str | None:
        """The text between the first <action> and the next </action>; None without it, for a blank, or without <think> tags."""
        return _answerable(tagged(text, require_think=self.require_think))

    def answer(self, action: str) -> str:
        """A short thought and the action, in their tags."""
        return write_tagged("What I say should bring me nearer to my goal.", action)


class SpaPrompt:
    """SPA-RL's form (arXiv 2505.20732): `Thought: …` and `Action: …` lines, with full history."""

    def first(self, observation: Observation) -> str:
        """The rules, the answer format, the role and goal, and the conversation so far."""
        task = f"\n\n{observation['task']}" if observation.get("task") else ""
        talk = _told(observation) or "You open the conversation."
        return f"{_RULES}\n{_LABELS}{task}\n\n{talk}"

    def later(self, observation: Observation) -> str:
        """The partner's words."""
        return f"Observation: {observation['text']}"

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """As `first`: the observation has the whole conversation; `history` is ignored."""
        return self.first(observation)

    def parse(self, text: str) -> str | None:
        """The text after the first `Action:`, up to the end of its line; None without one."""
        return _answerable(labelled(text))

    def answer(self, action: str) -> str:
        """A short thought and the action, on their labelled lines."""
        return write_labelled("What I say should bring me nearer to my goal.", action)


_PROMPTS = {"compact": CompactPrompt, "istar": IStarPrompt, "spa": SpaPrompt}


def prompts(name: str) -> Prompt:
    """Returns the prompt named compact, istar or spa. Raises ValueError for an unknown name, and lists the known ones."""
    return choose("SOTOPIA prompt", name, _PROMPTS)()
