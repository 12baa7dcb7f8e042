"""Training loops in the arena: a tabular softmax policy learns from the same credit methods, losses and kernels as a language model.

    play → (filter) → batch → signals → (discriminator) → credit → (critic) → policy → (PRM)

One iteration plays G groups of n episodes and updates the policy on them. The whole run is one compiled program, mapped over seeds and
learning rates. With `Settings.record`, each iteration also returns the gradient that the credit implies and the credit of every step.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stepreward.arena import exact, labels, signals, tables
from stepreward.arena.arms import Arm
from stepreward.arena.play import Episodes, chain, entropy_branch, handover, levels_of, to_batch, tree
from stepreward.arena.signals import Moment
from stepreward.arena.task import SUBGOALS, Task
from stepreward.batch import Batch
from stepreward.credit import Credit, make
from stepreward.credit.base import token_mask
from stepreward.credit.filters import Filter
from stepreward.credit.outcome import others_outcome
from stepreward.credit.schedules import Linear, PairAccuracy, Schedule, Success
from stepreward.kernels import group_statistics, ppo_clip

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all arms share; hashable.

    Attributes:
      groups, size: G groups of n episodes an iteration.
      iterations: of a run.
      epochs: updates of the policy on each batch, on all of it.
      optimizer: of the policy: "adam", with clipping by global norm, as in the trainer; or "sgd", plain gradient descent.
      critic_rate, critic_epochs, discriminator_rate: of these tables; the PRM has the policy's rate.
      explored: groups that are played with the first policy to train an estimator, before the run.
      estimator_rate, estimator_epochs: of the estimator, in mini-batches of as many episodes as an iteration has.
      record: whether each iteration returns `Record`.
      learns: whether the policy learns; if not, only what is beside it does.
    """

    groups: int = 2
    size: int = 8
    iterations: int = 60
    epochs: int = 2
    optimizer: str = "adam"
    critic_rate: float = 0.1
    critic_epochs: int = 4
    discriminator_rate: float = 0.1
    explored: int = 32
    estimator_rate: float = 0.05
    estimator_epochs: int = 10
    record: bool = False
    learns: bool = True

    @property
    def episodes(self) -> int:
        return self.groups * self.size


class Policies(NamedTuple):
    """Logits `[S, A]`: of the policy that learning starts from, of the one that it goes on with, and of one that was trained elsewhere."""

    start: Array
    now: Array
    trained: Array


class Record(NamedTuple):
    """What one iteration says of its credit.

    Attributes:
      gradient: `[S, A]`, the policy gradient of the batch: the mean over episodes of Σ_t w·A·∇log π.
      step_reward, step_advantage, exact: `[E, T]`; exact is A^π of the policy that played.
      mask: bool `[E, T]`, the steps that count and that the policy took.
      new_log_ratio: `[E, T]`, log π_new − log π_old of RLOO's gradient step on this batch; see `measure.implicit_update`.
    """

    gradient: Array
    step_reward: Array
    step_advantage: Array
    exact: Array
    mask: Array
    new_log_ratio: Array


class Trace(NamedTuple):
    """A run: exact success before each iteration, `[I]`; environment steps of each, `[I]`; the last logits; and the records, or None."""

    success: Array
    cost: Array
    logits: Array
    record: Record | None


def run(arm: Arm, settings: Settings, task: Task, policies: Policies, rate: Array, prm_rate: Array, seed: Array) -> Trace:
    """Runs an arm on a task, once for each lane.

    Args:
      task: its arrays are traced, so tasks of one shape share a program.
      policies: the same for all lanes.
      rate, prm_rate: float32 `[lanes]`.
      seed: int32 `[lanes]`.

    Returns:
      Arrays with a leading axis of lanes.
    """
    return compiled(arm, settings, bool(task.horizon < 6), task, policies, jnp.asarray(rate), jnp.asarray(prm_rate), jnp.asarray(seed))


# Most of the time of a short run is compilation: with this level it takes two thirds of the time, and the program is as fast.
@partial(jax.jit, static_argnums=(0, 1, 2), compiler_options={"xla_backend_optimization_level": 1})
def compiled(arm, settings, short, task, policies, rate, prm_rate, seed):
    one = lambda rate, prm_rate, seed: _lane(
        arm, settings, 1 if short else task.max_steps, task, policies, rate, prm_rate, jax.random.key(seed)
    )
    return jax.vmap(one)(rate, prm_rate, seed)


