"""The rule-based partner: how it reacts to an utterance, what it answers, and when it gives in or leaves.

The partner grants outcomes that are worth up to `limit` hundredths to the player. An argument that addresses its concern (which
it names when asked) raises the limit by 30, any other argument by 2, and a courtesy by an amount that depends on its mood (at
most twice). A threat or an insult lowers the limit by 15, and the player's secret by 20. The partner accepts an offer within its
limit at once. Otherwise, if the player's offer came closer, it moves its own offer two fifths of the way to its limit. It ends
the conversation when its patience runs out.
"""

from __future__ import annotations

from typing import NamedTuple

from stepreward.envs.sotopia.scenarios import SCENARIOS, Task
from stepreward.envs.sotopia.speech import NOTHING, Acts

ARGUMENT, OTHER_ARGUMENT, RUDENESS, SECRET = 30, 2, -15, -20
TOO_FAR = 40  # an offer that exceeds the limit by more than this costs patience
COURTESY = {"warm": 8, "brisk": 3, "touchy": 10}
PATIENCE = {"warm": 7, "brisk": 5, "touchy": 4}


class State(NamedTuple):
    """The changing state of a conversation, without its words.

    limit: worth that the partner grants now. standing: index of the partner's offer in the ladder. ask: worth of the player's
    last offer. patience: the partner's remaining patience. courtesy: number of polite utterances, of which two count. argued: topics
    already used in arguments. deal: worth of the deal. ended: "" while the conversation runs, else "deal", "left" (the player left)
    or "walked" (the partner left). The other fields count utterances.
    """

    limit: int
    standing: int
    patience: int
    ask: int | None = None
    courtesy: int = 0
    argued: tuple[int, ...] = ()
    asked: int = 0
    offers: int = 0
    raised: int = 0
    repeats: int = 0
    unheard: int = 0
    threats: int = 0
    insults: int = 0
    secret: bool = False
    deal: int | None = None
    ended: str = ""


def opening(task: Task) -> State:
    """Returns the initial state: the partner offers the player's worst outcome."""
    return State(task.limit, len(task.ladder) - 1, PATIENCE[task.mood])


def respond(task: Task, state: State, acts: Acts) -> tuple[State, list[tuple[str, dict[str, str]]]]:
    """Returns the state after an utterance and the partner's answer, as keys of LINES with the words to insert."""
    if acts.leave:
        return state._replace(ended="left"), [("left", {})]
    if acts == NOTHING:
        return state._replace(unheard=state.unheard + 1), [("pardon", {})]
    lines: list[tuple[str, dict[str, str]]] = []
    for rude, name in ((acts.threat, "threats"), (acts.insult, "insults")):
        if rude:
            state = _spend(state._replace(**{name: getattr(state, name) + 1}, limit=state.limit + RUDENESS), 2)
            lines.append((name, {}))
    if acts.secret:
        if not state.secret:
            state = state._replace(secret=True, limit=state.limit + SECRET)
        lines.append(("secret", {}))
    if acts.greet or acts.thank:
        if state.courtesy < 2:
            state = state._replace(limit=state.limit + COURTESY[task.mood])
        state = state._replace(courtesy=state.courtesy + 1)
        lines.append(("courtesy", {}))
    if acts.reason is not None:
        state, line = _argue(task, state, acts.reason)
        lines.append(line)
    if acts.ask:
        topic = SCENARIOS[task.scenario].topics[task.concern]
        state = _spend(state._replace(asked=state.asked + 1), 1 if state.asked > 1 else 0)
        lines.append(("concern", {"voiced": topic.voiced, "word": topic.word}))
    offer = _offered(task, state, acts)
    if offer is not None:
        state, line = _bargain(task, state, *offer)
        lines.append(line)
    elif acts.agree:
        state = state._replace(deal=task.worth[state.standing], ended="deal")
        lines.append(("deal", {"label": task.ladder[state.standing]}))
    elif acts.refuse and not lines:
        lines.append(("refused", {"label": task.ladder[state.standing]}))
    if not state.ended and state.patience <= 0:
        state = state._replace(ended="walked")
        lines = [*lines, ("walked", {})]
    return state, lines


def _spend(state: State, patience: int) -> State:
    return state._replace(patience=state.patience - patience)


def _argue(task: Task, state: State, topic: int) -> tuple[State, tuple[str, dict[str, str]]]:
    word = {"word": SCENARIOS[task.scenario].topics[topic].word}
    if topic in state.argued:
        return _spend(state, 1), ("argued", word)
    moved = ARGUMENT if topic == task.concern else OTHER_ARGUMENT
    state = state._replace(limit=state.limit + moved, argued=(*state.argued, topic))
    return state, ("convinced" if topic == task.concern else "unmoved", word)


