"""Prompts for ALFWorld: a compact one for small models, and the forms of verl-agent (iStar) and SPA-RL."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stepreward.envs.alfworld.explorer import TOOLS, asked_for
from stepreward.envs.alfworld.memory import Memory, kind, room_places
from stepreward.envs.choosing import choose
from stepreward.envs.forms import TaggedForm
from stepreward.envs.parsing import labelled, write_labelled
from stepreward.envs.protocol import Observation, Prompt
from stepreward.envs.tags import CompactTags, TagsAnswers

_REQUEST = """First think about the situation step by step between <think> and </think>.
Then choose one of the possible actions and write it between <action> and </action>."""

# Commands that CompactPrompt does not list: it lists the places separately, and the other commands reveal nothing new.
_GENERAL = ("go to ", "examine ", "help", "inventory", "look", "close ")
_OPTIONS = 6


class CompactPrompt:
    """For tiny models: a sorted summary of what the player knows instead of the dialogue; the answer is the bare command.

        task heat mug cabinet
        at countertop 1
        hold nothing
        found mug 1 on countertop 1
        left shelf 1 , microwave 1 , cabinet 1 , cabinet 2
        goal microwave 1 , cabinet 1 , cabinet 2
        did go to countertop 1
        see On the countertop 1, you see a fork 1, and a mug 1.
        can take fork 1 from countertop 1 , take mug 1 from countertop 1

    "task" gives the verb (put, two, clean, heat, cool, look), object and place, or the task's own words if they match no
    template. "found" lists the objects of the wanted types and where they were seen; "done" what was cleaned, heated or cooled;
    "left" the places not searched yet, surfaces first, then containers, by number; "goal" the places of the wanted type and
    those to clean, heat or cool with; "shut" the current place, if it is closed; "can" the possible commands other than going
    and looking, if there are at most six.
    The summary covers only the turns in the window, so give it all turns (rollout.history of at least max_steps).
    """

    def first(self, observation: Observation) -> str:
        """The task and the room."""
        return self.window(observation, ())

    def later(self, observation: Observation) -> str:
        """The game's answer."""
        return f"see {observation['text']}"

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """What the player knows after `history`, the last action and the game's answer."""
        views = [*(view for view, _ in history), observation]
        places = [place for view in views for place in room_places(view["text"])]
        for view in views:
            places += [one.removeprefix("go to ") for one in view.get("admissible", ()) if one.startswith("go to ")]
        memory = Memory(places)
        actions = [self.parse(output) for _, output in history]
        for action, view in zip(actions, views[1:], strict=True):
            memory.see(action or "", view["text"])
        task = observation.get("task") or _task_in(views[0]["text"])
        asked = asked_for(task)
        lines = [f"task {task}"]
        if asked is not None:
            verb = asked.change or ("look" if asked.lamp else "two" if asked.two else "put")
            lines = [f"task {verb} {asked.target} {asked.lamp or asked.parent}"]
        lines += [f"at {memory.at or 'start'}", f"hold {memory.held or 'nothing'}"]
        wanted = () if asked is None else (asked.target, asked.lamp)
        ends = () if asked is None else (asked.parent, TOOLS.get(asked.change))
        seen = [(thing, place) for place in memory.places for thing in memory.inside.get(place, ())]
        for name, items in (
            ("found", [f"{thing} on {place}" for thing, place in seen if kind(thing) in wanted]),
            ("done", sorted(memory.changed)),
            ("left", [place for place in memory.places if place not in memory.inside]),
            ("goal", [place for place in memory.places if kind(place) in ends]),
            ("shut", [memory.at] if memory.at in memory.shut else []),
        ):
            if items:
                lines.append(f"{name} {' , '.join(items)}")
        if history:
            lines += [f"did {actions[-1] or 'nothing'}", f"see {observation['text']}"]
            can = [one for one in observation.get("admissible", ()) if not one.startswith(_GENERAL)]
            if 0 < len(can) <= _OPTIONS:
                lines.append(f"can {' , '.join(can)}")
        return "\n".join(lines)

    def parse(self, text: str) -> str | None:
        """The first line of the stripped text, in lower case; None for a blank text."""
        if not isinstance(text, str):
            return None
        lines = text.strip().splitlines()
        return " ".join(lines[0].split()).lower() or None if lines else None

    def answer(self, action: str) -> str:
        """The action itself."""
        return action


