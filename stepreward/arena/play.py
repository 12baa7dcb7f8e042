"""Episodes of a tabular policy, in arrays: chains, episodes that an expert begins, and trees of episodes.

`E` = G·n episodes are played, n in each of G groups; the episodes of a group start in the same state. Every function is pure. Uniform draws
are arguments of the lockstep loop: episodes that share draws share their steps, which is how a tree is played.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stepreward.arena.task import Task
from stepreward.batch import Batch

Array = jax.Array


class Episodes(NamedTuple):
    """Episodes of the same number of groups and episodes a group.

    Attributes:
      state, action, next_state: int32 `[E, T]`.
      mask: bool `[E, T]`, the steps that an episode has.
      sampled: bool `[E, T]`, the steps that the policy took; the expert took the others.
      reward: float32 `[E, T]`.
      success: bool `[E]`.
      ended: bool `[E]`, whether the task ended the episode, and not the horizon.
      counted: bool `[E]`, False for an absent leaf of a tree.
      group: int32 `[E]`.
      cost: float32 scalar, environment steps that were played; what several episodes share counts once.
      signals: arrays that only the strategy knows, such as the ids of a tree's nodes.
    """

    state: Array
    action: Array
    next_state: Array
    mask: Array
    sampled: Array
    reward: Array
    success: Array
    ended: Array
    counted: Array
    group: Array
    cost: Array
    signals: dict


class Draws(NamedTuple):
    """Uniform numbers in [0, 1) that decide actions and next states, float32 `[E, T]`."""

    action: Array
    outcome: Array


class Prefix(NamedTuple):
    """Steps that are given: `state`, `action`, `next_state` int32 `[E, T]`, and how many, int32 `[E]`."""

    state: Array
    action: Array
    next_state: Array
    length: Array


def draw(key: Array, episodes: int, steps: int) -> Draws:
    """Independent draws for every step."""
    return Draws(*jax.random.uniform(key, (2, episodes, steps)))


def pick(probability: Array, uniform: Array) -> Array:
    """int32 `[E]`: indices drawn by `[E, N]` probabilities and `[E]` uniform numbers."""
    below = jnp.cumsum(probability, axis=1)[:, :-1] <= uniform[:, None]
    return below.sum(axis=1).astype(jnp.int32)


def begin(task: Task, key: Array, groups: int, size: int) -> Array:
    """int32 `[E]`: an initial state for each group, given to each of its episodes."""
    first_G = jax.random.choice(key, task.num_states, (groups,), p=task.start)
    return jnp.repeat(first_G.astype(jnp.int32), size)


def one_step(task: Task, policy_SxA: Array, state: Array, action_draw: Array, outcome_draw: Array, action: Array | None = None):
    """Samples an action, unless one is given, and its result, for each of some states: `(action, next, reward, ends, wins)`."""
    if action is None:
        action = pick(policy_SxA[state], action_draw)
    k = pick(task.probability[state, action], outcome_draw)
    at = (state, action, k)
    return action, task.next_state[at], task.reward[at], task.terminal[at], task.success[at]


def play(task: Task, policy: Array, first: Array, groups: int, draws: Draws, prefix: Prefix | None = None) -> Episodes:
    """Plays all episodes in lockstep.

    Args:
      task: the task.
      policy: probabilities, `[S, A]` or `[T, S, A]`.
      first: int32 `[E]`, the initial states.
      groups: G, static.
      draws: uniform numbers.
      prefix: steps that are given, or None.
    """
    policy_TxSxA = jnp.broadcast_to(policy, (task.max_steps, *policy.shape[-2:])) if policy.ndim == 3 else None

    def forward(carry, at):
        state, alive = carry
        step, of_action, of_outcome, given = at
        table = policy if policy_TxSxA is None else policy_TxSxA[step]
        alive &= step < task.horizon
        action, after, reward, ends, wins = one_step(task, table, state, of_action, of_outcome)
        if prefix is not None:
            forced = step < prefix.length
            action, after = jnp.where(forced, given[0], action), jnp.where(forced, given[1], after)
            reward, ends, wins = jnp.where(forced, 0.0, reward), ends & ~forced, wins & ~forced
        told = (state, action, after, alive, jnp.where(alive, reward, 0.0), alive & ends, alive & wins)
        return (jnp.where(alive & ~ends, after, state), alive & ~ends), told

    steps = jnp.arange(task.max_steps)
    given = None if prefix is None else (prefix.action.T, prefix.next_state.T)
    carry = (first, jnp.ones(first.shape, bool))
    _, told = jax.lax.scan(forward, carry, (steps, draws.action.T, draws.outcome.T, given))
    state, action, after, mask, reward, ends, wins = (x.T for x in told)
    sampled = mask if prefix is None else mask & (steps[None] >= prefix.length[:, None])
    group = jnp.repeat(jnp.arange(groups, dtype=jnp.int32), len(first) // groups)
    counted = jnp.ones(first.shape, bool)
    return Episodes(
        state, action, after, mask, sampled, reward, wins.any(1), ends.any(1), counted, group, mask.sum().astype(jnp.float32), {}
    )


def chain(task: Task, policy: Array, key: Array, groups: int, size: int) -> Episodes:
    """Plays n independent episodes in each group."""
    starts, draws = jax.random.split(key)
    first = begin(task, starts, groups, size)
    return play(task, policy, first, groups, draw(draws, groups * size, task.max_steps))


def handover(task: Task, policy: Array, expert: Array, share: Array, key: Array, groups: int, size: int) -> Episodes:
    """The expert takes the first min(⌊share·T⌋, T − 1) steps of its path of T steps, one path for each group (`rollout.strategies`).

    Where the expert's path fails, the policy plays from the beginning.

    Args:
      expert: `[T, S, A]`, probabilities.
      share: scalar in [0, 1].
    """
    starts, path_key, draws = jax.random.split(key, 3)
    first = begin(task, starts, groups, size)
    path = play(task, expert, first[::size], groups, draw(path_key, groups, task.max_steps))
    length = path.mask.sum(axis=1)
    taken = jnp.minimum((share * length + 1e-6).astype(jnp.int32), length - 1)
    taken = jnp.where(path.success, taken, 0)
    of_episode = lambda x: jnp.repeat(x, size, axis=0)
    prefix = Prefix(*(of_episode(x) for x in (path.state, path.action, path.next_state, taken)))
    episodes = play(task, policy, first, groups, draw(draws, groups * size, task.max_steps), prefix)
    return episodes._replace(cost=episodes.sampled.sum() + path.mask.sum().astype(jnp.float32))


def levels_of(branching: tuple[int, ...] | None, size: int, horizon: int, segment_steps: int) -> tuple[int, ...]:
    """The children of each node by level, of a tree with `size` leaves: those given, or two a level, as far as the horizon reaches.

    The leaves of the levels that the horizon does not reach are put into the first level. Raises ValueError if there is no such tree.
    """
    if branching is None:
        depth = size.bit_length() - 1
        if size != 2**depth:
            raise ValueError(f"a tree of two children a level has 2, 4, 8 … leaves, not {size}")
        branching = (2,) * depth
    if int(np.prod(branching)) != size:
        raise ValueError(f"a tree with branching={branching} does not have {size} leaves")
    most = max(1, -(-horizon // segment_steps))
    return (
        branching
        if len(branching) <= most
        else (int(np.prod(branching[: len(branching) - most + 1])), *branching[len(branching) - most + 1 :])
    )


def tree(task: Task, policy: Array, key: Array, groups: int, size: int, branching: tuple[int, ...], segment_steps: int) -> Episodes:
    """Plays a tree in each group: `branching[l]` segments of `segment_steps` steps start from each node of level l.

    Leaves below a common node share its draws, and thereby its steps. Where an episode ends in an earlier level, the other leaves below
    that node are absent. Signals as in `rollout.strategies.segments`: node_id, segment_id, sibling_id, segment_value, parent_value.
    """
    steps, leaf = task.max_steps, np.arange(size)
    level_of = np.minimum(np.arange(steps) // segment_steps, len(branching) - 1)  # of each step
    below = [int(np.prod(branching[level + 1 :])) for level in range(len(branching))]  # leaves below a node that level l leads to
    owner_LxN = np.stack([leaf // count * count for count in below])  # the first leaf below that node
    owner_NxT = owner_LxN[level_of].T
    starts, draws = jax.random.split(key)
    first = begin(task, starts, groups, size)
    index = (np.arange(groups)[:, None, None] * size + owner_NxT).reshape(groups * size, steps)
    own = draw(draws, groups * size, steps)
    shared = Draws(*(jnp.take_along_axis(x, index, axis=0) for x in own))
    episodes = play(task, policy, first, groups, shared)

    # A leaf is a path of its own from the first level on in which it is the first leaf below its node.
    born = np.array([segment_steps * min(level for level in range(len(branching)) if owner_LxN[level, i] == i) for i in leaf])
    born_E = np.tile(born, groups)
    length_E = episodes.mask.sum(axis=1)
    counted = length_E > born_E
    own_steps = episodes.mask & counted[:, None] & (np.arange(steps)[None] >= born_E[:, None])

    outcome = episodes.reward.sum(axis=1)
    value_of = [jnp.repeat(outcome.reshape(-1, count).mean(axis=1), count) for count in (size, *below)]  # duplicates of a leaf are alike
    value = jnp.stack(value_of, axis=1)  # [E, levels + 1]
    place = index * steps
    of_level = jnp.asarray(level_of)
    known = episodes.mask & counted[:, None]
    ids = lambda x: jnp.where(known, x, -1).astype(jnp.int32)
    numbers = lambda x: jnp.where(known, x, jnp.nan)
    above_LxN = np.concatenate([np.zeros((1, size), int), owner_LxN[:-1]])
    above = (np.arange(groups)[:, None, None] * size + above_LxN[level_of].T).reshape(groups * size, steps)
    signals = {
        "node_id": ids(place + np.arange(steps)),
        "segment_id": ids(place + level_of),
        "sibling_id": ids(above * steps + level_of),
        "segment_value": numbers(value[:, of_level + 1]),
        "parent_value": numbers(value[:, of_level]),
    }
    return episodes._replace(mask=known, sampled=known, counted=counted, cost=own_steps.sum().astype(jnp.float32), signals=signals)


def entropy_branch(task: Task, policy: Array, key: Array, groups: int, size: int, *, n0: int, p: float, w: float, beam: int) -> Episodes:
    """Branches where the policy is less certain than in its first step, as the strategy of this name (`rollout.strategies.entropy`).

    n0 episodes start from the root. Before each later step, every episode that was not born there branches with probability
    clip(p + w·ΔH, 0, 1), while the group has leaves left; leaves that are left in the end are played from the root. H is the entropy of
    the policy in the state, divided by log A.
    """
    entropy_S = -(policy * jnp.log(jnp.maximum(policy, 1e-30))).sum(axis=1) / np.log(policy.shape[1])
    starts, draw_key, branch_key, rest_key = jax.random.split(key, 4)
    first = begin(task, starts, groups, size)
    draws = draw(draw_key, groups * size, task.max_steps)
    uniform = jax.random.uniform(branch_key, (task.max_steps, groups, size))
    grid = lambda x: x.reshape(groups, size)

    def forward(carry, at):
        state, alive, used, source, history = carry
        step, of_action, of_outcome, chance = at
        rise = entropy_S[state] - entropy_S[grid(first)]
        born_here = jnp.zeros((groups, size), bool)
        branches = (
            (chance < jnp.clip(p + w * rise, 0.0, 1.0)) & alive & (np.arange(size) < used[:, None]) & (step > 0) & (step < task.horizon)
        )
        # Each branching episode starts beam − 1 new leaves, in order, as far as there are leaves left.
        wanted = branches * (beam - 1)
        before = jnp.cumsum(wanted, axis=1) - wanted
        slot = jnp.arange(size)
        parent = slot[None] * jnp.ones((groups, 1), int)
        for child in range(beam - 1):
            target = used[:, None] + before + child
            fits = branches & (target < size)
            target = jnp.where(fits, target, size)
            put = lambda x, value: jnp.pad(x, ((0, 0), (0, 1))).at[jnp.arange(groups)[:, None], target].set(value)[:, :size]
            parent, born_here = put(parent, slot[None] * jnp.ones_like(parent)), put(born_here, fits)
        used = jnp.minimum(used + wanted.sum(axis=1), size)
        inherit = lambda x: jnp.take_along_axis(x, parent, axis=1)
        state, alive = inherit(state), inherit(alive)
        source = jnp.where(born_here, step, source)
        history = jnp.take_along_axis(history, parent[..., None], axis=1).at[:, :, step].set(slot)
        active = alive & (step < task.horizon) & (slot < used[:, None])
        flat = lambda x: x.reshape(-1)
        action, after, reward, ends, wins = (grid(x) for x in one_step(task, policy, flat(state), of_action, of_outcome))
        told = (state, action, after, active, jnp.where(active, reward, 0.0), active & ends, active & wins)
        carry = (jnp.where(active & ~ends, after, state), alive & ~(active & ends), used, source, history)
        return carry, told

    empty = jnp.zeros((groups, size), jnp.int32)
    carry = (grid(first), jnp.ones((groups, size), bool), jnp.full(groups, n0), empty, jnp.zeros((groups, size, task.max_steps), jnp.int32))
    steps = jnp.arange(task.max_steps)
    (_, _, used, born, history), told = jax.lax.scan(forward, carry, (steps, draws.action.T, draws.outcome.T, uniform))
    # What slot i did in step t stands in the row of the slot that played it then.
    of_owner = lambda x: jnp.take_along_axis(jnp.moveaxis(x, 0, 2), history, axis=1).reshape(groups * size, -1)
    state, action, after, mask, reward, ends, wins = (of_owner(x) for x in told)
    rest = play(task, policy, first, groups, draw(rest_key, groups * size, task.max_steps))
    grown = (jnp.arange(size) < used[:, None]).reshape(-1)
    choose = lambda a, b: jnp.where(grown[:, None], a, b)
    mask = choose(mask, rest.mask)
    own = mask & (steps[None] >= jnp.where(grown, born.reshape(-1), 0)[:, None])
    return rest._replace(
        state=choose(state, rest.state), action=choose(action, rest.action), next_state=choose(after, rest.next_state), mask=mask, sampled=mask,
        reward=choose(reward, rest.reward), success=jnp.where(grown, wins.any(1), rest.success), ended=jnp.where(grown, ends.any(1), rest.ended),
        cost=own.sum().astype(jnp.float32), signals={"born": jnp.where(grown, born.reshape(-1), 0)},
    )  # fmt: skip


def to_batch(episodes: Episodes, log_policy_SxA: Array) -> Batch:
    """Packs episodes as a library's batch: a row is an episode, and a step has one token, its action.

    Args:
      log_policy_SxA: log-probabilities of the policy that played.
    """
    count, steps = episodes.mask.shape
    acted = episodes.sampled & episodes.counted[:, None]
    flat = jnp.arange(count * steps, dtype=jnp.int32).reshape(count, steps)
    log_prob = jnp.take_along_axis(log_policy_SxA[episodes.state], episodes.action[..., None], axis=2)[..., 0]
    return Batch(
        tokens=episodes.action,
        positions=jnp.broadcast_to(jnp.arange(steps, dtype=jnp.int32), (count, steps)),
        segment_ids=acted.astype(jnp.int32),
        action_mask=acted,
        step_id=jnp.where(acted, flat, -1),
        log_prob_old=jnp.where(acted, log_prob, 0.0),
        step_mask=episodes.mask,
        env_reward=episodes.reward,
        executed=episodes.mask & ((episodes.next_state != episodes.state) | (episodes.reward != 0)),
        episode_mask=episodes.counted,
        outcome=episodes.reward.sum(axis=1),
        success=episodes.success,
        truncated=~episodes.ended,
        group_id=episodes.group,
    )
