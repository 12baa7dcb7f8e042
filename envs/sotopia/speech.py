"""Recognises speech acts in free text, from `offer 45` to whole sentences."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from stepreward.envs.sotopia.scenarios import SCENARIOS, Task

HEARD = 2000  # characters of an utterance that are read; the rest is ignored

_GREET = re.compile(r"\b(hello|hi|hey|good (?:morning|day|evening|afternoon)|greet\w*|nice to (?:see|meet)|good to see)\b")
_THANK = re.compile(r"\b(thank\w*|please|appreciate\w*|grateful|kind of you|sorry|apolog\w+|i (?:do )?understand|i see your)\b")
_ASK = re.compile(
    r"^ask\b|\bask why\b|\b(why|what (?:matters|worries|do you|would you|is important|are you)|"
    r"tell me (?:more|what|why)|how come|what is your concern|what's)\b.*\?|\bwhat matters\b"
)
_AGREE = re.compile(
    r"\b(agreed|accept|it'?s a deal|you have a deal|you'?ve got a deal|sounds good|let'?s do (?:it|that)|i'?ll take it|"
    r"i agree(?! that| with| about)|agree(?=[.!]*$)|we agree)\b|^(?:ok(?:ay)?,? )?deal[.!]*$|[.!,] deal[.!]*$"
)
_NOT = re.compile(r"\b(no|not|never|don'?t|can'?t|cannot|couldn'?t|won'?t|refuse\w*|reject\w*|unable|too (?:low|high|much|little))\b")
_HARMLESS = re.compile(r"\bno (?:problem|worries|doubt|hurry|rush)\b")
_THREAT = re.compile(
    r"\b(threat\w*|or else|you(?:'ll| will) (?:regret|be sorry)|sue|lawyer|report you|i will tell everyone|make you pay|"
    r"blackmail|force you)\b"
)
_INSULT = re.compile(r"\b(stupid|idiot\w*|liar|fool|shut up|moron|greedy|cheat(?:er)?|pathetic|insult)\b")
_LEAVE = re.compile(
    r"^(?:leave|bye|goodbye|good bye)[.!]*$|\bleft the conversation\b|\bi(?:'m| am) leaving\b|"
    r"\bi(?:'ll| will) leave(?: now)?[.!]*$|\bwalk away\b|\bend (?:this|the) (?:talk|conversation)\b|\bgoodbye[.!]*$"
)
_CONCEDE = re.compile(r"\b(concede|come down|go down|go up a|lower my|raise my|a little less|a bit less|give (?:in )?a (?:little|bit))\b")
_HALFWAY = re.compile(r"\b(halfway|half way|meet in the middle|split the difference|middle ground)\b")
_BARE_OFFER = re.compile(r"^(?:offer|propose)[.!]*$|\bmy (?:full )?(?:asking )?price\b")
_SECRET = re.compile(r"\b(tell (?:you )?(?:my|the|a) secret|tell secret|my secret is|to be honest with you|confess)\b")
_NUMBER = re.compile(r"(?<![\w.])\$?(\d[\d,]*(?:\.\d+)?)(?![\w%])")


class Acts(NamedTuple):
    """The acts in an utterance.

    reason: index, in the scenario's topics, of the first topic that is named. offer: worth in hundredths (over 100 or negative
    outside the ladder) and label of the last outcome that is named. relative: an offer without an outcome: "best", "concede" or
    "halfway".
    """

    greet: bool = False
    thank: bool = False
    ask: bool = False
    reason: int | None = None
    offer: tuple[int, str] | None = None
    relative: str | None = None
    agree: bool = False
    refuse: bool = False
    threat: bool = False
    insult: bool = False
    secret: bool = False
    leave: bool = False


NOTHING = Acts()


def hear(text: str | None, task: Task) -> Acts:
    """Recognises the acts in an utterance; returns NOTHING for None, for a blank and for text without acts. Never raises."""
    if not isinstance(text, str) or not text.strip():
        return NOTHING
    said = " ".join(text[:HEARD].lower().replace("’", "'").split())
    refuse = bool(_NOT.search(_HARMLESS.sub("", said)))
    offer = _offer(said, task)
    relative = None
    if offer is None:
        found = (("halfway", _HALFWAY), ("concede", _CONCEDE), ("best", _BARE_OFFER))
        relative = next((name for name, pattern in found if pattern.search(said)), None)
    threat, insult = bool(_THREAT.search(said)), bool(_INSULT.search(said))
    secret = bool(_SECRET.search(said) or _secret_words(task.scenario).search(said))
    return Acts(
        greet=bool(_GREET.search(said)),
        thank=bool(_THANK.search(said)),
        ask=bool(_ASK.search(said)),
        reason=_reason(said, task.scenario),
        offer=offer,
        relative=relative,
        agree=bool(_AGREE.search(said)) and not refuse and not threat,
        refuse=refuse,
        threat=threat,
        insult=insult,
        secret=secret,
        leave=bool(_LEAVE.search(said)),
    )


def _offer(said: str, task: Task) -> tuple[int, str] | None:
    if SCENARIOS[task.scenario].options:
        found = [(match.start(), index) for index, name in enumerate(task.ladder) for match in re.finditer(rf"\b{name}\b", said)]
        return (task.worth[max(found)[1]], task.ladder[max(found)[1]]) if found else None
    best, worst = int(task.ladder[0]), int(task.ladder[-1])
    span = abs(best - worst) / 2
    for written in reversed(_NUMBER.findall(said)):
        value = float(written.replace(",", ""))
        if min(best, worst) - span <= value <= max(best, worst) + span:
            label = str(int(value)) if value == int(value) else f"{value:g}"
            return round(100 * (value - worst) / (best - worst)), label
    return None


def _reason(said: str, scenario: str) -> int | None:
    found = [(match.start(), index) for index, pattern in enumerate(_topics(scenario)) if (match := pattern.search(said))]
    return min(found)[1] if found else None


@functools.cache
def _topics(scenario: str) -> tuple[re.Pattern, ...]:
    return tuple(re.compile(rf"\b(?:{topic.word}|{topic.words})") for topic in SCENARIOS[scenario].topics)


@functools.cache
def _secret_words(scenario: str) -> re.Pattern:
    return re.compile(rf"\b(?:{SCENARIOS[scenario].secret_words})")