class IStarPrompt(TaggedForm):
    """verl-agent's form, which iStar uses: task, number of turns, last turns, possible actions; thoughts and action in tags.

    An answer without thoughts holds no action, unless `require_think` is False.
    """

    request = _REQUEST

    def later(self, observation: Observation) -> str:
        """The observation, the possible actions and the answer format."""
        return f"What you see now: {observation['text']}\n{_choices(observation)}\nIt is your turn. {self.request}"

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """The task, the number of turns, the turns of `history` (two in verl-agent), the observation and the possible actions."""
        said = [_ROLE]
        if observation.get("task"):
            said.append(f"Your task is to: {observation['task']}")
        taken = observation.get("turn", 0)
        if taken:
            said.append(f"You have taken {taken} step{'s' if taken > 1 else ''} so far.")
        if history:
            said.append(f"Your last {len(history)} turns, oldest first:" if len(history) > 1 else "Your last turn:")
            for view, output in history:
                said.append(f"[Observation: {view['text']!r}, Action: {(self.parse(output) or 'none')!r}]")
        return "\n".join([*said, self.later(observation)])

    def parse(self, text: str) -> str | None:
        """The text between the first <action> and the next </action>, in lower case; None without it, or without <think> tags."""
        found = super().parse(text)
        return found.lower() if found is not None else None


class TagsPrompt(TagsAnswers, IStarPrompt):
    """The form of RLVMR: the messages of `IStarPrompt`, which ask for a thought in tags that say its kind."""


class SpaPrompt:
    """SPA-RL's form, after ETO and AgentGym: the rules, then the conversation; answers in `Thought:` and `Action:` lines."""

    def first(self, observation: Observation) -> str:
        """The rules and the first observation."""
        return f"{_RULES}\n\n{self.later(observation)}"

    def later(self, observation: Observation) -> str:
        """The observation."""
        return f"Observation: {observation['text']}"

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """The rules, the turns of `history` with the answers unchanged, and the observation."""
        told = [f"{self.later(view)}\n{output.strip() if isinstance(output, str) else ''}" for view, output in history]
        return "\n\n".join([_RULES, *told, self.later(observation)])

    def parse(self, text: str) -> str | None:
        """The text after the first `Action:`, up to the end of its line; None without one."""
        return labelled(text)

    def answer(self, action: str) -> str:
        """A short thought and the action, on their labelled lines."""
        return write_labelled(f"Next I should {action}.", action)


_ROLE = "You are an agent in a household that is described in text, and you act in it with one command at a time."
_RULES = """You are in a household and have a task to do in it, by one action a turn.
Each turn tells you what you see. Write what you think and what you do, in this form:
Thought: your thoughts.
Action: your next action

These are the actions:
1. go to {place}
2. take {thing} from {place}
3. put {thing} in/on {place}
4. open {place}
5. close {place}
6. use {thing}
7. clean {thing} with {place}
8. heat {thing} with {place}
9. cool {thing} with {place}
10. examine {thing or place}
11. look
12. inventory
where {thing} and {place} are names as you see them, with their numbers.

After an action you see at once what came of it. If you see "Nothing happens.", the action was not possible: try another one."""


def _choices(observation: Observation) -> str:
    listed = "\n".join(f" '{one}'" for one in observation.get("admissible", ()) if one != "help")
    return f"What you can do now: [{listed.strip()}]."


def _task_in(text: str) -> str:
    found = re.search(r"Your task is to: ([^\n]*)", text)
    return found[1] if found else ""


_PROMPTS = {
    "compact": CompactPrompt, "istar": IStarPrompt, "spa": SpaPrompt, "tags": TagsPrompt,
    "compact_tags": lambda: CompactTags(CompactPrompt()),
}  # fmt: skip


def prompts(name: str) -> Prompt:
    """Returns the prompt with a name of `_PROMPTS`. Raises ValueError for an unknown name, and lists the known ones."""
    return choose("ALFWorld prompt", name, _PROMPTS)()
