"""Random rollouts in both packings, and plain NumPy loops as references for kernels and methods."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from stepreward.batch import Batch


@dataclasses.dataclass
class Step:
    """One step of an episode: the values of its action tokens, and the number of observation tokens before them."""

    log_prob_old: np.ndarray
    log_prob_prm: np.ndarray
    log_prob_initial: np.ndarray
    value: np.ndarray
    observation: int
    env_reward: float
    progress: float = 0.0
    progress_label: float = -1.0
    executed: bool = True
    shuffled_from: int = 0
    state: str = ""
    log_prob_hindsight: np.ndarray | None = None  # None: 0 at each token
    log_prob_trained: np.ndarray | None = None
    log_prob_start: np.ndarray | None = None
    turn_reward: float = 0.0
    answer_log_prob: float = 0.0
    process_score: float = 0.0
    discriminator_logit: float = 0.0
    exact_advantage: float = 0.0
    rule_reward: float = 0.0
    tag_id: int = -1
    automaton_state: int = -1
    automaton_next: int = -1
    action: str = ""
    mc_value: float = float("nan")
    node_id: int = -1
    segment_id: int = -1
    sibling_id: int = -1
    segment_value: float = float("nan")
    parent_value: float = float("nan")


@dataclasses.dataclass
class Episode:
    steps: list[Step]
    outcome: float
    group: int
    counted: bool = True
    success: bool = False


CANVAS = {"num_episodes": 14, "max_steps": 5, "rows": 48, "length": 20}
# One number per token, and one per step.
SIGNALS = ("log_prob_prm", "log_prob_initial", "value", "log_prob_hindsight", "log_prob_trained", "log_prob_start")
STEP_SIGNALS = (
    "progress",
    "progress_label",
    "turn_reward",
    "answer_log_prob",
    "process_score",
    "rule_reward",
    "mc_value",
    "segment_value",
    "parent_value",
    "discriminator_logit",
    "exact_advantage",
)
AUTOMATON_DISTANCE = ((3, 2, 1, 0), (4, 3.5, 1, 0))  # d_0 and d_k of four states
TREE_IDS = ("node_id", "segment_id", "sibling_id")  # one id per step
HISTORY = 2  # K of the signal `level_id`


def random_step(rng, tokens=None) -> Step:
    tokens = int(rng.integers(1, 4)) if tokens is None else tokens
    draw = lambda: rng.normal(-1.0, 0.7, tokens)
    step = Step(draw(), draw(), draw(), rng.normal(0, 1, tokens), int(rng.integers(1, 3)), float(rng.normal()))
    step.progress, step.executed = float(rng.normal()), bool(rng.random() < 0.6)
    step.progress_label = float(rng.random()) if rng.random() < 0.7 else -1.0
    return step


def random_episodes(rng, groups=(4, 3, 4, 1), failed=(5,), uniform=(2,), steps=4) -> list[Episode]:
    """Ragged episodes; `groups` are sizes, `failed` masked episodes, `uniform` groups whose outcomes are all equal."""
    episodes = []
    for group, size in enumerate(groups):
        for _ in range(size):
            count = int(rng.integers(1, steps + 1))
            outcome = 0.3 if group in uniform else float(np.round(rng.normal(), 2))
            episode = Episode([random_step(rng) for _ in range(count)], outcome, group, success=outcome > 0)
            for source, step in zip(rng.permutation(count), episode.steps):
                step.shuffled_from = int(source)
            episodes.append(episode)
    for index in failed:
        episodes[index].counted = False
    steps_of_all = [step for episode in episodes for step in episode.steps]
    for step, state in zip(steps_of_all, np.random.default_rng(len(steps_of_all)).integers(0, 4, len(steps_of_all))):
        step.state = f"state {state}"
    grow_trees(episodes)
    add_signals(steps_of_all, np.random.default_rng([len(steps_of_all), 1]))
    for step, logit in zip(steps_of_all, np.random.default_rng([len(steps_of_all), 2]).normal(size=len(steps_of_all))):
        step.discriminator_logit = float(logit)
    for step, exact in zip(steps_of_all, np.random.default_rng([len(steps_of_all), 3]).normal(size=len(steps_of_all))):
        step.exact_advantage = float(exact)
    return episodes


def grow_trees(episodes: list[Episode], segment=2) -> None:
    """Gives the steps of each group a random binary tree with segments of two steps, and random values, of which some are unknown.

    Ids count from 0 in every group, as a strategy may number them.
    """
    rng, trees = np.random.default_rng(len(episodes)), {}
    for index, episode in enumerate(episodes):
        ids, values = trees.setdefault(episode.group, ({}, {}))
        number = lambda *key: ids.setdefault(key, len(ids))
        value = lambda path: values.setdefault(path, np.nan if rng.random() < 0.1 and path else float(np.round(rng.random(), 2)))
        path = ()
        for t, step in enumerate(episode.steps):
            if t % segment == 0:
                above, path = path, (*path, int(rng.integers(0, 2) if path else index % 2))
            step.node_id, step.segment_id, step.sibling_id = number(path, t), number(path), number(above)
            step.segment_value, step.parent_value = value(path), value(above)
            step.mc_value = np.nan if rng.random() < 0.25 else float(rng.random())


def add_signals(steps: list[Step], rng) -> None:
    """Draws what models, judges and the environment say of steps; some answers and scores are not known."""
    for step in steps:
        for name in ("log_prob_hindsight", "log_prob_trained", "log_prob_start"):
            setattr(step, name, rng.normal(-1.0, 0.7, len(step.log_prob_old)))
        step.turn_reward, step.rule_reward, step.tag_id = float(rng.normal()), float(rng.normal()), int(rng.integers(-1, 4))
        step.answer_log_prob = float(rng.normal(-1.0, 0.5)) if rng.random() < 0.85 else np.nan
        step.process_score = float(rng.random()) if rng.random() < 0.85 else np.nan
        step.action = "ab"[rng.integers(2)]
    for step, states in zip(steps, np.random.default_rng([len(steps), 2]).integers(-1, 4, (len(steps), 2))):
        step.automaton_state, step.automaton_next = states.tolist()


def others_outcome(episode, episodes) -> float:
    """The mean outcome of the other counted episodes of its group, or its own without others."""
    others = [e.outcome for e in episodes if e.group == episode.group and e.counted and e is not episode]
    return float(np.mean(others)) if others else episode.outcome


def pack(episodes: list[Episode], packing: str = "episode", *, padded: bool = True, row_order=None, group_of=None) -> Batch:
    """Packs episodes into a batch; `packing` is "episode" (a row is an episode) or "step" (a row is one step).

    `padded` pads rows, tokens, steps and episodes to `CANVAS`, one shape for nearly all tests, so that JAX compiles
    once. Undefined entries (padding, observations) are large numbers on purpose.
    """
    max_steps, num_episodes = max(len(e.steps) for e in episodes), len(episodes)
    if packing == "episode":
        rows = [[(e, s) for s in range(len(episode.steps))] for e, episode in enumerate(episodes)]
    else:
        rows = [[(e, s)] for e, episode in enumerate(episodes) for s in range(len(episode.steps))]
    if padded:
        max_steps, num_episodes = CANVAS["max_steps"], CANVAS["num_episodes"]
        rows = rows + [[]] * (CANVAS["rows"] - len(rows))
    extra_episodes = num_episodes - len(episodes)
    if row_order is not None:
        rows = [rows[i] for i in row_order]
    size = lambda step: step.observation + len(step.log_prob_old)
    length = CANVAS["length"] if padded else max(sum(size(episodes[e].steps[s]) for e, s in row) for row in rows)
    shape = (len(rows), length)

    garbage = lambda: np.full(shape, 1e3, np.float32)
    token = {name: garbage() for name in ("log_prob_old", *SIGNALS)}
    token["log_prob_old"][:] = 0.0
    action_mask, segment_ids = np.zeros(shape, bool), np.zeros(shape, np.int32)
    step_id = np.full(shape, -1, np.int32)
    for r, row in enumerate(rows):
        at = 0
        for e, s in row:
            step = episodes[e].steps[s]
            segment_ids[r, at : at + size(step)] = 1
            at += step.observation
            span = slice(at, at + len(step.log_prob_old))
            action_mask[r, span] = True
            step_id[r, span] = e * max_steps + s
            for name, array in token.items():
                array[r, span] = 0.0 if getattr(step, name) is None else getattr(step, name)
            at = span.stop

    step_mask = np.zeros((num_episodes, max_steps), bool)
    env_reward = np.zeros((num_episodes, max_steps), np.float32)
    executed = np.ones((num_episodes, max_steps), bool)
    step_level = {name: np.full((num_episodes, max_steps), 1e3, np.float32) for name in STEP_SIGNALS}
    anchor_id, anchors = np.full((num_episodes, max_steps), 10**6, np.int32), {}
    tree = {name: np.full((num_episodes, max_steps), 10**6, np.int32) for name in TREE_IDS}
    tag_id, equal_id, equal = anchor_id.copy(), anchor_id.copy(), {}
    automaton = {name: anchor_id.copy() for name in ("automaton_state", "automaton_next")}
    level_id, levels = np.full((num_episodes, max_steps, HISTORY + 1), 10**6, np.int32), [{} for _ in range(HISTORY + 1)]
    permutation = np.tile(np.arange(max_steps, dtype=np.int32), (num_episodes, 1))
    for e, episode in enumerate(episodes):
        for s, step in enumerate(episode.steps):
            step_mask[e, s], env_reward[e, s], permutation[e, s] = True, step.env_reward, step.shuffled_from
            executed[e, s] = step.executed
            # A failed episode has the numbers of its group too: they must not be read.
            anchor_id[e, s] = anchors.setdefault((episode.group, step.state), len(anchors))
            tag_id[e, s] = step.tag_id
            equal_id[e, s] = equal.setdefault((episode.group, step.state, step.action), len(equal))
            for k, level in enumerate(levels, 1):
                states = tuple(other.state for other in episode.steps[max(s + 1 - k, 0) : s + 1])
                level_id[e, s, k - 1] = level.setdefault((episode.group, states), len(level)) if s + 1 >= k else -1
            for name, array in (step_level | tree | automaton).items():
                array[e, s] = getattr(step, name)
    pad = lambda values, fill, dtype: jnp.asarray(np.array(list(values) + [fill] * extra_episodes, dtype))
    group_of = group_of or (lambda group: group)
    return Batch(
        tokens=jnp.zeros(shape, jnp.int32),
        positions=jnp.asarray(np.tile(np.arange(length, dtype=np.int32), (len(rows), 1))),
        segment_ids=jnp.asarray(segment_ids),
        action_mask=jnp.asarray(action_mask),
        step_id=jnp.asarray(step_id),
        log_prob_old=jnp.asarray(token["log_prob_old"]),
        step_mask=jnp.asarray(step_mask),
        env_reward=jnp.asarray(env_reward),
        executed=jnp.asarray(executed),
        episode_mask=pad([e.counted for e in episodes], False, bool),
        outcome=pad([e.outcome for e in episodes], 77.0, np.float32),
        success=pad([e.success for e in episodes], True, bool),
        truncated=pad([False] * len(episodes), False, bool),
        group_id=pad([group_of(e.group) for e in episodes], 0, np.int32),
        signals={
            **{name: jnp.asarray(token[name]) for name in SIGNALS},
            **{name: jnp.asarray(array) for name, array in (step_level | tree | automaton).items()},
            "automaton_distance": jnp.asarray(AUTOMATON_DISTANCE, jnp.float32),
            "automaton_eta": jnp.float32(0.1),
            "step_permutation": jnp.asarray(permutation),
            "anchor_id": jnp.asarray(anchor_id),
            "others_outcome": pad([others_outcome(e, episodes) for e in episodes], 88.0, np.float32),
            "level_id": jnp.asarray(level_id),
            "tag_id": jnp.asarray(tag_id),
            "equal_id": jnp.asarray(equal_id),
            "scheduled_alpha": jnp.float32(0.7),
            "kl_coef": jnp.float32(0.3),
        },
    )


def by_step(x_RxL, batch: Batch) -> dict[tuple[int, int], list[float]]:
    """Returns the values of the action tokens of each step, `{(episode, step): [value, ...]}`, in the order of the row."""
    values: dict[tuple[int, int], list[float]] = {}
    x, step_id, mask = np.asarray(x_RxL), np.asarray(batch.step_id), np.asarray(batch.action_mask)
    for r, l in zip(*np.nonzero(mask)):
        values.setdefault(tuple(map(int, divmod(step_id[r, l], batch.max_steps))), []).append(float(x[r, l]))
    return values


def literal(step_tokens, outcomes, *, groups=None, packing="episode", signals=None, **values) -> Batch:
    """Makes a batch from given arrays, padded to `CANVAS`.

    `step_tokens[e]` lists the number of tokens in each step of episode e. `values[name][e]` has the values of all action tokens of the
    episode for a name of the token level (0 for names that are not given), and one value per step for another field of `Step`, which
    `signals` may give too.
    """
    tokens = {name: values.pop(name) for name in ("log_prob_old", *SIGNALS) if name in values}
    episodes = []
    for e, counts in enumerate(step_tokens):
        ends = np.cumsum(counts)
        take = lambda name, i: np.asarray(
            tokens[name][e][ends[i] - counts[i] : ends[i]] if name in tokens else np.zeros(counts[i]), np.float32
        )
        of_tokens = lambda i: {name: take(name, i) for name in ("log_prob_old", *SIGNALS)}
        steps = [Step(**of_tokens(i), observation=1, env_reward=0.0) for i in range(len(counts))]
        for name, of_steps in (values | (signals or {})).items():
            for step, value in zip(steps, of_steps[e], strict=True):
                setattr(step, name, value)
        group = 0 if groups is None else groups[e]
        episodes.append(Episode(steps, float(outcomes[e]), group, success=outcomes[e] > 0))
    return pack(episodes, packing)


def counted_groups(episodes) -> dict[int, list[int]]:
    """The indices of the counted episodes of each group."""
    groups: dict[int, list[int]] = {}
    for e, episode in enumerate(episodes):
        if episode.counted:
            groups.setdefault(episode.group, []).append(e)
    return groups


def returns_loop(rewards, discount) -> list[float]:
    """The discounted sum of this and all later rewards, at each step."""
    return [sum(discount ** (k - t) * rewards[k] for k in range(t, len(rewards))) for t in range(len(rewards))]


def leave_one_out_loop(returns) -> list[list[float]]:
    """Returns-to-go of the episodes of a group minus the mean of those of the others, 0 after an episode's end."""
    at = lambda row, t: row[t] if t < len(row) else 0.0
    mean = lambda i, t: np.mean([at(row, t) for j, row in enumerate(returns) if j != i])
    return [[g - mean(i, t) if len(returns) > 1 else 0.0 for t, g in enumerate(row)] for i, row in enumerate(returns)]