def _lane(arm: Arm, settings: Settings, least_horizon: int, task: Task, policies: Policies, rate, prm_rate, key) -> Trace:
    begin_key, run_key = jax.random.split(key)
    carry = _begin(arm, settings, task, policies, begin_key)
    start_success = exact.values(task, jax.nn.log_softmax(policies.start), task.success.astype(jnp.float32)).value
    context = (arm, settings, least_horizon, task, policies, start_success, rate, prm_rate)
    step = lambda carry, at: _iteration(context, carry, *at)
    keys = jax.random.split(run_key, settings.iterations)
    carry, (success, cost, record) = jax.lax.scan(step, carry, (jnp.arange(settings.iterations), keys))
    return Trace(success, cost, carry["policy"].table, record)


def _begin(arm: Arm, settings: Settings, task: Task, policies: Policies, key: Array) -> dict[str, Any]:
    """What an iteration hands to the next one."""
    method, carry = (
        arm.method,
        {"policy": tables.fresh(policies.now, tables.OPTIMIZERS[settings.optimizer]), "recent": jnp.full(10, jnp.nan)},
    )
    shape = (settings.episodes, task.max_steps)
    if method.has_critic:
        size = (task.max_steps, task.num_states) if arm.critic_by_step else (task.num_states,)
        carry["critic"] = tables.fresh(jnp.zeros(size))
    if method.has_prm:
        carry["prm"] = tables.fresh(policies.now, tables.PRM)
        if arm.prm_replay:
            empty = jax.eval_shape(lambda: _example(arm, settings, task, policies, key))
            ring = jax.tree.map(lambda x: jnp.zeros((arm.prm_replay, *x.shape), x.dtype), empty)
            carry["replay"] = (ring, jnp.zeros((arm.prm_replay, *shape), jnp.int32), jnp.zeros(arm.prm_replay, bool))
    if method.has_progress:
        carry["estimator"] = _estimator(arm, settings, task, policies, key)
    if "discriminator" in method.losses:
        carry["discriminator"] = tables.fresh(jnp.zeros(policies.now.shape))
    if "automaton_distance" in method.requires:
        initial = signals.automaton_distances(task)
        carry["distances"] = labels.Distances(initial, jnp.float32(method.eta), jnp.int32(0), jnp.zeros(SUBGOALS + 1, jnp.int32))
    return carry


def _estimator(arm: Arm, settings: Settings, task: Task, policies: Policies, key: Array) -> Array:
    """The table of an estimator that was trained on episodes of the first policy, as before reinforcement learning."""
    log_policy = jax.nn.log_softmax(policies.start)
    play_key, order_key = jax.random.split(key)
    episodes = chain(task, jnp.exp(log_policy), play_key, settings.explored, settings.size)
    batch = with_labels(arm.method, to_batch(episodes, log_policy), episodes, settings.explored)
    groups, parts = settings.groups, settings.explored // settings.groups
    by_part = lambda x: x.reshape(parts, groups * settings.size, *x.shape[1:])
    batches = jax.tree.map(by_part, batch)
    count = groups * settings.size
    own = lambda ids, size: jnp.where(ids >= 0, ids % size, -1)
    batches = batches.replace(group_id=batches.group_id % groups, step_id=own(batches.step_id, count * task.max_steps))
    data = tables.shuffled_groups(order_key, (batches, by_part(episodes.state)), parts)
    batches, states = jax.tree.map(lambda x: x[:, 0], data)
    learner = tables.fresh(jnp.zeros(policies.start.shape))
    return tables.train_estimator(learner, arm.method, batches, states, settings.estimator_rate, settings.estimator_epochs).table


def with_labels(method, batch: Batch, episodes: Episodes, groups: int) -> Batch:
    """Adds the labels that the method's estimator learns from: those of SPA, of ProgRM, or of AgentPRM from plain episodes."""
    if not method.label_signals:
        return batch
    if method.label_signals == {"others_outcome"}:
        return batch.with_signals(others_outcome=others_outcome(batch))
    by_group = lambda x: x.reshape(groups, -1, *x.shape[1:])
    code = by_group(episodes.state * 4 + episodes.action)
    if method.name == "progrm":
        found = jax.vmap(labels.lcs_labels)(code, by_group(batch.step_mask.sum(axis=1)), by_group(batch.success))
    else:
        pooled = partial(labels.pooled_labels, discount=method.label_discount)
        found = jax.vmap(pooled)(code, by_group(batch.step_mask), by_group(batch.outcome))
    return batch.with_signals(progress_label=found.reshape(batch.step_mask.shape))


