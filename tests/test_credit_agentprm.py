"""AgentPRM of two papers: the catalogue's numbers, plain loops, and identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import gae_loop, literal, pack, random_episodes

from stepreward.credit import make, step_mask
from stepreward.credit.agentprm import monte_carlo_labels, shaped_labels, shaped_targets
from stepreward.rollout.episode import Episode, Step, Task

CLOSE = dict(atol=2e-4, rtol=0)
PROMISE = [[0.5, 0.6, 0.4]]


@pytest.fixture(scope="module")
def episodes():
    return random_episodes(np.random.default_rng(4), groups=(4, 3, 4, 1), failed=(5,))


@pytest.fixture(scope="module")
def batch(episodes):
    return pack(episodes)


# --- Temporal differences ---


@pytest.mark.parametrize(
    "trace, advantage, q",
    [
        (0.95, [0.456, 0.48, 0.4], [0.956, 0.98, 1.0]),
        (1.0, [0.5, 0.5, 0.4], [1.0, 1.0, 1.0]),
        (0.0, [0.0, 0.1, 0.4], [0.5, 0.6, 1.0]),
    ],
)
def test_labels_by_hand(trace, advantage, q):
    batch = literal([[1, 1, 1]], [1.0], progress=PROMISE)
    found = make("agentprm", initial=0.5, label_trace=trace).td_labels(batch.signals["progress"], batch)
    np.testing.assert_allclose([x[0, :3] for x in found], [advantage, q], **CLOSE)


def test_both_terms_of_the_loss_have_one_value():
    batch = literal([[1, 1, 1]], [1.0], progress=PROMISE)
    loss = lambda beta: make("agentprm", initial=0.5, beta=beta).progress_loss(batch.signals["progress"], batch)[0]
    np.testing.assert_allclose([loss(0.0), loss(1.0) - loss(0.0)], [0.2374, 0.2374], **CLOSE)


def test_the_second_term_has_a_gradient_through_the_promise_before():
    batch = literal([[1, 1, 1]], [1.0], progress=PROMISE)
    gradient = lambda beta: jax.grad(lambda m: make("agentprm", initial=0.5, beta=beta).progress_loss(m, batch)[0])(
        batch.signals["progress"]
    )[0, :3]
    error = np.array([0.5, 0.6, 0.4]) - [0.956, 0.98, 1.0]  # of both terms, step by step
    np.testing.assert_allclose(gradient(0.0), 2 / 3 * error, **CLOSE)
    np.testing.assert_allclose(gradient(1.0) - gradient(0.0), 2 / 3 * (error - [*error[1:], 0.0]), **CLOSE)


@pytest.mark.parametrize("reward", ["outcome", "env"])
def test_the_loss_is_that_of_a_loop(reward, episodes, batch):
    method = make("agentprm", label_discount=0.9, label_trace=0.8, beta=0.5, initial=0.2, reward=reward)
    total, count = 0.0, 0
    for episode in (e for e in episodes if e.counted):
        promise = np.array([s.progress for s in episode.steps])
        before = np.array([0.2, *promise[:-1]])
        last = np.arange(len(promise)) == len(promise) - 1
        rewards = np.array([s.env_reward for s in episode.steps]) if reward == "env" else np.where(last, episode.outcome, 0.0)
        advantage, q = gae_loop(rewards, before, np.ones(len(promise), bool), 0.9, 0.8)
        total += ((promise - q) ** 2 + 0.5 * (promise - before - advantage) ** 2).sum()
        count += len(promise)
    np.testing.assert_allclose(method.progress_loss(batch.signals["progress"], batch)[0], total / count, rtol=1e-5)


def test_rewards_telescope(batch):
    """They sum to M at the end minus M before the first step; with a residual to the outcome."""
    mask = np.asarray(step_mask(batch))
    rewards = np.asarray(make("agentprm", initial=0.2).credit(batch).step_reward)
    promise = np.where(mask, batch.signals["progress"], 0.0)
    last = np.array([row[: m.sum()][-1] if m.any() else 0.2 for row, m in zip(promise, mask)])
    np.testing.assert_allclose(rewards.sum(axis=1), last - 0.2, atol=1e-5)
    for residual in ("last", "uniform"):
        summed = make("agentprm", initial=0.2, residual=residual).credit(batch).step_reward.sum(axis=1)
        np.testing.assert_allclose(summed, np.where(mask.any(axis=1), batch.outcome, 0.0), atol=1e-5)


def test_the_promise_before_the_first_step_cancels_in_a_group(batch):
    first, second = (make("agentprm", initial=initial).credit(batch).advantage for initial in (0.0, 0.7))
    np.testing.assert_allclose(first[:11], second[:11], atol=1e-4)


# --- Pooled outcomes ---

WORDS = ["abc", "abd", "ax"]
OUTCOMES = [1, 0, 1]


def labels(function=monte_carlo_labels, words=WORDS, outcomes=OUTCOMES, groups=None, **options):
    return function([[("", letter) for letter in word] for word in words], outcomes, groups or [0] * len(words), **options)


@pytest.mark.parametrize(
    "discount_from, expected",
    [
        ("start", [[0.6667, 0.5, 0.95125], [0.6667, 0.5, 0.04875], [0.6667, 0.975]]),
        ("end", [[0.6583, 0.5, 1.0], [0.6583, 0.5, 0.0], [0.6583, 1.0]]),
    ],
)
def test_pooled_labels_by_hand(discount_from, expected):
    for found, wanted in zip(labels(discount=0.95, discount_from=discount_from), expected):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_only_equal_histories_of_one_task_are_pooled():
    found = labels(words=["ab", "cb", "ab"], outcomes=[1, 0, 0], groups=[0, 0, 1], discount=1.0)
    np.testing.assert_array_equal(np.array(found), [[1, 1], [0, 0], [0, 0]])


def test_pooled_labels_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("ab"), rng.integers(1, 5))) for _ in range(20)]
    outcomes, groups = rng.integers(0, 2, 20).tolist(), rng.integers(0, 2, 20).tolist()
    found = labels(words=words, outcomes=outcomes, groups=groups, discount=0.9)
    for i, word in enumerate(words):
        for t in range(len(word)):
            same = [j for j, w in enumerate(words) if groups[j] == groups[i] and w[: t + 1] == word[: t + 1]]
            q = np.mean([0.9 ** (len(words[j]) - 1 - t) * (2 * outcomes[j] - 1) for j in same])
            assert found[i][t] == pytest.approx((q + 1) / 2, abs=1e-6)


def test_shaped_targets_by_hand():
    y = shaped_targets(np.array([0.95]), np.array([0.3]), np.array([0.6]), 0.95)
    np.testing.assert_allclose(y, [1.22], **CLOSE)


def test_shaped_labels_order_actions_of_one_state_and_lie_in_0_1():
    (abc, abd, ax) = labels(shaped_labels, discount=0.95)
    assert abc[2] > 0.5 > abd[2] and ax[1] > abc[1]
    assert all((x > 0).all() and (x < 1).all() for x in (abc, abd, ax))
    assert [x.tolist() for x in labels(shaped_labels, words=["a", "a"], outcomes=[1, 1], discount=0.95)] == [[0.5], [0.5]]
    assert labels(shaped_labels, words=["", ""], outcomes=[1, 1], discount=0.95)[0].size == 0


def test_inverse_loss_by_hand():
    """q = 1, q' = 0.5: the logit 0.525 of the first step; the last step's is q' itself."""
    batch = literal([[1, 1]], [1.0], progress=[[1.0, 0.5]])
    batch = batch.with_signals(progress_label=jnp.ones_like(batch.signals["progress_label"]))
    method = make("agentprm_mc", labels_from="inverse")
    rewards = method.contributions(batch.signals["progress"], batch)[0, :2]
    np.testing.assert_allclose(rewards, [0.525, 0.5], **CLOSE)
    loss, _ = method.progress_loss(batch.signals["progress"], batch)
    np.testing.assert_allclose(loss, (0.4647 + np.log1p(np.exp(-0.5))) / 2, **CLOSE)