def assert_steps(step_array_ExS, expected, **tolerance):
    """The array holds `expected[(episode, step)]`, and 0 elsewhere."""
    found = np.asarray(step_array_ExS)
    array = np.zeros_like(found)
    for place, value in expected.items():
        array[place] = value
    assert np.abs(array).max() > 0.05
    np.testing.assert_allclose(found, array, **{"atol": 2e-5, "rtol": 1e-5, **tolerance})


def gae_loop(reward, value, mask, discount, trace):
    """Generalized advantage estimation over one stream by its definition: (advantage, returns), 0 under the mask."""
    advantage, returns = np.zeros(len(reward)), np.zeros(len(reward))
    next_value = next_advantage = 0.0
    for t in reversed(range(len(reward))):
        if mask[t]:
            next_advantage = reward[t] + discount * next_value - value[t] + discount * trace * next_advantage
            next_value = value[t]
            advantage[t], returns[t] = next_advantage, next_advantage + value[t]
    return advantage, returns


def advantages_loop(episodes, rewards, *, baseline="critic", discount=1.0, trace=1.0) -> dict:
    """Advantages of counted steps from step rewards: by GAE over steps, or as return-to-go minus that of the others of the group.

    Args:
      rewards: by episode, the rewards of its steps; for every counted episode.
    """
    rows = {}
    for group in counted_groups(episodes).values():
        if baseline == "group":
            rows |= dict(zip(group, leave_one_out_loop([returns_loop(rewards[e], discount) for e in group])))
        else:
            first = lambda e: [step.value[0] for step in episodes[e].steps]
            rows |= {e: gae_loop(rewards[e], first(e), [True] * len(rewards[e]), discount, trace)[0] for e in group}
    return {(e, t): value for e, row in rows.items() for t, value in enumerate(row)}


