"""A scripted player of the embedded world that knows only its own goal and the conversation."""

from __future__ import annotations

import numpy as np

from stepreward.envs.sotopia.partner import State
from stepreward.envs.sotopia.scenarios import SCENARIOS, Task

ENOUGH = 60  # least worth of a deal, in hundredths, that counts as success

FORMS = {
    "short": {
        "greet": "hello",
        "thank": "thank",
        "ask": "ask why",
        "reason": "reason {word}",
        "offer": "offer {label}",
        "lower": "concede",
        "agree": "agree",
    },
    "full": {
        "greet": "Hello, it is good to see you.",
        "thank": "Thank you for taking the time, I understand how you see it.",
        "ask": "What matters most to you here, and why?",
        "reason": "I can do something for you there: {word}.",
        "offer": "How about {label}?",
        "lower": "I can come towards you: {label}?",
        "agree": "That sounds good, I accept.",
    },
}


def choose(task: Task, state: State, turns_left: int, style: str, rng: np.random.Generator | None = None) -> str:
    """Chooses the next utterance.

    The player is polite if there is time or the partner demands it, asks for the partner's concern and gives the argument for it.
    Then it makes offers that fall rung by rung; the first is so high that the last turn reaches the least successful one.
    It accepts the partner's offer once that is as good as its own.
    """
    forms = FORMS[style]
    topics = SCENARIOS[task.scenario].topics
    standing, ladder = task.worth[state.standing], list(zip(task.worth, task.ladder))
    rung = task.worth[0] - task.worth[1]
    if turns_left > 1 and state.ask is None:
        polite = 2 if turns_left + state.courtesy > 10 else int(task.mood == "touchy")  # the partner's first words show its mood
        if state.courtesy < polite:
            first = state.courtesy == 0 and (rng is None or rng.random() < 0.5)
            return forms["greet" if first else "thank"]
        if not state.asked:
            return forms["ask"]
        if task.concern not in state.argued:
            return forms["reason"].format(word=topics[task.concern].word)
    lowest = ENOUGH if state.ask is None or state.ask > ENOUGH else 0
    if turns_left == 1 or state.patience == 1:  # at patience 1, the partner has announced its last offer
        aim = lowest
        if standing >= ENOUGH or lowest == 0:
            return forms["agree"]
    elif state.ask is None:
        aim = min(100, ENOUGH + rung * (turns_left - 1))
    else:
        aim = max(lowest, state.ask - rung)
    if aim <= standing:
        return forms["agree"]
    form = "lower" if state.ask is not None and aim == state.ask - rung else "offer"
    return forms[form].format(label=next(label for worth, label in ladder if worth <= aim))