def _offered(task: Task, state: State, acts: Acts) -> tuple[int, str] | None:
    """Returns the worth and label of the offer in an utterance; None if it offers nothing, or only names what it refuses."""
    if acts.offer is not None:
        refused = acts.refuse and acts.offer[0] == task.worth[state.standing]
        return None if refused else acts.offer
    if acts.relative is None:
        return None
    if acts.relative == "best" or (acts.relative == "concede" and state.ask is None):
        index = 0
    else:
        ask = 100 if state.ask is None else state.ask
        aim = (ask + task.worth[state.standing]) / 2 if acts.relative == "halfway" else ask - 1
        index = next((index for index, worth in enumerate(task.worth) if worth <= aim), len(task.ladder) - 1)
    return task.worth[index], task.ladder[index]


def _bargain(task: Task, state: State, worth: int, label: str) -> tuple[State, tuple[str, dict[str, str]]]:
    came = state.ask is None or worth < state.ask
    raised = state.ask is not None and worth > state.ask
    state = state._replace(ask=worth, offers=state.offers + 1, raised=state.raised + raised)
    if worth <= max(state.limit, task.worth[state.standing]):
        return state._replace(deal=worth, ended="deal"), ("deal", {"label": label})
    state = _spend(state, int(not came) + int(worth > state.limit + TOO_FAR))
    if came and (task.mood != "touchy" or state.courtesy):
        held = task.worth[state.standing]
        aim = held + 2 * (state.limit - held) / 5
        moved = next(index for index, rung in enumerate(task.worth) if rung <= max(aim, held))
        state = state._replace(standing=min(moved, state.standing))
    line = "last" if state.patience == 1 else "counter"
    return state, (line, {"asked": label, "label": task.ladder[state.standing]})


# Each line in a short form, and as whole sentences in several wordings; a partner always uses the same wording.
LINES = {
    "warm": ("hi! {label}?", ("Hello {you}, how good to see you! I was thinking of {label}.",)),
    "brisk": ("so. {label}?", ("Let us be quick. I say {label}.",)),
    "touchy": ("hm. manners? {label}?", ("Hm. I like to be treated with courtesy. I say {label}.",)),
    "threats": ("no threats!", ("Do not threaten me.", "Is that a threat? I do not like it.", "Threats will get you nowhere.")),
    "insults": ("rude!", ("There is no need to be rude.", "Mind your words.", "I will not be spoken to like that.")),
    "secret": ("oh, so!", ("Oh, is it so? That changes how I see it.", "I did not know that. Interesting.", "So that is it!")),
    "courtesy": ("nice.", ("That is kind of you.", "I am glad that we can talk.", "Thank you, I like how you put it.")),
    "concern": ("{word}.", ("Well, {voiced}.", "To be frank, {voiced}.", "You see, {voiced}.")),
    "convinced": ("{word}! good.", ("{word}? That is just what I needed to hear.", "If {word} is taken care of, I can move.",
                                    "Good that you think of {word}. That helps me a lot.")),
    "unmoved": ("{word}? no.", ("{word} is not what troubles me.", "Fine, but {word} hardly matters to me.", "{word}? Well.")),
    "argued": ("{word} again?", ("You said that about {word} before.", "I have heard about {word}.", "Again {word}?")),
    "counter": ("{asked}? no. {label}?", ("{asked} is too hard for me. What about {label}?", "Not {asked}. I could do {label}.",
                                          "I cannot do {asked}. {label}?")),
    "last": ("{asked}? no. last: {label}", ("Not {asked}. {label} is my last word.", "I am losing patience. {label}, or nothing.",
                                            "{asked}? No. {label}, and I will not say it again.")),
    "deal": ("deal {label}", ("{label} it is. We have a deal.", "Agreed, {label}.", "All right, {label}. Done!")),
    "refused": ("then? {label}?", ("Then what do you suggest? I said {label}.", "And what instead of {label}?",
                                   "So not {label}. But what?")),
    "pardon": ("pardon?", ("I do not follow you.", "Sorry, what do you mean?", "Pardon?")),
    "left": ("bye", ("You have left the conversation.",)),
    "walked": ("no more. bye", ("That is enough, I am leaving.", "I have no more time for this. Goodbye.",
                                "We will not agree. Goodbye.")),
}  # fmt: skip


def speak(task: Task, lines: list[tuple[str, dict[str, str]]], style: str = "full") -> str:
    """Writes lines as the partner's words; style "short" uses the short forms."""
    parts = []
    for name, words in lines:
        short, full = LINES[name]
        text = short if style == "short" else full[task.voice % len(full)]
        said = text.format(you=task.you, **words)
        parts.append(said if style == "short" else said[0].upper() + said[1:])
    return " ".join(parts)
