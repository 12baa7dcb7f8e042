"""Judges: what a step of an episode, or a whole episode, is worth, in [0, 1], by rules or by a language model.

A judge scores finished episodes. A score that it cannot give is NaN.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from stepreward.envs import entries
from stepreward.envs.endpoint import Endpoint, EndpointError
from stepreward.envs.events import Events
from stepreward.rollout.episode import Episode, Step
from stepreward.training.asking import Unreachable, ask_all

KINDS = ("rules", "endpoint")

_NUMBER = r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*"
_SCORE = re.compile(f"<final_score>{_NUMBER},{_NUMBER}</final_score>", re.IGNORECASE)
_END = "(end)"  # stands for the key of an episode's last state, which is not recorded

REQUEST = """You judge one step of an agent that works on a task in an environment. Each step is an answer of the agent, which holds one action.

First write the principles by which such a step should be judged, one a line: for example, whether the action serves the task, whether it
uses what has been observed, and whether it repeats what has failed. Then judge the step by your principles. Judge the step itself, and
not what later steps may make of it.

End with one line <final_score>SCORE,MAX</final_score>. MAX is the most points that your principles allow, and SCORE the points of this step,
from 0 to MAX."""

REQUEST_OUTCOME = """You judge how well an agent solved a task in an environment. Each step of the agent is an answer, which holds one action.

First write the principles by which a solution of this task should be judged, one a line. Then judge what the agent achieved in the end.

End with one line <final_score>SCORE,MAX</final_score>. MAX is the most points that your principles allow, and SCORE the points of the agent,
from 0 to MAX."""

# A win counts 1, a tie 0.5, so the mean over tasks is the win rate against the reference.
REQUEST_WIN = """You compare the last answer of an agent with a reference answer to the same task. The order in which you read them does not matter, and
neither does their length.

End with one line: <final_score>1,1</final_score> if the agent's answer is better or if both say the same, <final_score>0.5,1</final_score> if
you cannot say which one is better, and <final_score>0,1</final_score> if the reference answer is better."""


class Verdict(NamedTuple):
    """Scores of some episodes.

    Attributes:
      scores: for each episode, the scores of its steps, float32 `[steps]`, or its own score, float32 `[1]`; NaN where the judge gave none.
      calls: requests that were sent to a model.
      failures: steps, or episodes, without a score.
    """

    scores: list[np.ndarray]
    calls: int
    failures: int


class Judge(Protocol):
    """Scores steps and episodes."""

    def reach(self) -> None:
        """Raises `Unreachable` if the judge cannot be asked."""

    def judge(self, episodes: Sequence[Episode]) -> Verdict:
        """Scores every step of the episodes. Raises `Unreachable` if no request got an answer."""

    def outcomes(self, episodes: Sequence[Episode]) -> Verdict:
        """Scores each episode as a whole. Raises `Unreachable` if no request got an answer."""


# --- By rules ---


class RuleJudge:
    """Scores a step by what the environment said of it; needs no model and no network.

    0      the action failed, or the answer held none
    1      the turn reward is positive
    0.25   the turn reward is negative, or the action led back to an earlier state of the episode
    0.75   the action took effect right after one that failed, and led to a new state
    0.5    the action led to a new state

    The first rule that holds decides. If the environment names no events, they follow from the state keys; the last state of an episode
    then counts as new.
    """

    def reach(self) -> None:
        """Does nothing."""

    def judge(self, episodes: Sequence[Episode]) -> Verdict:
        """Scores every step of the episodes."""
        found = [np.array([rule_score(step, events) for step, events in zip(e.steps, events_of(e))], np.float32) for e in episodes]
        return Verdict(found, calls=0, failures=0)

    def outcomes(self, episodes: Sequence[Episode]) -> Verdict:
        """Scores each episode by the mean score of its steps; 0 if it has none."""
        found = [np.array([scores.mean() if len(scores) else 0.0], np.float32) for scores in self.judge(episodes).scores]
        return Verdict(found, calls=0, failures=0)


def events_of(episode: Episode) -> list[tuple[str, ...]]:
    """Returns the events of an episode's steps: as the environment named them, or else as they follow from the state keys."""
    steps = episode.steps
    if any(step.events for step in steps) or not steps:
        return [step.events for step in steps]
    events, after = Events(steps[0].state_key), [*(step.state_key for step in steps[1:]), _END]
    return [events.after(key, step.executed) for step, key in zip(steps, after)]


def rule_score(step: Step, events: Sequence[str]) -> float:
    """Returns the score of a step by the rules of `RuleJudge`."""
    if step.action is None or not step.executed:
        return 0.0
    if step.turn_reward > 0:
        return 1.0
    if step.turn_reward < 0 or "new_state" not in events:
        return 0.25
    return 0.75 if "recovered" in events else 0.5


# --- By a language model ---


