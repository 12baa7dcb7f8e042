"""Learning and measuring in the arena: every method runs, exact credit is unbiased, controls say nothing, and equal seeds give equal runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepreward import credit
from stepreward.arena import arms, exact, learn, measure, signals, tables, tasks
from stepreward.arena.play import chain, to_batch

SMALL = learn.Settings(iterations=3, explored=4)
# Compilation takes nearly all of the time of so short a run.
quickly = jax.jit(
    learn.compiled.__wrapped__,
    static_argnums=(0, 1, 2),
    compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)


def run(arm, name="trap", settings=SMALL, seeds=(0, 1), rate=0.3):
    task, rates = tasks.make(name), jnp.full(len(seeds), rate)
    uniform = jnp.zeros((task.num_states, 4))
    return quickly(arm, settings, False, task, learn.Policies(uniform, uniform, uniform), rates, rates, jnp.asarray(seeds))


def test_every_registered_method_has_an_arm_or_a_reason():
    known = arms.arms()
    for name in credit.names():
        assert (name in known) != (name in arms.REASONS), f"{name} has no arm in the arena: add its signals, or a reason to REASONS"
    for arm in known.values():
        assert not arms.missing(arm.method), f"the arena lacks {arms.missing(arm.method)}, which {arm.name} reads"
    assert set(signals.TOLD) <= set(signals.PROVIDED) | arms.TABLES


@pytest.mark.parametrize("name", [*credit.names(), "istar (paper)", "spa (paper)", "shuffled oracle", "step_ppo (critic by step)"])
def test_an_arm_runs_and_learns_something(name):
    trace = run(arms.arms()[name], "stopping")  # a group has successes and failures
    assert trace.success.shape == trace.cost.shape == (2, 3) and np.isfinite(trace.success).all()
    assert (np.asarray(trace.cost) > 0).all() and np.isfinite(trace.logits).all()
    # ProgRM's successes have no step in common here, so that its estimator has no labels.
    assert (np.abs(trace.logits).max(axis=(1, 2)) > 0).all() or name == "progrm"


def test_equal_seeds_give_equal_runs_and_others_do_not():
    arm = arms.arms()["rloo"]
    first, again = run(arm, "stopping", seeds=(3, 3, 4)), run(arm, "stopping", seeds=(3, 5, 4))
    success = np.asarray(first.success)
    np.testing.assert_array_equal(success[0], success[1])
    np.testing.assert_array_equal(success[[0, 2]], np.asarray(again.success)[[0, 2]])
    assert (success[0] != success[2]).any() and (success[0] != np.asarray(again.success)[1]).any()


def test_exact_credit_learns_a_task():
    trace = run(arms.arms()["oracle"], "corridor", learn.Settings(iterations=40))
    success = np.asarray(trace.success)
    assert success[:, 0].max() < 0.05 and success[:, -1].min() > 0.9
    assert success[0, -1] == pytest.approx(float(exact.success(tasks.make("corridor"), jax.nn.log_softmax(trace.logits[0]))), abs=0.1)


# --- Unbiased credit ---


@functools.cache
def half(name="key_door_5"):
    return measure.half_trained(tasks.make(name))


def gradients(advantage_of, name="key_door_5", batches=1500):
    """The gradients of many batches at a half-trained policy, and the exact one."""
    task, logits = tasks.make(name), half(name)
    log_policy = jax.nn.log_softmax(logits)
    values = exact.values(task, log_policy)

    def of_batch(key):
        play_key, signal_key = jax.random.split(key)
        episodes = chain(task, jnp.exp(log_policy), play_key, 2, 4)
        batch = to_batch(episodes, log_policy)
        m = signals.Moment(task, episodes, batch, log_policy, log_policy, log_policy, values, values.value, signal_key)
        return learn.gradient_of(advantage_of(m), None, batch, episodes.state, logits)

    found = jax.jit(lambda keys: jax.lax.map(of_batch, keys, batch_size=100))(jax.random.split(jax.random.key(0), batches))
    return np.asarray(found, np.float64), np.asarray(exact.policy_gradient(task, logits), np.float64)


def assert_unbiased(found, truth):
    """The mean of the gradients is the exact one, in direction and size, within what chance explains."""
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    known = error > 1e-7
    z = ((found.mean(axis=0) - truth) / np.where(known, error, 1))[known]
    assert known.sum() > 40 and np.abs(z).max() < 5 and 0.7 < (z**2).mean() < 1.5
    assert np.linalg.norm(found.mean(axis=0) - truth) < 0.15 * np.linalg.norm(truth)


def credit_of(method, *names, **more):
    def advantage(m):
        given = {name: signals.PROVIDED[name](m, method) for name in names}
        given |= {name: make(m) for name, make in more.items()}
        return method.credit(m.batch.with_signals(**given)).advantage

    return advantage


def exact_value(m):
    return jnp.where(m.batch.action_mask, m.of_steps(m.values.value[:-1]), 0.0)


@pytest.mark.parametrize(
    "advantage",
    [
        credit_of(credit.make("oracle"), "exact_advantage"),
        credit_of(credit.make("vineppo"), "mc_value"),
        credit_of(credit.make("step_ppo", whiten=False), value=exact_value),
        credit_of(credit.make("step_ppo", whiten=False, trace=0.0), value=exact_value),
        credit_of(credit.make("rloo")),
    ],
    ids=["oracle", "vineppo", "gae-1", "gae-0", "rloo"],
)
def test_the_expected_gradient_is_the_exact_one(advantage):
    assert_unbiased(*gradients(advantage))


def test_rewards_for_steps_are_biased():
    """The test above can fail: SPA's paid steps point elsewhere."""
    method = credit.make("spa", step_reward="terminal", whiten=False, baseline="group")
    found, truth = gradients(credit_of(method))
    with pytest.raises(AssertionError):
        assert_unbiased(found, truth)