def _example(arm: Arm, settings: Settings, task: Task, policies: Policies, key: Array) -> Batch:
    """A batch of the shape that the PRM keeps."""
    batch = to_batch(chain(task, policies.now, key, settings.groups, settings.size), policies.now)
    kept = {"log_prob_initial": batch.log_prob_old, "anchor_id": jnp.zeros(batch.step_mask.shape, jnp.int32)}
    return batch.with_signals(**{name: kept[name] for name in arm.method.prm_signals})


def _prm_data(batch: Batch, method) -> Batch:
    """What the PRM keeps of a batch."""
    return batch.replace(signals={name: batch.signals[name] for name in sorted(method.prm_signals)})


def _iteration(context, carry: dict[str, Any], number: Array, key: Array):
    arm, settings, least_horizon, task, policies, start_success, rate, prm_rate = context
    method, carry = arm.method, dict(carry)
    play_key, signal_key, learn_key = jax.random.split(key, 3)
    log_policy, start = jax.nn.log_softmax(carry["policy"].table), jax.nn.log_softmax(policies.start)
    found = exact.values(task, log_policy)
    scheduled = lambda accuracy: {
        name: schedule_value(_faded(arm, settings, schedule), number, carry["recent"], accuracy)
        for name, schedule in method.coefficients.items()
    }
    episodes = _play(arm, settings, least_horizon, task, log_policy, scheduled(0.5), play_key)
    batch = filtered(method.filter, to_batch(episodes, log_policy), settings.groups)
    moment = Moment(task, episodes, batch, log_policy, start, jax.nn.log_softmax(policies.trained), found, start_success, signal_key)
    cost = episodes.cost + (signals.branch_steps(moment, method) if method.strategy == "restore" else 0.0)

    batch = batch.with_signals(
        **{
            name: signals.PROVIDED[name](moment, method)
            for name in sorted(method.requires | method.label_signals)
            if name in signals.PROVIDED
        }
    )
    batch, carry = _auxiliary_signals(arm, settings, task, batch, episodes, start_success, carry, scheduled, learn_key)
    credit = method.credit(batch)
    if arm.shuffled:
        credit = shuffle(credit, batch, signal_key)

    if method.has_critic:
        carry["critic"] = tables.train_critic(
            carry["critic"], method, batch, episodes, credit, settings.critic_rate, settings.critic_epochs
        )
    if "distances" in carry:
        initial = signals.automaton_distances(task)
        theta = initial.sum() if method.theta is None else jnp.float32(method.theta)
        reached = jnp.where(batch.step_mask, batch.signals["automaton_next"], -1)
        carry["distances"] = labels.adapt(carry["distances"], initial, reached, batch.success, every=method.every, theta=theta)
    record = _record(arm, task, batch, episodes, credit, log_policy, found) if settings.record else None
    if settings.learns:
        carry["policy"] = improve(carry["policy"], batch, episodes.state, credit, rate, settings)
    if method.has_prm and not method.prm_frozen:
        carry = _train_prm(arm, batch, episodes.state, carry, prm_rate, learn_key)
    mean = (batch.success & batch.episode_mask).sum() / jnp.maximum(batch.episode_mask.sum(), 1)
    carry["recent"] = jnp.append(carry["recent"][1:], mean)
    success = (task.start * found.value[0]).sum()  # the outcome of a registered task is its success
    return carry, (success, cost, record)


