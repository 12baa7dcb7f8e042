"""What a rollout takes and leaves behind: tasks and starts, steps and episodes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stepreward.models.vision_inputs import Images

# Why an episode ended.
TERMINATED = "terminated"  # the environment came to an end: won, or lost for good
STEP_LIMIT = "step_limit"  # rollout.max_steps
ENVIRONMENT_LIMIT = "environment_limit"  # the environment stopped it earlier than that
TOO_LONG = "too_long"  # the next prompt was longer than rollout.max_prompt_tokens
ROW_FULL = "row_full"  # the conversation had no room left in rollout.max_row_tokens
PAUSED = "paused"  # `play` was asked for no more turns; it can be played on (`Start.after`)
ABSENT = "absent"  # it was not played: padding, where a strategy played fewer episodes than a batch holds
# Why an episode of the expert failed, although its environment did not.
NO_WAY, NOT_ENDED = "the expert knows no way to solve the task", "the expert's actions do not end the episode"
NO_ANSWER = "the model that is the expert gave no answer"
LONG_ANSWER = "the answer of the model that is the expert has more than rollout.max_answer_tokens"
UNSOLVED = (NO_WAY, NOT_ENDED, NO_ANSWER, LONG_ANSWER)
CUT_SHORT = (STEP_LIMIT, ENVIRONMENT_LIMIT, TOO_LONG, ROW_FULL)


@dataclasses.dataclass(frozen=True)
class Task:
    """One episode to play.

    Attributes:
      seed: the environment's task seed.
      split: "train" or "held_out".
      group: episodes of one group share task and initial state.
      environment: in a run of several environments, the name of the one that the task is of.
    """

    seed: int
    split: str
    group: int
    environment: str = ""


class Snapshot(NamedTuple):
    """A state that an episode can be played on from.

    Attributes:
      state: what the environment's `snapshot()` returned; only `restore` reads it.
      observation, info: what the environment said in that state. `restore` does not say it again.
    """

    state: Any
    observation: Mapping[str, Any]
    info: Mapping[str, Any]


class Pause(NamedTuple):
    """The state that a paused episode is in.

    Attributes:
      snapshot: the environment's state, if `play` was asked to keep it.
      state_key: of the state.
    """

    snapshot: Snapshot | None
    state_key: str


class Cost(NamedTuple):
    """What it took to play one or more episodes. Each step and token counts once, those of failed episodes included.

    Attributes:
      env_steps: environment steps that the policy acted in.
      replayed_steps: environment steps that were repeated to reach the state where an episode starts, or that the expert acted in.
      sampled_tokens: tokens of answers.
      prompt_tokens: tokens of prompts, of earlier conversations that were read again, and of reference answers that were scored.
    """

    env_steps: int = 0
    replayed_steps: int = 0
    sampled_tokens: int = 0
    prompt_tokens: int = 0


@dataclasses.dataclass
class Step:
    """One action of the policy.

    Attributes:
      prompt_tokens: int32 tokens before the answer: a whole prompt (if a row is a step), or what this turn added to the
        conversation (if a row is an episode).
      action_tokens, log_prob, entropy: int32 / float32 `[A]`, exactly as sampled.
      observation: the environment's text before the action.
      output: the model's answer as text.
      action: the parsed action, or None when the answer held none.
      reward: the environment's reward.
      executed: the action was understood, ran and took effect.
      state_key: the state before the action.
      distance: how far success was before the action, in the environment's unit (NaN if it does not know).
      images: the images in `prompt_tokens`, for a model that sees (`models.vision_inputs.Images`).
      cut: characters of observations that the prompt leaves out because they did not fit.
      stopped: whether the answer ended by itself; False if it was cut at `rollout.max_answer_tokens`.
      snapshot: the state before the action, if `play` was asked to keep it.
      events: what the environment said of the action, names of `envs.protocol.EVENT_NAMES`; () if it says nothing.
      turn_reward: the partial progress that the action made, by the environment's measure; 0 if it has none.
      answer_log_prob: before the action, the mean log-probability in nats of the reference answer's tokens under the policy; NaN if it
        was not scored.
      automaton_state: the state of the environment's automaton of subgoals before the action; −1 if it has none.
      sampled: whether the policy chose the action; False if the environment's expert did, whose steps are not trained on.
    """

    prompt_tokens: np.ndarray
    action_tokens: np.ndarray
    log_prob: np.ndarray
    entropy: np.ndarray
    observation: str
    output: str
    action: str | None
    reward: float
    executed: bool
    state_key: str
    distance: float = math.nan
    images: Images | None = None
    cut: int = 0
    stopped: bool = True
    snapshot: Snapshot | None = None
    events: tuple[str, ...] = ()
    turn_reward: float = 0.0
    answer_log_prob: float = math.nan
    automaton_state: int = -1
    sampled: bool = True


@dataclasses.dataclass
class Episode:
    """A finished episode.

    Attributes:
      task: what was played.
      steps: its actions in order.
      prefix: how many of the first steps were given by its start; the policy sampled the others now.
      success: whether the task was solved.
      truncated: whether the episode ended otherwise than by `TERMINATED`.
      end: why it ended: `TERMINATED`, one of `CUT_SHORT`, `PAUSED` or `ABSENT`; "" if it failed, or if the reason is not known.
      needs: the config keys whose limits were too small for it, each with the number of tokens that it would have to allow.
      score: how well the task was solved, in the benchmark's measure.
      failure: what the environment raised, or None. A failed episode is masked, counted and shown, never trained on.
      final_observation, final_distance, final_automaton_state: after the last action.
      cost: what it took to play the steps after the prefix.
      reference: a right final answer, if the environment has one.
      pause: the state after the last step, if the episode is `PAUSED`.
      judged: a judge's score of the episode in [0, 1], which is its outcome then; None: the environment decides.
    """

    task: Task
    steps: list[Step] = dataclasses.field(default_factory=list)
    success: bool = False
    truncated: bool = False
    failure: str | None = None
    final_observation: str = ""
    final_distance: float = math.nan
    score: float = 0.0
    end: str = ""
    needs: dict[str, int] = dataclasses.field(default_factory=dict)
    prefix: int = 0
    cost: Cost = Cost()
    reference: str | None = None
    pause: Pause | None = None
    final_automaton_state: int = -1
    judged: float | None = None

    @property
    def counts(self) -> bool:
        """Whether it enters statistics: it was played, and its environment did not fail."""
        return self.failure is None and self.end != ABSENT

    def need(self, **tokens: int) -> None:
        """Notes that `rollout.KEY` would have to be at least this large; keeps the largest number of each key."""
        for key, count in tokens.items():
            self.needs[f"rollout.{key}"] = max(count, self.needs.get(f"rollout.{key}", 0))

    @property
    def episode_return(self) -> float:
        """Sum of the environment's rewards."""
        return float(sum(step.reward for step in self.steps))

    @property
    def automaton_states(self) -> list[int]:
        """The S + 1 states of the environment's automaton of subgoals, before each step and after the last; −1 if it has none."""
        return [*(step.automaton_state for step in self.steps), self.final_automaton_state]

    def outcome(self, kind: str) -> float:
        """The outcome: the judge's score if there is one; else for the kind "return" the sum of the rewards, and for "success" 0 or 1."""
        if self.judged is not None:
            return self.judged
        return self.episode_return if kind == "return" else float(self.success)

    def judge(self, score: float) -> None:
        """Makes a judge's score in [0, 1] the outcome: the last step gets it as reward, the others 0; 0.5 and more is a success."""
        for step in self.steps:
            step.reward = 0.0
        if self.steps:
            self.steps[-1].reward = score
        self.judged, self.score, self.success = score, score, score >= 0.5

    def progress(self, unreachable: float) -> np.ndarray:
        """True progress of each step, d(before) − d(after); `unreachable` replaces an infinite distance, and NaN means unknown."""
        distance = np.array([step.distance for step in self.steps] + [self.final_distance], np.float64)
        distance = np.where(np.isinf(distance), unreachable, distance)
        return distance[:-1] - distance[1:]


