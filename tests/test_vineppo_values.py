"""VinePPO in one-box Sokoban: its values and advantages against the exact ones of a random policy, by dynamic programming."""

import functools

import jax
import numpy as np
import pytest

from stepreward.credit import make, step_mask
from stepreward.envs.sokoban import core
from stepreward.envs.sokoban.env import SokobanEnv
from stepreward.envs.sokoban.presets import settings
from stepreward.rollout import strategies
from stepreward.rollout.episode import STEP_LIMIT, TERMINATED, Cost, Episode, Snapshot, Step, Task
from stepreward.rollout.packing import pack

LIMIT = 6  # steps of an episode
ROOMS = settings("istar", max_steps=LIMIT, max_moves=4)
TASKS = [Task(seed, "train", seed) for seed in range(80)]
K = 3


def play(starts, key, *, keep=False, turns=None):
    """Plays Sokoban at random; the draws of an episode depend on the key and on its place."""
    environment, played = SokobanEnv(ROOMS), []
    for place, start in enumerate(starts):
        draws = np.random.default_rng([*np.asarray(jax.random.key_data(key)).tolist(), place])
        episode = Episode(start.task, list(start.prefix), prefix=len(start.prefix))
        if start.snapshot is None:
            _, info = environment.reset(seed=start.task.seed, options={"split": "train"})
        else:
            environment.restore(start.snapshot.state)
            info = start.snapshot.info
        while not episode.end:
            action, before = core.ACTIONS[draws.integers(4)], Snapshot(environment.snapshot(), {}, info) if keep else None
            key_before = info["state_key"]
            _, reward, terminated, truncated, info = environment.step(action)
            tokens = np.ones(1, np.int32)
            p = np.full(1, np.log(0.25), np.float32)
            step = Step(tokens, tokens, p, np.zeros(1, np.float32), "", action, action, reward, True, key_before, snapshot=before)
            episode.steps.append(step)
            episode.success, episode.truncated = terminated, truncated
            episode.end = TERMINATED if terminated else STEP_LIMIT if truncated else ""
        episode.cost = Cost(len(episode.steps) - episode.prefix)
        played.append(episode)
    return played


@functools.cache
def to_go(room, state, left):
    """The chance of solving the room within the steps that are left, and the expected sum of the rewards, of the random policy."""
    if not left:
        return np.zeros(2)
    after = [core.step(room, state, action) for action in core.ACTIONS]
    return np.mean([np.array([t.done, t.reward]) + (0 if t.done else to_go(room, t.state, left - 1)) for t in after], axis=0)


def exact(episode, outcome):
    """The value of the state before each step, with the rewards before it, and of the end."""
    values, earlier = [], 0.0
    for turn, step in enumerate(episode.steps):
        room, state = core.from_text(step.state_key)
        chance, rewards = to_go(room, state, LIMIT - turn)
        values.append(chance if outcome == "success" else earlier + rewards)
        earlier += step.reward
    return np.array([*values, episode.success if outcome == "success" else earlier])


def unbiased(errors):
    """Whether the mean error is within three standard errors of 0."""
    return abs(np.mean(errors)) <= 3 * np.std(errors, ddof=1) / np.sqrt(len(errors))


@pytest.mark.parametrize("outcome", ["success", "return"])
def test_values_and_advantages_are_unbiased(outcome):
    rollout = strategies.make("restore", k=K, outcome=outcome)(play, TASKS, jax.random.key(1))
    truth = [exact(episode, outcome) for episode in rollout.episodes]
    values = np.concatenate([true[:-1] for true in truth])
    errors = np.concatenate(rollout.signals["mc_value"]) - values
    assert len(errors) > 300 and unbiased(errors)
    assert np.std(errors) / np.sqrt(len(errors)) < 0.06 * (1 if outcome == "success" else 10)  # else anything would be
    if outcome == "success":  # the outcomes of K episodes are independent
        np.testing.assert_allclose(np.mean(errors**2), np.mean(values * (1 - values)) / K, rtol=0.25)

    layout = dict(context="step", max_steps=LIMIT, row_length=2, row_multiple=1, pad_id=0)
    batch = pack(rollout.episodes, outcome=outcome, **layout)
    found = make("vineppo").credit(batch.with_signals(**rollout.arrays(LIMIT))).step_advantage
    advantages = [np.diff(true) for true in truth]  # r_t + V(s_{t+1}) − V(s_t)
    of_episodes = [np.asarray(row)[: len(true)] - true for row, true in zip(found, advantages)]
    assert unbiased([error.mean() for error in of_episodes]) and unbiased([error[0] for error in of_episodes])
    assert np.corrcoef(np.concatenate(advantages), np.asarray(found)[np.asarray(step_mask(batch))])[0, 1] > 0.5


def test_the_cost_of_values_is_quadratic_in_the_length_of_an_episode():
    """k episodes from each of the T states of an episode, of at most LIMIT − t steps; k·S(S + 1)/2 where no episode ends early."""
    rollout = strategies.make("restore", k=K)(play, TASKS, jax.random.key(2))
    most = [K * sum(LIMIT - t for t in range(len(episode.steps))) for episode in rollout.episodes]
    assert 0.7 * sum(most) < rollout.branch_steps <= sum(most)
    assert max(most) == K * LIMIT * (LIMIT + 1) // 2


def test_a_penalty_for_unfinished_episodes_reaches_values_and_advantages():
    rollout = strategies.make("restore", k=K, outcome="return", unfinished=-5.0)(play, TASKS[:10], jax.random.key(1))
    plain = strategies.make("restore", k=K, outcome="return")(play, TASKS[:10], jax.random.key(1))
    lowered = np.concatenate(rollout.signals["mc_value"]) - np.concatenate(plain.signals["mc_value"])
    assert lowered.min() < -1 and lowered.max() < 1e-6