# --- Measures ---


def test_shuffled_credit_has_no_correlation_with_the_exact_one():
    task = tasks.make("key_door_5")
    settings = learn.Settings(iterations=30, record=True, learns=False)
    policies = learn.Policies(half(), half(), half())
    found = {}
    for name in ("oracle", "shuffled oracle"):
        record = quickly(arms.arms()[name], settings, False, task, policies, jnp.ones(4), jnp.ones(4), jnp.arange(4)).record
        found[name] = measure.credit_quality(record, exact.policy_gradient(task, half()))
    assert found["oracle"]["advantage_pearson"] == pytest.approx(1) and found["oracle"]["advantage_top"] == pytest.approx(1)
    assert found["oracle"]["cosine_of_mean"] > 0.98
    assert abs(found["shuffled oracle"]["advantage_pearson"]) < 0.03 and abs(found["shuffled oracle"]["advantage_spearman"]) < 0.03
    assert abs(found["shuffled oracle"]["advantage_sign"] - 0.5) < 0.03 and not found["shuffled oracle"]["noise"] < 20


def test_a_shuffle_keeps_the_advantages_of_a_batch():
    task, log_policy = tasks.make("trap"), jnp.full((64, 4), -np.log(4))
    episodes = chain(task, jnp.exp(log_policy), jax.random.key(0), 2, 4)
    batch = to_batch(episodes, log_policy)
    values = exact.values(task, log_policy)
    m = signals.Moment(task, episodes, batch, log_policy, log_policy, log_policy, values, values.value, jax.random.key(1))
    given = credit.make("oracle").credit(batch.with_signals(exact_advantage=signals.exact_advantage(m, None)))
    moved = learn.shuffle(given, batch, jax.random.key(2))
    mask = np.asarray(batch.action_mask)
    before, after = np.asarray(given.advantage), np.asarray(moved.advantage)
    np.testing.assert_array_equal(np.sort(before[mask]), np.sort(after[mask]))
    assert not after[~mask].any() and (before != after).any()


def test_curves_are_measured():
    success = np.array([[0.1, 0.5, 0.9, 0.9], [0.1, 0.9, 0.9, 0.2], [0.0, 0.1, 0.0, 0.0]])
    cost = np.full((3, 4), 10.0)
    np.testing.assert_array_equal(measure.steps_to(success, cost, 0.8), [20, 10, np.inf])
    np.testing.assert_array_equal(measure.collapsed(success, 1.0), [False, True, False])
    assert measure.interval([1.0, 2.0, 3.0]) == pytest.approx(4.303 / np.sqrt(3), rel=1e-3)


def test_gradients_are_measured_whatever_their_size():
    truth = np.array([3.0, 4.0])
    same = measure.gradient_quality(np.stack([truth * 0.1] * 4), truth)
    assert same == {
        "cosine_of_mean": pytest.approx(1),
        "bias": pytest.approx(0, abs=1e-6),
        "cosine": pytest.approx(1),
        "noise": pytest.approx(0),
    }
    noisy = measure.gradient_quality(np.array([[7.0, 1.0], [-1.0, 7.0]] * 2), truth)  # mean (3, 4), and ±(4, −3) beside it
    assert noisy["cosine_of_mean"] == 1 and noisy["noise"] == pytest.approx(4 / 3) and noisy["cosine"] == pytest.approx(np.sqrt(0.5))
    askew = measure.gradient_quality(np.array([[7.0, 1.0]] * 3), truth)  # 45° away
    assert askew["cosine_of_mean"] == pytest.approx(np.sqrt(0.5)) and askew["bias"] == pytest.approx(1)
    assert np.isnan(measure.gradient_quality(np.array([[1.0, 0.0], [-1.0, 0.1]]), truth)["cosine_of_mean"])


def test_steps_are_measured():
    truth = np.array([[0.4, -0.2, 0.0], [0.1, 0.3, 9.0]])
    mask = np.array([[True, True, True], [True, True, False]])
    given = np.array([[2.0, -1.0, 5.0], [0.0, 1.0, -9.0]])
    found = measure.step_quality(given, truth, mask)
    assert found["sign"] == pytest.approx((1 + 1 + 0.5 + 1) / 4)  # the zero has no sign, and a credit of 0 counts half
    assert found["top"] == pytest.approx(0.5)
    assert found["pearson"] == pytest.approx(np.corrcoef(given[mask], truth[mask])[0, 1])
    assert np.isnan(measure.step_quality(np.zeros((2, 3)), truth, mask)["pearson"])


def test_a_half_trained_policy_succeeds_half_as_often_as_the_best_one():
    assert 0.5 < float(exact.success(tasks.make("key_door_5"), jax.nn.log_softmax(half()))) < 0.65


def test_the_gradient_of_a_synchronised_prm_is_that_of_rloo():
    found = jax.vmap(lambda seed: measure.implicit_update(tasks.make("key_door_5"), half(), seed))(np.arange(20))
    assert np.nanmin(found["small_step"]) > 0.999
    mixed = np.isfinite(np.asarray(found["small_step"]))
    np.testing.assert_allclose(np.asarray(found["gradient"])[mixed], 1, atol=1e-4)
    assert mixed.sum() > 15


def test_a_critic_by_step_reads_its_step():
    task, log_policy = tasks.make("trap"), jnp.full((64, 4), -np.log(4))
    episodes = chain(task, jnp.exp(log_policy), jax.random.key(0), 1, 4)
    table = jnp.arange(16.0)[:, None] + jnp.zeros((16, 64))
    np.testing.assert_array_equal(tables.critic_values(table, episodes), np.tile(np.arange(16.0), (4, 1)))