class Start(NamedTuple):
    """Where an episode starts.

    Attributes:
      task: what is played.
      snapshot: the environment's state at the start; None: the environment is reset and takes the actions of `prefix` again.
      prefix: the steps taken before the start, of an earlier episode of a collector with the same `context` and `history`. They become
        the first steps of the new episode, and its conversation so far, token by token.
      state_key: of the state at the start; None where it is not known. A replay that leads to another state fails its episode.
    """

    task: Task
    snapshot: Snapshot | None = None
    prefix: Sequence[Step] = ()
    state_key: str | None = None

    @classmethod
    def before(cls, episode: Episode, turn: int) -> Start:
        """The state before step `turn` of an episode; restored where the step has a snapshot, replayed where it has none."""
        step = episode.steps[turn]
        return cls(episode.task, step.snapshot, tuple(episode.steps[:turn]), step.state_key)

    @classmethod
    def after(cls, episode: Episode) -> Start:
        """The state in which an episode was paused. Raises ValueError if the episode is not paused."""
        if episode.pause is None:
            raise ValueError(f"only a paused episode can be played on, and this one ended: {episode.failure or episode.end}.")
        return cls(episode.task, episode.pause.snapshot, tuple(episode.steps), episode.pause.state_key)


def total_cost(episodes: Sequence[Episode]) -> Cost:
    """The sum of the episodes' costs."""
    return Cost(*(sum(counts) for counts in zip(*(episode.cost for episode in episodes)))) if episodes else Cost()


