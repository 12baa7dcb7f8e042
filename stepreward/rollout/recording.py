"""Converts episodes to and from the plain data that `data/recordings.py` stores."""

from __future__ import annotations

import numpy as np

from stepreward.data.recordings import Recording
from stepreward.rollout.episode import Episode, Step, Task


def to_recording(episode: Episode) -> Recording:
    """Converts an episode to plain data. `from_recording` returns an equal episode, without cost and snapshots.

    Raises:
      ValueError: the episode began in the middle; a recording does not store which steps were given.
    """
    if episode.prefix:
        raise ValueError("an episode that began in the middle cannot be recorded: record whole episodes, of the strategy 'chain'.")
    steps = episode.steps
    return Recording(
        seed=episode.task.seed,
        split=episode.task.split,
        group=episode.task.group,
        success=episode.success,
        truncated=episode.truncated,
        score=episode.score,
        failure=episode.failure,
        end=episode.end,
        needs=dict(episode.needs),
        final_observation=episode.final_observation,
        final_distance=episode.final_distance,
        prompt_tokens=[np.asarray(step.prompt_tokens, np.int32) for step in steps],
        action_tokens=[np.asarray(step.action_tokens, np.int32) for step in steps],
        log_prob=[np.asarray(step.log_prob, np.float32) for step in steps],
        entropy=[np.asarray(step.entropy, np.float32) for step in steps],
        observations=[step.observation for step in steps],
        outputs=[step.output for step in steps],
        actions=[step.action for step in steps],
        rewards=np.array([step.reward for step in steps], np.float64),
        executed=np.array([step.executed for step in steps], np.bool_),
        state_keys=[step.state_key for step in steps],
        distances=np.array([step.distance for step in steps], np.float64),
        cut=np.array([step.cut for step in steps], np.int64),
        stopped=np.array([step.stopped for step in steps], np.bool_),
        events=[tuple(step.events) for step in steps],
        turn_rewards=np.array([step.turn_reward for step in steps], np.float64),
        answer_log_probs=np.array([step.answer_log_prob for step in steps], np.float64),
        reference=episode.reference,
        automaton_states=np.array([step.automaton_state for step in steps], np.int64),
        final_automaton_state=episode.final_automaton_state,
    )


def from_recording(recording: Recording) -> Episode:
    """The episode that `to_recording` was given."""
    columns = zip(
        recording.prompt_tokens,
        recording.action_tokens,
        recording.log_prob,
        recording.entropy,
        recording.observations,
        recording.outputs,
        recording.actions,
        recording.rewards.tolist(),
        recording.executed.tolist(),
        recording.state_keys,
        recording.distances.tolist(),
        strict=True,
    )
    names = ("cut", "stopped", "events", "turn_reward", "answer_log_prob", "automaton_state")
    rows = (recording.cut.tolist(), recording.stopped.tolist(), recording.events, recording.turn_rewards.tolist())
    more = zip(*rows, recording.answer_log_probs.tolist(), recording.automaton_states.tolist(), strict=True)
    return Episode(
        task=Task(recording.seed, recording.split, recording.group),
        steps=[Step(*column, **dict(zip(names, rest))) for column, rest in zip(columns, more, strict=True)],
        success=recording.success,
        truncated=recording.truncated,
        score=recording.score,
        failure=recording.failure,
        end=recording.end,
        needs=dict(recording.needs),
        final_observation=recording.final_observation,
        final_distance=recording.final_distance,
        reference=recording.reference,
        final_automaton_state=recording.final_automaton_state,
    )