def normalise_loop(values, *, scale, eps=1e-6):
    """Deviations of some numbers from their mean, divided by their standard deviation (ddof 1) plus eps with the scale "std"."""
    values = np.asarray(values, np.float64)
    deviation = values - values.mean()
    return deviation / (values.std(ddof=1) + eps) if scale == "std" and len(values) > 1 else deviation


def gigpo_loop(episodes, *, weight=1.0, discount=0.95, scale="none", reward="outcome", units="episodes"):
    """The advantage of each step by the definition of GiGPO, `{(episode, step): advantage}`; the failed episodes have none."""
    counted = [e for e, episode in enumerate(episodes) if episode.counted]
    groups, anchors = {}, {}  # what is compared: the key of each unit and its number
    for e in counted:
        steps = episodes[e].steps
        rewards = [step.env_reward for step in steps] if reward == "env" else [0.0] * (len(steps) - 1) + [episodes[e].outcome]
        for t, step in enumerate(steps):
            if t == 0 or units == "steps":
                groups.setdefault(episodes[e].group, []).append(((e, t), episodes[e].outcome))
            to_go = sum(discount ** (k - t) * rewards[k] for k in range(t, len(steps)))
            anchors.setdefault((episodes[e].group, step.state), []).append(((e, t), to_go))
    compare = lambda units: {
        key: x for unit in units.values() for (key, _), x in zip(unit, normalise_loop([v for _, v in unit], scale=scale))
    }
    of_episode, of_step = compare(groups), compare(anchors)
    return {(e, t): of_episode[e, 0] + weight * x for (e, t), x in of_step.items()}