def true_progress(episodes: Sequence[Episode], max_steps: int) -> np.ndarray:
    """Exact progress of each step, float64 `[E, S]`: NaN if unknown; an infinite distance counts as `2 · max_steps`."""
    progress = np.full((len(episodes), max_steps), np.nan)
    for row, episode in zip(progress, episodes):
        row[: len(episode.steps)] = episode.progress(2.0 * max_steps)
    return progress


def summary(episodes: Sequence[Episode]) -> dict[str, float]:
    """Means over episodes that did not fail: `success`, `score`, `return`, `steps_per_episode`; and over their steps: `executed` (the share
    whose action was understood and took effect: grounding accuracy), `invalid` (no action in the answer), `answer_tokens`, and `entropy`
    of the sampled tokens."""
    steps = [s for e in episodes for s in e.steps]
    found = {
        "success": np.mean([e.success for e in episodes]),
        "score": np.mean([e.score for e in episodes]),
        "return": np.mean([e.episode_return for e in episodes]),
        "steps_per_episode": len(steps) / len(episodes),
        "executed": np.mean([s.executed for s in steps]),
        "invalid": np.mean([s.action is None for s in steps]),
        "answer_tokens": np.mean([len(s.action_tokens) for s in steps if s.sampled]),
        "entropy": np.concatenate([s.entropy for s in steps if s.sampled]).mean(),
    }
    return {name: float(value) for name, value in found.items()}


def cuts(episodes: Sequence[Episode]) -> dict[str, float]:
    """What was cut in some episodes that did not fail: how many of them each of `CUT_SHORT` ended, in how many prompts an observation
    was cut (`observations_cut`), how many answers were cut (`answers_cut`), and the tokens of the longest prompt (`longest_prompt`),
    as long as it would have been uncut."""
    steps = [s for e in episodes for s in e.steps]
    found = {end: sum(e.end == end for e in episodes) for end in CUT_SHORT}
    found |= {"observations_cut": sum(s.cut > 0 for s in steps), "answers_cut": sum(not s.stopped for s in steps)}
    wanted = [e.needs.get("rollout.max_prompt_tokens", 0) for e in episodes]
    found["longest_prompt"] = max([0, *wanted, *(len(s.prompt_tokens) for s in steps)])
    return {name: float(value) for name, value in found.items()}


def lost(episodes: Sequence[Episode]) -> dict[str, float]:
    """Those of `cuts` that a length caused and that are not 0; for evaluations."""
    return {name: count for name, count in cuts(episodes).items() if count and name in (TOO_LONG, ROW_FULL, "observations_cut")}


def to_record(episode: Episode, step_reward: Any = None, step_advantage: Any = None, value: Any = None, exact: Any = None) -> dict:
    """The episode as plain JSON data for the report and for `episodes/`.

    Args:
      step_reward, step_advantage: credit of each step, `[S]`; None if there is none.
      value: of the state before each step, `[S]`, NaN if unknown.
      exact: exact advantage of each step, `[S]`, NaN if unknown.
    """

    def number(value):
        return None if value is None or math.isnan(value) else float(value)  # inf means out of reach

    steps = []
    for index, step in enumerate(episode.steps):
        record = {"observation": step.observation, "action": step.action, "output": step.output}
        record |= {"reward": step.reward, "executed": step.executed, "distance": number(step.distance)}
        record |= ({"cut": step.cut} if step.cut else {}) | ({} if step.stopped else {"stopped": False})
        for name, values in (("step_reward", step_reward), ("step_advantage", step_advantage)):
            record[name] = None if values is None else number(float(values[index]))
        record |= {} if value is None else {"value": number(float(value[index]))}
        record |= {} if exact is None else {"exact_advantage": number(float(exact[index]))}
        record |= {} if step.sampled else {"sampled": False}
        steps.append(record)
    return {
        "task": f"{episode.task.environment and f'{episode.task.environment}, '}{episode.task.split.replace('_', '-')} seed {episode.task.seed}",
        "success": episode.success,
        "score": number(episode.score),
        "outcome": episode.outcome("return"),
        "truncated": episode.truncated,
        "end": episode.end,
        "needs": dict(episode.needs),
        "failure": episode.failure,
        "steps": steps,
        "final_observation": episode.final_observation,
        "final_distance": number(episode.final_distance),
    }