def _play(arm: Arm, settings: Settings, least_horizon: int, task: Task, log_policy: Array, coefficients: dict, key: Array) -> Episodes:
    method, policy, size = arm.method, jnp.exp(log_policy), settings.size
    options, groups = method.strategy_options, settings.groups
    if method.strategy == "tree":
        levels = levels_of(options["branching"], size, least_horizon, options["segment_steps"])
        return tree(task, policy, key, groups, size, levels, options["segment_steps"])
    if method.strategy == "entropy_branch":
        n0 = options["n0"] or -(-size // 2)
        return entropy_branch(task, policy, key, groups, size, n0=n0, p=options["p"], w=options["w"], beam=options["beam"])
    if method.strategy == "handover":
        share = coefficients.get("share", method.share)
        return handover(task, policy, jnp.exp(exact.expert(task)), share, key, groups, size)
    return chain(task, policy, key, groups, size)


def _auxiliary_signals(arm, settings, task, batch: Batch, episodes: Episodes, start_success, carry, scheduled, key):
    """The batch with what the tables say, and the scheduled coefficients; and the tables that learn before the credit is computed."""
    method, found = arm.method, {}
    if method.has_critic:
        found["value"] = jnp.where(batch.action_mask, tables.critic_values(carry["critic"].table, episodes), 0.0)
    if method.has_prm:
        found["log_prob_prm"] = tables.log_probs(carry["prm"].table, batch, episodes.state)
    if method.has_progress:
        found["progress"] = carry["estimator"][episodes.state, episodes.action]
    if "distances" in carry:
        found["automaton_distance"] = jnp.stack([signals.automaton_distances(task), carry["distances"].distance])
        found["automaton_eta"] = carry["distances"].eta
    batch = batch.with_signals(**found)
    accuracy = 0.5
    if method.has_prm:
        looked = batch.with_signals(**{f"scheduled_{name}": value for name, value in scheduled(0.5).items()})
        metrics = method.prm_loss(looked.signals["log_prob_prm"], looked)[1]
        accuracy = jnp.where(metrics["pairs"] > 0, metrics["pair_accuracy"], 0.5)
    batch = batch.with_signals(**{f"scheduled_{name}": value for name, value in scheduled(accuracy).items()})
    if "discriminator" in carry:
        expert = exact.expert(task)
        shown = chain(task, jnp.exp(expert), key, settings.groups, settings.size)
        shown_batch = to_batch(shown, jnp.zeros(carry["discriminator"].table.shape))
        learner = tables.train_discriminator(
            carry["discriminator"], method, batch, episodes.state, shown_batch, shown.state, settings.discriminator_rate
        )
        carry = {**carry, "discriminator": learner}
        batch = batch.with_signals(discriminator_logit=learner.table[episodes.state, episodes.action])
    return batch, carry


def _train_prm(arm: Arm, batch: Batch, state: Array, carry: dict[str, Any], rate: Array, key: Array) -> dict[str, Any]:
    """The PRM learns from this batch and the replayed ones, after it has been set to the policy, if the arm does so."""
    method, learner = arm.method, carry["prm"]
    if arm.prm_resync:
        learner = learner._replace(table=carry["policy"].table)
    coefficients = {k: v for k, v in batch.signals.items() if k.startswith("scheduled_")}
    kept = _prm_data(batch, method)
    batches, states, valid = jax.tree.map(lambda x: x[None], (kept, state, jnp.bool_(True)))
    if arm.prm_replay:
        joined = jax.tree.map(lambda new, old: jnp.concatenate([new, old]), (batches, states, valid), carry["replay"])
        carry = {**carry, "replay": jax.tree.map(lambda x: x[: arm.prm_replay], joined)}
        batches, states, valid = joined
    repeated = {k: jnp.broadcast_to(v, (len(valid), *jnp.shape(v))) for k, v in coefficients.items()}
    batches = batches.replace(signals={**batches.signals, **repeated})
    return {**carry, "prm": tables.train_prm(learner, method, batches, states, valid, rate, key)}


def improve(learner: tables.Learner, batch: Batch, state: Array, credit: Credit, rate: Array, settings: Settings) -> tables.Learner:
    """Updates of the policy on one batch by the clipped loss, with the trainer's defaults: step ratio, mean over steps."""

    def loss(logits):
        return ppo_clip(
            tables.log_probs(logits, batch, state), batch.log_prob_old, credit.advantage, token_mask(batch), step_id_RxL=batch.step_id,
            num_episodes=batch.num_episodes, max_steps=batch.max_steps, ratio="step", aggregation="step-mean", weight_RxL=credit.token_weight,
        )[0]  # fmt: skip

    wanted, made = batch.episode_mask.any(), tables.OPTIMIZERS[settings.optimizer]
    update = lambda _, found: tables.descend(found, jax.grad(loss)(found.table), rate, wanted, made)
    return jax.lax.fori_loop(0, settings.epochs, update, learner)


def gradient_of(credit_RxL: Array, weight_RxL: Array | None, batch: Batch, state: Array, logits: Array) -> Array:
    """`[S, A]`: the policy gradient that advantages imply, Σ w·A·∇log π over all steps, divided by the number of episodes."""
    weight = token_mask(batch) if weight_RxL is None else jnp.where(token_mask(batch), weight_RxL, 0.0)
    objective = lambda logits: (weight * credit_RxL * tables.log_probs(logits, batch, state)).sum() / batch.num_episodes
    return jax.grad(objective)(logits)


def shuffle(credit: Credit, batch: Batch, key: Array) -> Credit:
    """The credit with its step advantages in random order over all steps of the batch."""
    mask = batch.action_mask.reshape(-1)
    places = jnp.argsort(~mask, stable=True)  # the steps that count come first
    order = jnp.argsort(jnp.where(mask[places], jax.random.uniform(key, mask.shape), 2.0))
    moved = lambda x: jnp.zeros_like(x.reshape(-1)).at[places].set(x.reshape(-1)[places[order]]).reshape(x.shape)
    return credit.replace(
        advantage=moved(credit.advantage), step_reward=moved(credit.step_reward), step_advantage=moved(credit.step_advantage)
    )


def filtered(kind: str, batch: Batch, groups: int) -> Batch:
    """The batch without the groups that a method's filter drops (`credit.filters.Filter`): "none", "variance" or "top_share"."""
    if kind == "none":
        return batch
    std_E = group_statistics(batch.outcome, batch.group_id, batch.episode_mask, num_groups=batch.num_episodes, ddof=1)[1]
    if kind == "variance":
        kept_E = std_E > 0
    elif kind == "top_share":
        count = max(1, int(Filter().share * groups + 1e-9))
        std_G = std_E.reshape(groups, -1)[:, 0]
        kept_G = jnp.zeros(groups, bool).at[jnp.argsort(-std_G, stable=True)[:count]].set(True)
        kept_E = kept_G[batch.group_id]
    else:
        raise ValueError(f"the arena has no filter {kind!r}")
    kept_ExT = kept_E[:, None] & batch.action_mask
    return batch.replace(episode_mask=batch.episode_mask & kept_E, action_mask=kept_ExT, step_id=jnp.where(kept_ExT, batch.step_id, -1))


def schedule_value(schedule: Schedule, iteration: Array, recent: Array, pair_accuracy: Array | float) -> Array:
    """The value of a scheduled coefficient, traced: what `schedule(Standing(...))` is.

    Args:
      recent: `[10]`, the training success of the last iterations, NaN before the first one.
    """
    if isinstance(schedule, Linear):
        share = iteration / schedule.iterations
    elif isinstance(schedule, PairAccuracy):
        share = 2 * jnp.asarray(pair_accuracy) - 1
    elif isinstance(schedule, Success) and schedule.iterations <= len(recent):
        mean = jnp.nanmean(recent[-schedule.iterations :])
        share = jnp.where(jnp.isnan(mean), 0.0, (mean - schedule.low) / (schedule.high - schedule.low))
    else:
        raise ValueError(f"the arena does not follow the schedule {schedule}")
    return jnp.float32(schedule.start) + jnp.float32(schedule.end - schedule.start) * jnp.clip(share, 0.0, 1.0)


def _faded(arm: Arm, settings: Settings, schedule: Schedule) -> Schedule:
    return dataclasses.replace(schedule, iterations=max(1, settings.iterations // 2)) if arm.fades else schedule


def _record(arm: Arm, task: Task, batch: Batch, episodes: Episodes, credit: Credit, log_policy: Array, found: exact.Values) -> Record:
    at_steps = found.advantage[np.arange(task.max_steps), episodes.state, episodes.action]
    gradient = gradient_of(credit.advantage, credit.token_weight, batch, episodes.state, log_policy)
    outcome = to_rloo(batch)
    update = gradient_of(outcome, None, batch, episodes.state, log_policy)
    small = 1e-3 / jnp.maximum(jnp.linalg.norm(update), 1e-12)
    change = tables.log_probs(log_policy + small * update, batch, episodes.state) - batch.log_prob_old
    return Record(gradient, credit.step_reward, credit.step_advantage, at_steps, token_mask(batch), change / 1e-3)


def to_rloo(batch: Batch) -> Array:
    """`[E, T]`: RLOO's advantages of the batch."""
    return make("rloo").credit(batch.replace(signals={})).advantage
