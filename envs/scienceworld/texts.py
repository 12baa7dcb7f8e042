"""The simulator's texts: their order, which differs between its runs, a short form, and what they tell of an action."""

from __future__ import annotations

import hashlib
import re

AMBIGUOUS = "Ambiguous request"
_REFUSED = re.compile(
    r"No known action|It'?s not clear|I'm not sure|You can'?t|That can't|That is already|That object already|Something can't|You must"
    r"|Connections must|The door doesn't"
    r"|[^\n]*( is already (open|closed|activated|deactivated|connected)| isn't open|,? can't be poured| appears broken"
    r"| is not (something that can be activated|a container|closeable|openable|edible|movable|moveable))"
)
_ROOM = re.compile(r"(?:This room|This outside location) is called the ([^.\n]*)\. (?:In it,|Here) you see:")
_OPTION = re.compile(r"(\d+):\s*(.*)")
_NOISE = re.compile(r"^(the agent|a substance called air)$")


def refused(text: str) -> bool:
    """Whether the answer to an action says that it did nothing. Answers of several lines are descriptions."""
    return "\n" not in text.strip() and _REFUSED.match(text) is not None


def ordered(text: str) -> str:
    """Returns a text with its lists in alphabetical order. The simulator's order of equal states differs between runs.

    A list with numbers is left to `question`.
    """
    if text.startswith(AMBIGUOUS):
        return text
    found: list[str] = []
    block: list[str] = []
    for line in text.split("\n"):
        if line.startswith("\t"):
            block.append(_ordered_line(line))
            continue
        found += sorted(block)
        block = []
        found.append(_ordered_line(line))
    return "\n".join(found + sorted(block))


def question(text: str) -> tuple[str, dict[str, str]]:
    """Orders the options of a question which action was meant.

    Returns:
      The text with its options in alphabetical order and numbered anew, and the simulator's number for each of these numbers. For any other
      text, the text itself and no numbers.
    """
    options = [match.groups() for match in map(_OPTION.match, text.split("\n")) if match]
    if not text.startswith(AMBIGUOUS) or not options:
        return text, {}
    options.sort(key=lambda option: option[1])
    head = text.split("\n", 1)[0]
    shown = "\n".join([head, *(f"{number}:\t{action}" for number, (_, action) in enumerate(options))])
    return shown, {str(number): theirs for number, (theirs, _) in enumerate(options)}


def _ordered_line(line: str) -> str:
    """Sorts each list after a colon, up to the end of its sentence."""
    sentences = []
    for sentence in line.split(". "):
        head, colon, tail = sentence.partition(": ")
        end = tail[len(tail.rstrip(". ")) :]
        sentences.append(head + colon + ", ".join(sorted(_pieces(tail.removesuffix(end) if end else tail))) + end if colon else sentence)
    return ". ".join(sentences)


def _pieces(text: str) -> list[str]:
    """Splits at commas outside parentheses; "a lamp, which is off" is one piece."""
    pieces, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and text.startswith(", ", index) and not text.startswith(", which ", index):
            pieces.append(text[start:index])
            start = index + 2
    return [*pieces, text[start:]]


def key(*texts: str) -> str:
    """Returns a digest of texts that does not depend on the order of lists: of their sorted lines, each with its pieces sorted."""
    parts = ["\n".join(sorted(" ".join(sorted(re.split(r"[,.:;]\s*", line.strip()))) for line in text.split("\n"))) for text in texts]
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "replace"), digest_size=16).hexdigest()


def short(text: str) -> str:
    """Returns a text on one line, without the agent and the air."""
    lines = [_ROOM.sub(r"\1:", line.strip()) for line in text.split("\n")]
    lines = [re.sub(r"^A door to the (.*) \(that is open\)$", r"\1", line).replace("a substance called ", "") for line in lines]
    kept = [line for line in lines if line and not _NOISE.match(line) and line != "air"]
    joined = ", ".join(kept).replace("You also see:", "doors:").replace("In your inventory, you see:", "have:")
    return re.sub(r"([:.]), ", r"\1 ", joined)
