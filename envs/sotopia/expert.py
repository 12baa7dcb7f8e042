"""A scripted player of the embedded world that knows only its own goal and what was said."""

from __future__ import annotations

import numpy as np

from stepreward.envs.sotopia.partner import State
from stepreward.envs.sotopia.scenarios import SCENARIOS, Task

ENOUGH = 60  # the lowest worth, in hundredths, whose goal score is a success

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
    """The next utterance.

    Courtesy where there is time or the partner asks for it; the question; the argument that fits the answer; then offers that
    come down rung by rung, the first so high that a successful one is reached in the last turn; and the partner's offer once it
    is as good.
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
    if turns_left == 1 or state.patience == 1:  # at 1 the partner has said that it is its last word
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
