"""The contract of every credit method, checked on all registered methods and many options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import SIGNALS, STEP_SIGNALS, by_step, pack, random_episodes

from stepreward.credit import make, names, token_mask

METHODS = {name: make(name) for name in names()} | {
    "istar-released": make("istar", variant="released"),
    "istar-released-zero": make("istar", variant="released", singleton="zero"),
    "istar-grpo-token": make("istar", episode_advantage="grpo", granularity="token"),
    "istar-token-first": make("istar", granularity="token", baseline="first_seen", step_advantage="centre"),
    "istar-merged": make("istar", merge="reward", episode_advantage="dr_grpo", baseline="episode_mean"),
    "istar-shuffled": make("istar", step_reward="shuffled", step_norm="std"),
    "istar-state-pairs": make("istar", variant="state_pairs"),
    "istar-uniform": make("istar", step_reward="uniform", step_advantage="rloo", singleton="raw"),
    "istar-initial": make("istar", reference="initial", alpha_scaled=True, baseline="episode_mean"),
    "istar-first-zscore": make("istar", baseline="first_seen", episode_advantage="reinforce_plus_plus_baseline"),
    "grpo-raw": make("grpo", singleton="raw"),
    "ppo-env": make("ppo", reward="env", discount=0.9, trace=0.7),
    "step_ppo-env": make("step_ppo", reward="env", discount=0.9, trace=0.7, whiten=False),
    "ppo-decay": make("ppo", observation="decay", discount=0.9, trace=0.7),
    "ppo-kl": make("ppo", kl_in_reward=True),
    "spa-released": make("spa", variant="released"),
    "spa-released-zero": make("spa", variant="released", singleton="zero"),
    "prime-released": make("prime", variant="released"),
    "spa-enforced": make("spa", clamp=True, enforce_sum=True, kl_in_reward=True),
    "spa-shuffled": make("spa", step_reward="shuffled"),
    "spa-uniform": make("spa", step_reward="uniform"),
    "spa-terminal": make("spa", step_reward="terminal"),
    "spa-every-step": make("spa", variant="every_step"),
    "spa-group": make("spa", baseline="group"),
    "spa-token": make("spa", level="token"),
    "rbt-bags": make("rbt", bag_size=2, bag_reward="env"),
    "rudder-critic": make("rudder", baseline="critic", residual="uniform"),
    "rudder-none": make("rudder", residual="none"),
    "progrm-cross-entropy": make("progrm", objective="cross_entropy"),
    "agentprm-critic": make("agentprm", baseline="critic", reward="env", initial=0.3, beta=0.5, residual="uniform"),
    "agentprm_mc-inverse": make("agentprm_mc", labels_from="inverse", variant="released"),
    "gigpo-released": make("gigpo", variant="released"),
    "gigpo-env": make("gigpo", reward="env", scale="std"),
    "hgpo-released": make("hgpo", variant="released"),
    "hgpo-kept": make("hgpo", zero_levels="keep", scale="std", base_group=True, alpha=0.0),
    "turn_return-pooled": make("turn_return", baseline="pooled", scale="std", discount=0.9),
    "turn_return-index_mean": make("turn_return", baseline="index_mean", scale="std"),
    "turn_return-rtg_loo": make("turn_return", baseline="rtg_loo", weight=0.5),
    "mt_grpo-before": make("mt_grpo", without_result="before", turn_weight=0.5, outcome_weight=0.7),
    "igpo-paper": make("igpo", variant="paper", discount=0.9),
    "igpo-joint": make("igpo", variant="paper", normalise="joint", gain="prob_diff", weight=0.5),
    "rlvmr-released": make("rlvmr", variant="released"),
    "rlvmr-rloo": make("rlvmr", episode_advantage="rloo", alpha=0.3),
    "ppr-group": make("ppr", baseline="group", final="renorm", whiten=False),
    "ppr-kl": make("ppr", kl_in_reward=True, discount=0.9, trace=0.7),
    "ard-hybrid": make("ard", shaping="hybrid", discount=0.9, trace=0.7),
    "ard-released": make("ard", variant="released", shaping="hybrid", whiten=False),
    "ard-group": make("ard", baseline="group", whiten=False, weight=0.5),
    "salt-rloo": make("salt", episode_advantage="rloo"),
    "hcapo-index": make("hcapo", scope="index", smooth=True, ddof=1, positive=False),
    "progress_advantage-min": make("progress_advantage", tokens="min", weight=0.5, episode_advantage="none"),
    "progress_advantage-last": make("progress_advantage", tokens="last", episode_advantage="grpo"),
    "progress_advantage-sum": make("progress_advantage", tokens="sum", beta=0.1),
    "gigpo-undiscounted": make("gigpo", discount=1.0, scale="std", weight=0.5),
    "vineppo-released": make("vineppo", variant="released"),
    "spo-unmasked": make("spo", probability_mask=False),
    "spo-tree": make("spo", form="tree", probability_mask=True, below=0.4),
    "spo-tree-grpo": make("spo", form="tree", scale="grpo"),
    "treerpo-centred": make("treerpo", scale="none", tau=0.3),
    "treerpo-population": make("treerpo", ddof=0, tau=0.0),
    "treerpo-renormalised": make("treerpo", renormalise=True),
    "arpo-hard": make("arpo", advantage="hard", ddof=0),
    "arpo-raw": make("arpo", advantage="hard", singleton="raw"),
    "stepagent-airl": make("stepagent", form="airl", outcome_weight=0.5, discount=0.9, trace=0.7),
    "stepagent-group": make("stepagent", form="log", baseline="group", whiten=False),
    "reward_phasing-env": make("reward_phasing", reward="env", phase=0.3, kl_in_reward=True),
    "temporal_phasing-rloo": make("temporal_phasing", learner="rloo"),
}
RAW = {"rlvmr-released", "istar-uniform", "grpo-raw", "istar-released", "spa-released", "gigpo-released", "arpo-raw"}
# They credit the outcome itself, and compare it with a critic, or from a step on that not all of the group reached; or they discount
# it by the number of steps that are left, which differs within a group.
# A reward that is the environment's or an estimator's does not read the outcome at all.
NOT_CENTRED = RAW | {
    "ppo",
    "starpo_s",
    "step_ppo",
    "ppo-decay",
    "ppo-kl",
    "spa-enforced",
    "spa-every-step",
    "spa-uniform",
    "spa-terminal",
    "rudder",
    "rudder-critic",
    "agentprm-critic",
    "gigpo",
    # Values of states are signals, which the test leaves as they are.
    "vineppo",
    "vineppo-released",
    "spo",
    "spo-unmasked",
    "hgpo",
    "hgpo-kept",
    "turn_return-pooled",
    "turn_return-rtg_loo",
    "igpo",
    "igpo-joint",
    "ppr",
    "ppr-group",
    "ppr-kl",
    "stepagent-airl",
    "reward_phasing",
    "temporal_phasing",
    "hcapo",
    "hcapo-index",
    "ard",
    "ard-hybrid",
    "ard-released",
    "ard-group",
}
CRITIC = [name for name in METHODS if METHODS[name].has_critic]
ESTIMATOR = [name for name in METHODS if METHODS[name].has_progress]
each_method = pytest.mark.parametrize("name", METHODS)
each_critic = pytest.mark.parametrize("name", CRITIC)
each_estimator = pytest.mark.parametrize("name", ESTIMATOR)

FAILED = 5


@pytest.fixture(scope="module")
def episodes():
    """Groups of 4, 3, 4 and 1; group 2 has equal outcomes, group 3 is a singleton, episode 5 failed."""
    return random_episodes(np.random.default_rng(1), groups=(4, 3, 4, 1), failed=(FAILED,), uniform=(2,))


@pytest.fixture(scope="module")
def batch(episodes):
    return pack(episodes)


@pytest.fixture(scope="module")
def credits(batch):
    return credit_of_every_method(batch)


def credit_of_every_method(batch):
    return {name: method.credit(batch) for name, method in METHODS.items()}


# All methods in one program, so that XLA compiles what they share once; and a batch of the padded shape compiles
# nothing new.
run = jax.jit(
    credit_of_every_method,
    compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)


def assert_same_by_step(credit, batch, other, other_batch):
    """The advantage of every token and the step-level arrays agree, wherever the tokens lie."""
    ours, theirs = by_step(credit.advantage, batch), by_step(other.advantage, other_batch)
    assert set(ours) == set(theirs)
    for key in ours:
        np.testing.assert_allclose(ours[key], theirs[key], atol=2e-5)
    assert (credit.token_weight is None) == (other.token_weight is None)
    if credit.token_weight is not None:
        ours, theirs = by_step(credit.token_weight, batch), by_step(other.token_weight, other_batch)
        for key in ours:
            np.testing.assert_allclose(ours[key], theirs[key], atol=1e-6)
    episodes, steps = (min(a, b) for a, b in zip(credit.step_reward.shape, other.step_reward.shape))
    for level in ("step_reward", "step_advantage"):
        a, b = np.asarray(getattr(credit, level)), np.asarray(getattr(other, level))
        np.testing.assert_allclose(a[:episodes, :steps], b[:episodes, :steps], atol=2e-5)
        for array in (a, b):  # beyond the common part there is only padding
            assert not array[episodes:].any() and not array[:, steps:].any()


@each_method
def test_zero_off_the_mask(name, batch, credits):
    credit = credits[name]
    off = ~np.asarray(token_mask(batch))
    assert off.any() and not np.asarray(credit.advantage)[off].any()
    assert not np.asarray(credit.advantage)[~np.asarray(batch.action_mask)].any()
    uncounted = ~np.asarray(batch.step_mask & batch.episode_mask[:, None])
    assert not np.asarray(credit.step_reward)[uncounted].any()
    assert not np.asarray(credit.step_advantage)[uncounted].any()
    if credit.returns is not None:
        assert not np.asarray(credit.returns)[off].any()


@each_method
def test_the_weights_of_tokens_are_those_of_a_loss(name, batch, credits):
    """None, or finite, at least 0, 0 off the mask, and above 0 somewhere; whether there are any is known before a batch is."""
    weight = credits[name].token_weight
    assert METHODS[name].weights_tokens == (weight is not None)
    if weight is not None:
        off = ~np.asarray(token_mask(batch))
        assert weight.shape == batch.tokens.shape and weight.dtype == jnp.float32
        assert np.isfinite(weight).all() and (np.asarray(weight) >= 0).all() and not np.asarray(weight)[off].any() and weight.max() > 0


@each_method
def test_gives_some_credit_and_is_finite(name, credits):
    # The batch holds a group of equal outcomes, a singleton, a failed episode, rows without an action and padding of
    # every level.
    assert np.abs(credits[name].advantage).max() > 0.01
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(credits[name]))


@each_method
def test_shapes_and_types(name, batch, credits):
    credit = credits[name]
    assert credit.advantage.shape == batch.tokens.shape and credit.advantage.dtype == jnp.float32
    assert credit.step_reward.shape == credit.step_advantage.shape == batch.step_mask.shape
    assert all(value.shape == () for value in credit.metrics.values())


@each_method
def test_both_packings_agree(name, episodes, batch, credits):
    other = pack(episodes, "step")
    assert_same_by_step(credits[name], batch, run(other)[name], other)


@each_method
def test_padding_changes_nothing(name, episodes, batch, credits):
    tight = pack(episodes, padded=False)
    assert tight.tokens.shape[0] < batch.tokens.shape[0] and tight.tokens.shape[1] < batch.tokens.shape[1]
    assert tight.num_episodes < batch.num_episodes and tight.max_steps < batch.max_steps
    credit = run(tight)[name]
    assert_same_by_step(credits[name], batch, credit, tight)
    for key, value in credit.metrics.items():
        np.testing.assert_allclose(value, credits[name].metrics[key], rtol=1e-4, atol=1e-5, err_msg=key)


@each_method
def test_row_order_changes_nothing(name, episodes, batch, credits):
    order = np.random.default_rng(2).permutation(batch.tokens.shape[0])
    for packing in ("episode", "step"):
        other = pack(episodes, packing, row_order=order)
        assert_same_by_step(credits[name], batch, run(other)[name], other)


@each_method
def test_relabelled_groups_change_nothing(name, episodes, batch, credits):
    other = pack(episodes, group_of={0: 9, 1: 3, 2: 0, 3: 13}.get)
    assert_same_by_step(credits[name], batch, run(other)[name], other)


@each_method
def test_groups_do_not_leak(name, episodes, batch, credits):
    """Changing one group leaves the others alone; whitening over the batch moves them by one common affine map."""
    method = METHODS[name]
    changed_E = (np.asarray(batch.group_id) == 0) & (np.arange(batch.num_episodes) < 4)
    changed = batch.replace(
        outcome=jnp.where(changed_E, batch.outcome**2 + 1, batch.outcome),
        env_reward=jnp.where(changed_E[:, None], batch.env_reward * 2, batch.env_reward),
        executed=batch.executed ^ changed_E[:, None],
    )
    if getattr(method, "step_norm", "none") == "none":  # the option rescales by the rewards of the batch, by definition
        episode_of = np.asarray(batch.step_id) // batch.max_steps
        in_group = (episode_of >= 0) & changed_E[np.maximum(episode_of, 0)]
        signals = {k: jnp.where(in_group, 1.5 * batch.signals[k], batch.signals[k]) for k in SIGNALS}
        bent = lambda x: -x * (1 + jnp.abs(x))  # with another order, since two siblings divided by their std differ in nothing else
        signals |= {k: jnp.where(changed_E[:, None], bent(batch.signals[k]), batch.signals[k]) for k in STEP_SIGNALS}
        changed = changed.with_signals(**signals)
    before, after = np.asarray(credits[name].step_advantage), np.asarray(run(changed)[name].step_advantage)
    counted = np.asarray(batch.step_mask & batch.episode_mask[:, None])
    others = counted & ~changed_E[:, None]
    assert np.abs(before - after)[counted & changed_E[:, None]].max() > 1e-3
    by_definition = ("reinforce_plus_plus", "reinforce_plus_plus_baseline", "prime", "prime-released", "istar-merged")
    whitens = name in by_definition or getattr(method, "whiten", False)
    if name == "istar-first-zscore":  # its outcome part whitens, its step part does not: compare the step parts
        outcome = "reinforce_plus_plus_baseline"
        before = before - np.asarray(credits[outcome].step_advantage)
        after = after - np.asarray(run(changed)[outcome].step_advantage)
    if whitens:
        slope, intercept = np.polyfit(before[others], after[others], 1)
        assert slope > 0
        before = slope * before + intercept
    np.testing.assert_allclose(before[others], after[others], atol=3e-5)


def spoil_failed(batch):
    of_failed = np.asarray(batch.step_id) // batch.max_steps == FAILED
    at = lambda x: jnp.asarray(x).at[FAILED].set(jnp.nan)
    return batch.replace(
        log_prob_old=jnp.where(of_failed, jnp.nan, batch.log_prob_old),
        outcome=at(batch.outcome),
        env_reward=at(batch.env_reward),
        executed=batch.executed.at[FAILED].set(~batch.executed[FAILED]),
        success=batch.success.at[FAILED].set(~batch.success[FAILED]),
    ).with_signals(
        **{k: jnp.where(of_failed, jnp.nan, batch.signals[k]) for k in SIGNALS},
        **{k: at(batch.signals[k]) for k in STEP_SIGNALS},
    )


@each_method
def test_failed_episodes_change_nothing(name, episodes, batch, credits):
    """Whatever a failed episode holds, even NaN, and whether it is there at all."""
    spoilt = spoil_failed(batch)
    credit = run(spoilt)[name]
    assert_same_by_step(credits[name], batch, credit, spoilt)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(credit))

    without = pack([e for i, e in enumerate(episodes) if i != FAILED])
    a = {(e, s): v for (e, s), v in by_step(credits[name].advantage, batch).items() if e != FAILED}
    b = {(e + (e >= FAILED), s): v for (e, s), v in by_step(run(without)[name].advantage, without).items()}
    assert set(a) == set(b)
    for key in a:
        np.testing.assert_allclose(a[key], b[key], atol=2e-5)


@each_method
def test_batch_of_failed_episodes_gets_no_credit(name, batch):
    nothing = batch.replace(episode_mask=jnp.zeros_like(batch.episode_mask))
    credit = run(nothing)[name]
    assert not np.asarray(credit.advantage).any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(credit))


@pytest.mark.parametrize("name", [name for name in METHODS if name not in NOT_CENTRED])
def test_adding_a_constant_to_all_outcomes_changes_nothing(name, batch, credits):
    shifted = run(batch.replace(outcome=batch.outcome + 5.0))[name]
    np.testing.assert_allclose(credits[name].advantage, shifted.advantage, atol=2e-5)
    np.testing.assert_allclose(credits[name].step_advantage, shifted.step_advantage, atol=2e-5)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_equal_outcomes_give_exactly_zero(name, episodes):
    # 10.3 is no binary fraction: a mean of five of them is off by a rounding, which a division by the std must not blow
    # up.
    batch = pack(episodes, group_of=lambda group: 0)
    batch = batch.replace(outcome=jnp.full_like(batch.outcome, 10.3))
    assert not np.asarray(run(batch)[name].advantage).any()


@each_method
def test_jit_equals_eager(name, batch, credits):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), credits[name], run(batch)[name])


@each_method
def test_no_gradient_flows_through_credit(name, batch):
    def total(outcome, log_prob_old, env_reward, signals):
        inputs = batch.replace(outcome=outcome, log_prob_old=log_prob_old, env_reward=env_reward)
        credit = METHODS[name].credit(inputs.with_signals(**signals))
        return credit.advantage.sum() + credit.step_reward.sum() + credit.step_advantage.sum()

    signals = {k: batch.signals[k] for k in (*SIGNALS, *STEP_SIGNALS, "kl_coef")}
    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(batch.outcome, batch.log_prob_old, batch.env_reward, signals)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].requires])
def test_missing_signal_is_named(name, batch):
    for signal in METHODS[name].requires:
        left = {k: v for k, v in batch.signals.items() if k != signal}
        with pytest.raises(ValueError, match=signal):
            METHODS[name].credit(batch.replace(signals=left))
    left = {k: v for k, v in batch.signals.items() if k not in METHODS[name].requires}
    for held in ({}, left):
        there = ", ".join(sorted(held)) or "none"
        with pytest.raises(ValueError, match=rf"\(it holds: {there}\)"):
            METHODS[name].credit(batch.replace(signals=held))


@each_method
def test_methods_are_hashable_values(name):
    assert hash(METHODS[name]) == hash(type(METHODS[name])(**vars(METHODS[name])))
    assert METHODS[name].name in names()


@pytest.mark.parametrize("name", [name for name in METHODS if not METHODS[name].has_prm])
def test_methods_without_a_prm_have_no_prm_loss(name, batch):
    with pytest.raises(ValueError, match=f"'{METHODS[name].name}' has no process reward model"):
        METHODS[name].prm_loss(batch.log_prob_old, batch)


@each_critic
def test_a_critic_is_read_and_trained_on_action_tokens(name, batch, credits):
    """A critic of tokens at each of them, one of steps at the first of each step; what it says elsewhere is not read."""
    method, counted = METHODS[name], np.asarray(token_mask(batch))
    mask = np.asarray(method.value_mask(batch))
    if method.level == "token":
        np.testing.assert_array_equal(mask, counted)
    else:
        firsts = {key: [1.0] + [0.0] * (len(v) - 1) for key, v in by_step(mask, batch).items() if key[0] != FAILED}
        assert not (mask & ~counted).any()
        assert {k: v for k, v in by_step(mask, batch).items() if k[0] != FAILED} == firsts
    assert "value" in method.requires and credits[name].returns is not None
    unread = batch.with_signals(value=jnp.where(mask, batch.signals["value"], jnp.nan))
    assert_same_by_step(credits[name], batch, run(unread)[name], unread)


def test_without_a_critic_or_an_estimator_their_signals_are_not_asked_for():
    for name, method in METHODS.items():
        assert ("value" in method.requires) == (name in CRITIC)
        assert ("progress" in method.requires) == (name in ESTIMATOR)
        assert not method.label_signals & method.requires


def losses_of_every_estimator(output_ExS, batch):
    """For each method with an estimator `((loss, metrics), gradient)`."""
    return {name: jax.value_and_grad(METHODS[name].progress_loss, has_aux=True)(output_ExS, batch) for name in ESTIMATOR}


run_losses = jax.jit(losses_of_every_estimator)


@pytest.fixture(scope="module")
def losses(batch):
    return losses_of_every_estimator(batch.signals["progress"], batch)


def assert_same_loss(ours, theirs):
    (loss, metrics), gradient = ours
    (other_loss, other_metrics), other_gradient = theirs
    np.testing.assert_allclose(loss, other_loss, rtol=1e-5)
    assert set(metrics) == set(other_metrics)
    for key in metrics:
        np.testing.assert_allclose(metrics[key], other_metrics[key], rtol=1e-5)
    episodes, steps = (min(a, b) for a, b in zip(gradient.shape, other_gradient.shape))
    gradient, other_gradient = np.asarray(gradient), np.asarray(other_gradient)
    np.testing.assert_allclose(gradient[:episodes, :steps], other_gradient[:episodes, :steps], atol=1e-6)
    for array in (gradient, other_gradient):  # beyond the common part there is only padding
        assert not array[episodes:].any() and not array[:, steps:].any()


@each_estimator
def test_the_loss_of_an_estimator_teaches_counted_steps_only(name, batch, losses):
    (loss, metrics), gradient = losses[name]
    counted, gradient = np.asarray(batch.step_mask & batch.episode_mask[:, None]), np.asarray(gradient)
    assert np.isfinite(loss) and loss > 0 and all(np.isfinite(value) for value in metrics.values())
    assert np.isfinite(gradient).all() and gradient[counted].any() and not gradient[~counted].any()
    unread = batch.with_signals(**{k: jnp.where(counted, batch.signals[k], jnp.nan) for k in STEP_SIGNALS})
    assert_same_loss(losses[name], run_losses(unread.signals["progress"], unread)[name])


@each_estimator
def test_packing_and_padding_do_not_change_the_loss_of_an_estimator(name, episodes, batch, losses):
    order = np.random.default_rng(3).permutation(batch.tokens.shape[0])
    others = [
        pack(episodes, "step", row_order=order),
        pack(episodes, group_of={0: 9, 1: 3, 2: 0, 3: 13}.get),
        pack(episodes, padded=False),
    ]
    for other in others:
        assert_same_loss(losses[name], run_losses(other.signals["progress"], other)[name])


@each_estimator
def test_failed_episodes_do_not_change_the_loss_of_an_estimator(name, episodes, batch, losses):
    spoilt = spoil_failed(batch)
    assert_same_loss(losses[name], run_losses(spoilt.signals["progress"], spoilt)[name])
    without = pack([e for i, e in enumerate(episodes) if i != FAILED])
    result, gradient = run_losses(without.signals["progress"], without)[name]
    gradient = jnp.insert(gradient, FAILED, 0.0, axis=0)[:-1]
    assert_same_loss(losses[name], (result, gradient))


@each_estimator
def test_a_batch_of_failed_episodes_teaches_an_estimator_nothing(name, batch):
    nothing = batch.replace(episode_mask=jnp.zeros_like(batch.episode_mask))
    (loss, metrics), gradient = run_losses(batch.signals["progress"], nothing)[name]
    assert loss == 0 and not np.asarray(gradient).any()
    assert all(np.isfinite(value) for value in metrics.values())


@each_estimator
def test_the_loss_of_an_estimator_is_the_same_under_jit(name, batch, losses):
    assert_same_loss(losses[name], run_losses(batch.signals["progress"], batch)[name])


@each_estimator
def test_contributions_read_counted_steps_only(name, batch):
    counted = np.asarray(batch.step_mask & batch.episode_mask[:, None])
    output = batch.signals["progress"]
    contribution = np.asarray(METHODS[name].contributions(output, batch))
    assert contribution.dtype == np.float32 and contribution[counted].any() and not contribution[~counted].any()
    hidden = METHODS[name].contributions(jnp.where(counted, output, jnp.nan), batch)
    np.testing.assert_array_equal(contribution, hidden)


@pytest.mark.parametrize("name", [name for name in METHODS if not METHODS[name].has_progress])
def test_methods_without_an_estimator_have_no_progress_loss(name, batch):
    for function in (METHODS[name].progress_loss, METHODS[name].contributions):
        with pytest.raises(ValueError, match=f"'{METHODS[name].name}' has no progress estimator"):
            function(batch.signals["progress"], batch)