class EndpointJudge:
    """Asks a language model behind an OpenAI-compatible address for the score of each step.

    An answer without a legal score is asked for once more. The scores are kept in a folder under the digest of the request, with the
    model and the temperature but without the address, so that a run that is resumed repeats them. That holds for steps without a
    score too. Equal requests are sent once.

    Args:
      endpoint: the model.
      folder: where scores are kept; None keeps them in memory only.
      parallel: requests that may wait for an answer at the same time.
      history: earlier steps that a request shows, the last ones.
      longest: characters of an observation, answer or task that a request shows; a longer text is cut in its middle, visibly.
    """

    def __init__(self, endpoint: Endpoint, folder: Path | None, *, parallel: int = 8, history: int = 10, longest: int = 2000):
        self._endpoint, self._folder = endpoint, folder
        self._parallel, self._history, self._longest = parallel, history, longest
        self._kept: dict[str, float] = {}

    def reach(self) -> None:
        """Raises `Unreachable` unless a server responds."""
        try:
            self._endpoint.reach()
        except EndpointError as error:
            raise Unreachable(str(error)) from None

    def judge(self, episodes: Sequence[Episode]) -> Verdict:
        """Scores every step of the episodes.

        Raises:
          Unreachable: no request got an answer. Nothing is kept of these requests.
        """
        return self._verdict([[self._request(episode, index) for index in range(len(episode.steps))] for episode in episodes])

    def outcomes(self, episodes: Sequence[Episode]) -> Verdict:
        """Scores each episode as a whole: by a win against its reference answer if it has one, otherwise by the judge's own principles.

        Raises:
          Unreachable: no request got an answer. Nothing is kept of these requests.
        """
        return self._verdict([[self._request_outcome(episode)] for episode in episodes])

    def _verdict(self, requests: list[list[str]]) -> Verdict:
        keys = [[self._key(request) for request in found] for found in requests]
        wanted = {key: request for row, found in zip(keys, requests) for key, request in zip(row, found) if self._known(key) is None}
        calls = self._ask(wanted) if wanted else 0
        scores = [np.array([self._known(key) for key in row], np.float32) for row in keys]
        return Verdict(scores, calls, int(sum(np.isnan(row).sum() for row in scores)))

    def _ask(self, wanted: dict[str, str]) -> int:
        """Asks for the scores of requests by key, and keeps them; returns the number of calls."""
        calls = 0

        def ask(request: str) -> tuple[float, str, int]:
            for tries in (1, 2):
                said = self._endpoint.complete([{"role": "user", "content": request}], str)
                try:
                    return parse(said), said, tries
                except ValueError:
                    pass
            return math.nan, said, tries

        def keep(key: str, answer: tuple[float, str, int]) -> None:
            nonlocal calls
            score, said, tries = answer
            calls += tries
            self._keep(key, score, said)

        unanswered = ask_all(ask, wanted, keep, parallel=self._parallel, whom="the judge")
        for key in unanswered:
            self._keep(key, math.nan, None)
        return calls + len(unanswered)

    def _known(self, key: str) -> float | None:
        """Returns a kept score, NaN where the judge gave none; None if it was never asked."""
        if key not in self._kept and self._folder is not None:
            entry = entries.read(self._folder / f"{key}.json")
            if isinstance(entry, dict) and entry.get("key") == key:
                score = entry.get("score")
                if score is None or (isinstance(score, (int, float)) and 0 <= score <= 1):
                    self._kept[key] = math.nan if score is None else float(score)
        return self._kept.get(key)

    def _keep(self, key: str, score: float, said: str | None) -> None:
        self._kept[key] = score
        if self._folder is not None:
            entries.write(self._folder / f"{key}.json", {"key": key, "score": None if math.isnan(score) else score, "said": said})

    def _key(self, request: str) -> str:
        return entries.key_of(self._endpoint.model, self._endpoint.temperature, request)

    def _request(self, episode: Episode, index: int) -> str:
        """Writes the request for a step: what to do, the task, the earlier steps, the step, and what came of it."""
        steps, first = episode.steps, max(0, index - self._history)
        told = [REQUEST, f"The first observation, with the task:\n{self._cut(steps[0].observation)}"]
        if first:
            told.append(f"({first} earlier {'steps are' if first > 1 else 'step is'} not shown.)")
        told += [f"Step {place + 1}\n{self._told(steps[place])}" for place in range(first, index)]
        after = steps[index + 1].observation if index + 1 < len(steps) else episode.final_observation
        step = steps[index]
        result = "The answer held no action." if step.action is None else f"The action {'took' if step.executed else 'had no'} effect."
        told.append(f"The step to judge, step {index + 1}\n{self._told(step)}\n{result}\nThe observation after it: {self._cut(after)}")
        return "\n\n".join(told)

    def _request_outcome(self, episode: Episode) -> str:
        """Writes the request for an episode: what to do, the task, the last steps, how it ended, and the reference answer if there is one."""
        steps = episode.steps
        first = max(0, len(steps) - self._history)
        told = [REQUEST_OUTCOME if episode.reference is None else REQUEST_WIN]
        if steps:
            told.append(f"The first observation, with the task:\n{self._cut(steps[0].observation)}")
        if first:
            told.append(f"({first} earlier {'steps are' if first > 1 else 'step is'} not shown.)")
        told += [f"Step {place + 1}\n{self._told(steps[place])}" for place in range(first, len(steps))]
        told.append(f"The last observation: {self._cut(episode.final_observation)}")
        told += [] if episode.reference is None else [f"The reference answer: {self._cut(episode.reference)}"]
        return "\n\n".join(told)

    def _told(self, step: Any) -> str:
        return f"Observation: {self._cut(step.observation)}\nThe agent's answer: {self._cut(step.output)}"

    def _cut(self, text: str) -> str:
        if len(text) <= self._longest:
            return text
        half = self._longest // 2
        return f"{text[:half]}[… {len(text) - 2 * half:,} characters cut …]{text[len(text) - half :]}"


def parse(said: str) -> float:
    """Reads the last <final_score>SCORE,MAX</final_score> of a judge's answer; returns SCORE / MAX.

    Raises:
      ValueError: there is none, or it does not satisfy 0 ≤ SCORE ≤ MAX and MAX > 0.
    """
    found = _SCORE.findall(said)
    if not found:
        raise ValueError("no final score")
    score, most = map(float, found[-1])
    if not (0 <= score <= most and 0 < most < math.inf):
        raise ValueError("the score is out of range")
    return score / most