def test_the_cross_entropy_takes_soft_labels():
    batch = literal([[1, 1]], [1.0], progress=[[0.0, 2.0]])
    batch = batch.with_signals(progress_label=batch.signals["progress_label"].at[0, :2].set(jnp.array([0.5, 0.9])))
    p = 1 / (1 + np.exp(-2.0))
    expected = (np.log(2) - 0.9 * np.log(p) - 0.1 * np.log(1 - p)) / 2
    np.testing.assert_allclose(make("agentprm_mc").progress_loss(batch.signals["progress"], batch)[0], expected, rtol=1e-5)


def played(words, outcomes):
    """Episodes of one task and their batch, as a run makes them."""
    from stepreward.rollout.packing import pack as pack_rows

    token, zero = np.ones(1, np.int32), np.zeros(1, np.float32)
    step = lambda letter: Step(token, token, zero, zero, "", letter, letter, 0.0, True, "")
    episodes = [Episode(Task(0, "train", 0), [step(letter) for letter in word], bool(won)) for word, won in zip(words, outcomes)]
    return pack_rows(episodes, context="step", max_steps=4, row_length=2, row_multiple=16, pad_id=0, outcome="success"), episodes


@pytest.mark.parametrize("options", [{}, {"variant": "released"}, {"labels_from": "shaped"}, {"labels_from": "inverse"}])
def test_the_labels_of_a_batch(options):
    batch, episodes = played(WORDS, OUTCOMES)
    method = make("agentprm_mc", **options)
    label = method.labels(batch, episodes)["progress_label"]
    assert (label[~batch.step_mask] == -1).all() and ((label >= 0) & (label <= 1))[batch.step_mask].all()
    if options == {"labels_from": "inverse"}:
        np.testing.assert_array_equal(label[:, 0], OUTCOMES)
    left = batch.replace(episode_mask=np.array([True, True, False]))  # an episode that is left out is pooled with nothing
    assert (method.labels(left, episodes)["progress_label"][2] == -1).all()
    if not options:
        np.testing.assert_allclose(label[0, :3], [0.6583, 0.5, 1.0], **CLOSE)
        np.testing.assert_allclose(method.labels(left, episodes)["progress_label"][0, :3], [0.5, 0.5, 1.0], **CLOSE)
