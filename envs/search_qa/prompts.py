"""Prompts for Search QA: the tags, tool calls and answer formats of published experiments, in our own words.

All of them read the first turn in the model's output and ignore the rest. Each also has `reference(answer)`, which returns what a model
writes before an answer, and the answer as it writes it: `lead + answer` begins what `answer("answer[…]")` returns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from stepreward.envs.choosing import choose
from stepreward.envs.parsing import between, labelled, write_labelled
from stepreward.envs.protocol import Observation, Prompt
from stepreward.envs.search_qa.actions import ANSWER, SEARCH, parse, write

# An opening tag, and the text up to the first closing tag of either kind, or up to the end.
_TURN = re.compile(r"<(search|answer)>(.*?)(?:</(search|answer)>|\Z)", re.IGNORECASE | re.DOTALL)


def _tagged_action(text: str, closed: bool = True) -> str | None:
    """Returns the action in the first pair of search or answer tags; with `closed=False`, the end of the text also closes a tag."""
    found = _TURN.search(text) if isinstance(text, str) else None
    if found is None or (closed if found[3] is None else found[3].lower() != found[1].lower()):
        return None
    words = found[2].strip()
    return write(found[1].lower(), words) if words else None


class _TaggedPrompt:
    """What the prompts with tags share. `opening`, `closing`: the tags around documents; `gap`: what stands before an answer's words."""

    rules = ""
    reminder = ""
    opening, closing = "<information>", "</information>"
    gap = ""
    search_thought, answer_thought = "I need to look this up.", "The documents are enough to answer."

    def first(self, observation: Observation) -> str:
        """The rules and the question."""
        return f"{self.rules}\nQuestion: {observation['task']}\n"

    def later(self, observation: Observation) -> str:
        """The documents in their tags, or a reminder of the format after an invalid turn."""
        if observation.get("kind") == "invalid":
            return f"\n{self.reminder}\n"
        return f"\n\n{self.opening}{observation['text']}{self.closing}\n\n"

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """The rules, the question, the turns of `history`, and what the last of them brought."""
        turns = [(self.later(view) if view.get("kind") != "question" else "") + output for view, output in history]
        now = "" if observation.get("kind") == "question" else self.later(observation)
        return f"{self.first(observation)}{''.join(turns)}{now}"

    def parse(self, text: str) -> str | None:
        """The action in the first pair of tags; None without one."""
        return _tagged_action(text)

    def answer(self, action: str) -> str:
        """A thought and the action, in their tags."""
        kind, words = parse(action) or (None, action)
        if kind == ANSWER:
            return self._answer_lead() + self.gap + words + self._answer_end()
        return f"<think>{self.search_thought}</think>\n{self._search(words)}" if kind else action

    def reference(self, answer: str) -> tuple[str, str]:
        """(what a model writes before an answer, the answer)."""
        return self._answer_lead(), self.gap + answer  # a space belongs to the word after it, as in tokenizers

    def _search(self, query: str) -> str:
        return f"<search> {query} </search>"

    def _answer_lead(self) -> str:
        return f"<think>{self.answer_thought}</think>\n<answer>"

    def _answer_end(self) -> str:
        return " </answer>"


class CompactPrompt:
    """For tiny models: the question, then what each turn brings. An answer is an opening tag and words; a closing tag may be left out."""

    def first(self, observation: Observation) -> str:
        """The question, with a space before it, so that a name in it has the same tokens as elsewhere."""
        return f" {observation['task']}"

    def later(self, observation: Observation) -> str:
        """The observation's text, with a space before it."""
        return f" {observation['text']}"

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """The question, the turns of `history`, and the observation."""
        told = [part for view, output in history for part in (*self._shown(view), output)]
        return "\n".join([self.first(observation), *told, *self._shown(observation)])

    def parse(self, text: str) -> str | None:
        """The action after the first tag; None without one."""
        return _tagged_action(text, closed=False)

    def answer(self, action: str) -> str:
        """The action's tag and its words, with a space between them."""
        kind, words = parse(action) or (None, action)
        return f"<{kind}> {words}" if kind else action

    def reference(self, answer: str) -> tuple[str, str]:
        """(the tag, a space and the answer)."""
        return f"<{ANSWER}>", f" {answer}"

    def _shown(self, view: Observation) -> list[str]:
        return [] if view.get("kind") == "question" else [self.later(view)]


class SearchR1Prompt(_TaggedPrompt):
    """Search-R1's form: `<think>`, `<search>`, `<answer>`; documents come back between `<information>` tags."""

    gap = " "
    rules = """Answer the question below.
Whenever you get new information, first reason between <think> and </think>.
If you lack some knowledge, call the search engine with <search> your query </search>. Its best results then come back between
<information> and </information>. You may search as often as you want.
Once you need nothing more, write only the answer between <answer> and </answer>, for example <answer> Oslo </answer>."""
    reminder = """My last turn was not valid. To search, I put the query between <search> and </search>. To answer, I put the answer between
<answer> and </answer>. I try again."""


class IStarPrompt(SearchR1Prompt):
    """The form of verl-agent's search environment: Search-R1's tags; thoughts are required, and a turn with both actions is invalid."""

    def parse(self, text: str) -> str | None:
        """The action in its tags; None without one, without thoughts, and with both kinds of tags."""
        if between(text, "think") is None or (between(text, SEARCH) is not None and between(text, ANSWER) is not None):
            return None
        return _tagged_action(text)