def sibling_sets(episodes) -> dict:
    """The children of every node, `{(group, sibling id): {segment id: value}}`, of the counted steps with a known value."""
    sets = {}
    for episode in episodes:
        for step in episode.steps if episode.counted else ():
            if np.isfinite(step.segment_value):
                sets.setdefault((episode.group, step.sibling_id), {})[step.segment_id] = step.segment_value
    return sets


def sharing(episodes, e, t) -> float:
    """1 / the number of counted episodes that share step t of episode e."""
    mine = (episodes[e].group, episodes[e].steps[t].node_id)
    through = [o for o in episodes if o.counted and any((o.group, step.node_id) == mine for step in o.steps)]
    return 1.0 / len(through)


def tree_loop(episodes, advantage) -> dict:
    """Advantage and weight of each step of the counted episodes, `{(e, t): (A, w)}`; `advantage(step, values of its siblings) -> A or None`."""
    sets, found = sibling_sets(episodes), {}
    for e, episode in enumerate(episodes):
        for t, step in enumerate(episode.steps if episode.counted else ()):
            children = list(sets.get((episode.group, step.sibling_id), {}).values())
            a = advantage(step, np.array(children)) if np.isfinite(step.segment_value) else None
            found[e, t] = (0.0, 0.0) if a is None else (a, sharing(episodes, e, t))
    return found


def vine_loop(episodes, *, segments=False) -> dict:
    """Advantage of each step of the counted episodes from `mc_value`, `{(e, t): A}`; with `segments` all steps of a segment have that of its start."""
    found = {}
    for e, episode in enumerate(episodes):
        values = [step.mc_value for step in episode.steps] + [episode.outcome]
        start = None
        for t in range(len(episode.steps) if episode.counted else 0):
            start = t if np.isfinite(values[t]) else start
            end = next(i for i in range(t + 1, len(values)) if np.isfinite(values[i]))
            known = start is not None if segments else np.isfinite(values[t])
            found[e, t] = values[end] - values[start] if known else 0.0
    return found