class IGPOPrompt(_TaggedPrompt):
    """IGPO's form: thoughts, then a tool call in JSON between `<tool_call>` tags, or the answer between `<answer>` tags.

    A call may have a list of queries, which are searched as one text.
    """

    opening, closing = "<tool_response>\n", "\n</tool_response>"
    answer_thought = "Now there is enough information to answer."
    rules = """You are an assistant for research: you answer a question with the help of a search tool.
Each turn, first reason between <think> and </think>. Then either call the tool:
<tool_call>
{"name": "search", "arguments": {"query": ["what you look for"]}}
</tool_call>
or, once you know enough, give the final answer, short and without explanation, between <answer> and </answer>.
Results of the tool come back between <tool_response> and </tool_response>."""
    reminder = "That turn had neither a readable tool call nor an answer. Write one of them in the format that the rules describe."

    def parse(self, text: str) -> str | None:
        """The search of the first tool call, or the answer if it comes first; None without a readable one."""
        if not isinstance(text, str):
            return None
        call = text.lower().find("<tool_call>")
        answered = text.lower().find("<answer>")
        if call < 0 or 0 <= answered < call:
            return _tagged_action(text[answered:]) if answered >= 0 else None
        try:
            read = json.loads(between(text, "tool_call") or "")
            query = read["arguments"]["query"] if read["name"] == SEARCH else None
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        queries = query if isinstance(query, list) else [query]
        if not all(isinstance(one, str) for one in queries):
            return None
        words = " ".join(queries).strip()
        return write(SEARCH, words) if words else None

    def _search(self, query: str) -> str:
        call = json.dumps({"name": SEARCH, "arguments": {"query": [query]}}, ensure_ascii=False)
        call = call.replace("</", "<\\/")  # a tag in the query must not close the call
        return f"<tool_call>\n{call}\n</tool_call>"

    def _answer_lead(self) -> str:
        return f"<think>{self.answer_thought}</think>\n<answer>\n"

    def _answer_end(self) -> str:
        return "\n</answer>"


class ARPOPrompt(_TaggedPrompt):
    """ARPO's form: Search-R1's tags with `<result>` around documents; the answer stands in a LaTeX box within its tags."""

    opening, closing = "<result>\n", "\n</result>"
    rules = r"""You are a helpful assistant that answers a question step by step with the help of a search tool.
Reason between <think> and </think>. To use the tool, write a query between <search> and </search>; its results come back between <result>
and </result>. You may use it several times.
When you are done, write the answer between <answer> and </answer>, and put its exact words into \boxed{}, for example
<answer> The capital is \boxed{Oslo} </answer>."""
    reminder = r"That turn had neither a query in <search> tags nor an answer in <answer> tags with \boxed{}. I try again."

    def parse(self, text: str) -> str | None:
        r"""The action in the first pair of tags, of an answer the content of its last \boxed{}; None without one."""
        kind, words = parse(_tagged_action(text)) or (None, "")
        if kind != ANSWER:
            return write(kind, words) if kind else None
        boxed = _boxed(words)
        return write(ANSWER, boxed) if boxed else None

    def _answer_lead(self) -> str:
        return f"<think>{self.answer_thought}</think>\n<answer> \\boxed{{"

    def _answer_end(self) -> str:
        return "} </answer>"


class SPAPrompt(_TaggedPrompt):
    """SPA-RL's form, with ReAct's actions: `Thought: …` and `Action: search[…]` or `Action: answer[…]`."""

    rules = """You answer a question with the help of a search engine. Each turn you write one action:
search[words] finds documents.
answer[words] gives the final answer, in a few words, and ends the task.
Answer in this form:
Thought: what you think
Action: search[something]"""
    opening, closing = "Observation:\n", ""

    def first(self, observation: Observation) -> str:
        """The rules and the question."""
        return f"{self.rules}\n\nQuestion: {observation['task']}"

    def later(self, observation: Observation) -> str:
        """What the last action brought."""
        return f"Observation:\n{observation['text']}"

    def window(self, observation: Observation, history: Sequence[tuple[Observation, str]]) -> str:
        """The rules, the question, the turns of `history`, and what the last of them brought."""
        told = [part for view, output in history for part in (*self._shown(view), output.strip())]
        return "\n\n".join([self.first(observation), *told, *self._shown(observation)])

    def parse(self, text: str) -> str | None:
        """The action on the first line that is labelled `Action:`; None if it is no search and no answer."""
        action = labelled(text)
        return action if parse(action) else None

    def answer(self, action: str) -> str:
        """A short thought and the action, on their labelled lines."""
        kind = (parse(action) or (None,))[0]
        return write_labelled(self.answer_thought if kind == ANSWER else self.search_thought, action)

    def _answer_lead(self) -> str:
        return write_labelled(self.answer_thought, f"{ANSWER}[")

    def _shown(self, view: Observation) -> list[str]:
        return [] if view.get("kind") == "question" else [self.later(view)]


def _boxed(text: str) -> str | None:
    r"""Returns the content of the last \boxed{…}, whose braces must match; None without one."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for index in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth < 0:
            return text[begin:index].strip() or None
    return None


_PROMPTS = {
    "compact": CompactPrompt, "istar": IStarPrompt, "spa": SPAPrompt, "search_r1": SearchR1Prompt, "igpo": IGPOPrompt, "arpo": ARPOPrompt,
}  # fmt: skip


def prompts(name: str) -> Prompt:
    """Returns the prompt of a name. Raises ValueError for an unknown name, and lists the known ones."""
    return choose("Search QA prompt", name, _PROMPTS)()
