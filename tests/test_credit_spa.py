"""SPA, RBT, RUDDER, ProgRM and the actor-critic below them: by hand, by loops, and by their special cases."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import SIGNALS, by_step, gae_loop, literal, pack, random_episodes

from stepreward.credit import lcs_progress_labels, make, step_mask, token_mask

CLOSE = dict(atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def episodes():
    return random_episodes(np.random.default_rng(4), groups=(4, 3, 4, 1), failed=(5,))


@pytest.fixture(scope="module")
def batch(episodes):
    return pack(episodes)


@pytest.fixture(scope="module")
def single():
    """Episodes of one step."""
    return pack(random_episodes(np.random.default_rng(5), groups=(4, 3, 4, 1), failed=(5,), steps=1))


def counted(batch):
    return np.asarray(step_mask(batch))


def credit(batch, name, **options):
    return make(name, **options).credit(batch)


def assert_same(a, b):
    """Two Credits agree in every array and every metric."""
    assert set(a.metrics) == set(b.metrics)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5), a, b)


# By hand.


def test_spa_literal():
    batch = literal([[1, 2, 1]], [1], progress=[[0.2, 0.3, 0.3]], executed=[[True, False, True]])
    reward = credit(batch, "spa", alpha=0.5, beta=0.5).step_reward
    np.testing.assert_allclose(reward[0, :3], [0.6, 0.15, 0.65], **CLOSE)
    loss, gradient = jax.value_and_grad(lambda x: make("spa").progress_loss(x, batch)[0])(batch.signals["progress"])
    np.testing.assert_allclose(loss, 0.04, **CLOSE)
    np.testing.assert_allclose(gradient[0, :3], [-0.4, -0.4, -0.4], **CLOSE)
    weighted = credit(batch, "spa", beta=0.0, step_weight="released").step_reward
    np.testing.assert_allclose(weighted[0, :3], [0.4, 0.3, 0.0], **CLOSE)


def every_step_loop(episodes, outputs):
    losses = []
    for e, episode in enumerate(episodes):
        if not episode.counted:
            continue
        others = [x.outcome for x in episodes if x.group == episode.group and x.counted and x is not episode]
        target = episode.outcome - np.mean(others) if others else 0.0
        errors = (np.cumsum(outputs[e, : len(episode.steps)]) - target) ** 2
        losses.append(errors[-1] + errors.mean())
    return np.mean(losses)


@pytest.mark.parametrize("packing", ["episode", "step"])
def test_the_loss_of_every_step_against_a_loop(packing, episodes):
    batch, method = pack(episodes, packing), make("spa", variant="every_step")
    loss, _ = method.progress_loss(batch.signals["progress"], batch)
    np.testing.assert_allclose(loss, every_step_loop(episodes, np.asarray(batch.signals["progress"])), rtol=1e-5)
    np.testing.assert_allclose(method.labels(batch, [])["others_outcome"][0], batch.signals["others_outcome"][0], rtol=1e-5)


def test_the_best_contributions_of_every_step_are_advantages_and_those_of_the_paper_need_not_be():
    """Two steps of two equally likely actions, success for 1, 1: the advantages are ±1/4, then ±1/2 after a 1 and 0 after a 0."""
    outcome = [0, 0, 0, 1]
    advantage = jnp.array([[-0.25, 0.0], [-0.25, 0.0], [0.25, -0.5], [0.25, 0.5]])
    at_the_end = jnp.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    batch = literal([[1, 1]] * 4, outcome, progress=advantage.tolist())
    batch = batch.with_signals(others_outcome=jnp.full_like(batch.outcome, 0.25))
    cells = jnp.array([[0, 2], [0, 3], [1, 4], [1, 5]])  # the table entry of each step: first action, then both actions
    size = batch.step_mask.shape
    table = lambda values: jnp.zeros(size).at[:4, :2].set(values[cells])
    entries = lambda values_4x2: jnp.zeros(6).at[cells].set(values_4x2)
    slope = lambda method, values: jax.grad(lambda x: method.progress_loss(table(x), batch)[0])(entries(values))
    every_step, paper = make("spa", fit="every_step"), make("spa")
    np.testing.assert_allclose(slope(every_step, advantage), 0.0, **CLOSE)
    assert np.abs(slope(every_step, at_the_end)).max() > 0.05
    np.testing.assert_allclose(slope(paper, at_the_end), 0.0, **CLOSE)
    assert paper.progress_loss(table(entries(at_the_end)), batch)[0] == 0


def test_only_spa_fits_every_step():
    with pytest.raises(ValueError, match="fit of 'rbt' must be one of 'episode'"):
        make("rbt", fit="every_step")


def test_only_a_residual_at_the_end_leaves_earlier_rewards_alone(batch):
    """Rewards before the last step must not tell what happens later, or they bias the gradient of the steps in between."""
    mask = counted(batch)
    early = mask & (np.cumsum(mask[:, ::-1], axis=1)[:, ::-1] > 1)
    other = batch.replace(outcome=batch.outcome + 1.0)
    for residual, moves in (("last", False), ("uniform", True)):
        a, b = (credit(x, "spa", beta=0.0, enforce_sum=True, residual=residual).step_reward for x in (batch, other))
        assert (np.abs(np.asarray(a - b))[early] > 1e-3).all() == moves
        np.testing.assert_allclose(np.asarray(b - a).sum(axis=1)[mask.any(axis=1)], 1.0, **CLOSE)


def test_a_return_equivalent_reward_gives_the_outcome_less_what_was_paid(batch):
    """γ = λ = 1, residual at the end: advantage + value of step t is R minus the rewards of the steps before it."""
    found = credit(batch, "spa", beta=0.0, enforce_sum=True, residual="last", discount=1.0, trace=1.0, whiten=False)
    reward, mask = np.asarray(found.step_reward), counted(batch)
    paid = np.cumsum(reward, axis=1) - reward
    expected = np.asarray(batch.outcome)[:, None] - paid
    returns = {key: values[0] for key, values in by_step(found.returns, batch).items() if mask[key]}
    assert returns
    for key, value in returns.items():
        np.testing.assert_allclose(value, expected[key], atol=1e-4)


def test_spa_controls_literal():
    # Contributions -.2, .5, .1 of outcome 1: clamped they sum to .6.
    batch = literal([[1, 1, 1], [1]], [1, 0], progress=[[-0.2, 0.5, 0.1], [0.3]])
    reward = lambda **options: np.asarray(credit(batch, "spa", beta=0.0, **options).step_reward)[0, :3]
    np.testing.assert_allclose(reward(clamp=True), [0, 0.5, 0.1], **CLOSE)
    np.testing.assert_allclose(reward(enforce_sum=True), [0, 0.7, 0.3], **CLOSE)
    np.testing.assert_allclose(reward(clamp=True, enforce_sum=True), np.array([0, 0.5, 0.1]) + 0.4 / 3, **CLOSE)
    np.testing.assert_allclose(reward(step_reward="uniform"), [1 / 3] * 3, **CLOSE)
    np.testing.assert_allclose(reward(step_reward="terminal"), [0, 0, 1], **CLOSE)
    np.testing.assert_allclose(reward(step_reward="leave_one_out"), [1, 1, 1], **CLOSE)
    backwards = batch.with_signals(step_permutation=batch.signals["step_permutation"].at[0, :3].set(jnp.array([2, 1, 0])))
    shuffled = credit(backwards, "spa", beta=0.0, step_reward="shuffled", alpha=2.0).step_reward
    np.testing.assert_allclose(shuffled[0, :3], [0.2, 1.0, -0.4], **CLOSE)


def test_spa_as_released_literal():
    """Outcome minus that of the others at every step, .5 where grounded (the last step always), times T - t - 1."""
    executed = [[False, True, False], [True, False], [False, False, True, True]]
    batch = literal([[1, 2, 1], [2, 1], [1] * 4], [1, 0, 0], executed=executed)
    reward = credit(batch, "spa", variant="released").step_reward
    np.testing.assert_allclose(reward[0, :3], [1.0 * 2, 1.5 * 1, 1.5 * 0], **CLOSE)
    np.testing.assert_allclose(reward[1, :2], [0.0 * 1, 0.0 * 0], **CLOSE)
    np.testing.assert_allclose(reward[2, :4], [-0.5 * 3, -0.5 * 2, 0.0 * 1, 0.0 * 0], **CLOSE)
    unweighted = credit(batch, "spa", variant="released", step_weight="none").step_reward
    np.testing.assert_allclose(unweighted[1, :2], [0.0, 0.0], **CLOSE)
    np.testing.assert_allclose(unweighted[0, :3], [1.0, 1.5, 1.5], **CLOSE)


def test_variants_of_spa_are_what_was_published():
    assert make("spa", variant="paper") == make("spa")
    paper, released = make("spa"), make("spa", variant="released")
    assert (paper.step_reward, paper.alpha, paper.beta, paper.level) == ("progress", 1.0, 0.5, "step")
    assert paper.requires == {"value", "progress"} and paper.has_progress
    assert (released.alpha, released.beta, released.level, released.observation) == (1.0, 0.5, "token", "decay")
    assert released.requires == {"value", "log_prob_initial", "kl_coef"} and not released.has_progress
    for method in (paper, released):
        assert (method.discount, method.trace, method.whiten) == (0.99, 0.95, True)


@pytest.mark.parametrize(
    "residual, expected", [("none", [0.2, 0.5, -0.1]), ("last", [0.2, 0.5, 0.3]), ("uniform", [1 / 3, 19 / 30, 1 / 30])]
)
def test_rudder_literal(residual, expected):
    batch = literal([[1, 2, 1]], [1], progress=[[0.2, 0.7, 0.6]])
    np.testing.assert_allclose(credit(batch, "rudder", residual=residual).step_reward[0, :3], expected, **CLOSE)
    loss, _ = make("rudder", residual=residual).progress_loss(batch.signals["progress"], batch)
    np.testing.assert_allclose(loss, 0.16 + 0.5 * (0.64 + 0.09 + 0.16) / 3, **CLOSE)


def test_rudder_advantage_literal():
    """Returns-to-go of .2, .5, .3 and of -.4, .4 (outcomes 1 and 0), each minus the other's at the same step."""
    batch = literal([[1, 1, 1], [1, 1]], [1, 0], progress=[[0.2, 0.7, 0.6], [-0.4, 0.1]])
    advantage = credit(batch, "rudder", whiten=False).step_advantage
    np.testing.assert_allclose(advantage[:2, :3], [[1.0 - 0.0, 0.8 - 0.4, 0.3], [0.0 - 1.0, 0.4 - 0.8, 0]], **CLOSE)


def test_rbt_literal():
    batch = literal([[1, 2]], [1], progress=[[0.3, 0.5]])
    for bag_size in (0, 2):
        loss, _ = make("rbt", bag_size=bag_size).progress_loss(batch.signals["progress"], batch)
        np.testing.assert_allclose(loss, 0.04, **CLOSE)
    np.testing.assert_allclose(credit(batch, "rbt").step_reward[0, :2], [0.3, 0.5], **CLOSE)
    # The environment's own rewards of the two steps: 1 and -1 cancel in one bag.
    batch = batch.replace(env_reward=batch.env_reward.at[0, :2].set(jnp.array([1.0, -1.0])))
    for bag_size, expected in ((0, 0.64), (1, (0.49 + 2.25) / 2)):
        method = make("rbt", bag_size=bag_size, bag_reward="env")
        np.testing.assert_allclose(method.progress_loss(batch.signals["progress"], batch)[0], expected, **CLOSE)


def test_progrm_literal():
    progress = np.array([0.5, 0.25, 1 - 1e-6])
    batch = literal([[1, 2, 1]], [1], progress=[np.log(progress / (1 - progress))])
    np.testing.assert_allclose(credit(batch, "progrm").step_reward[0, :3], [0.5, -0.25, 0.75], **CLOSE)
    # Labels 1 and .5 of the first two steps; the third has none.
    batch = batch.with_signals(progress_label=batch.signals["progress_label"].at[0, :2].set(jnp.array([1.0, 0.5])))
    loss, metrics = make("progrm").progress_loss(batch.signals["progress"], batch)
    np.testing.assert_allclose(loss, (0.25 + 0.0625) / 2, **CLOSE)
    np.testing.assert_allclose(metrics["labelled"], 2 / 3, **CLOSE)
    loss, _ = make("progrm", objective="cross_entropy").progress_loss(batch.signals["progress"], batch)
    np.testing.assert_allclose(loss, (np.log(2) - 0.5 * np.log(0.25) - 0.5 * np.log(0.75)) / 2, **CLOSE)


# Identities.


@pytest.mark.parametrize(
    "name, options",
    [
        ("spa", dict(beta=0.0, enforce_sum=True)),
        ("spa", dict(beta=0.0, enforce_sum=True, residual="last")),
        ("spa", dict(beta=0.0, enforce_sum=True, clamp=True)),
        ("spa", dict(beta=0.0, enforce_sum=True, step_reward="shuffled")),
        ("spa", dict(beta=0.0, step_reward="uniform")),
        ("spa", dict(beta=0.0, step_reward="terminal")),
        ("rbt", dict(enforce_sum=True)),
        ("rudder", dict(residual="last")),
        ("rudder", dict(residual="uniform")),
    ],
)
def test_step_rewards_sum_to_the_outcome(name, options, batch):
    reward = np.asarray(credit(batch, name, **options).step_reward)
    mask = counted(batch)
    np.testing.assert_allclose(reward.sum(axis=1), np.where(mask.any(axis=1), batch.outcome, 0), **CLOSE)
    assert (np.abs(reward) > 1e-3).any()


def test_uniform_rewards_are_equal_within_an_episode(batch):
    reward, mask = np.asarray(credit(batch, "spa", beta=0.0, step_reward="uniform").step_reward), counted(batch)
    for e in range(batch.num_episodes):
        np.testing.assert_allclose(reward[e, mask[e]], float(batch.outcome[e]) / max(mask[e].sum(), 1), rtol=1e-6)


def test_shuffling_permutes_the_rewards_of_an_episode(batch):
    shuffled = np.asarray(credit(batch, "spa", beta=0.0, step_reward="shuffled").step_reward)
    straight = np.asarray(credit(batch, "spa", beta=0.0).step_reward)
    np.testing.assert_allclose(shuffled.sum(axis=1), straight.sum(axis=1), **CLOSE)
    np.testing.assert_allclose(np.sort(shuffled, axis=1), np.sort(straight, axis=1), atol=1e-7)
    assert not np.array_equal(shuffled, straight)


@pytest.mark.parametrize("discount, trace", [(1.0, 1.0), (0.9, 0.7)])
def test_spa_of_one_step_that_sums_to_the_outcome_is_terminal_ppo(discount, trace, single):
    options = dict(discount=discount, trace=trace)
    spa = credit(single, "spa", beta=0.0, enforce_sum=True, **options)
    assert_same(spa, credit(single, "step_ppo", **options))
    assert np.abs(spa.advantage).max() > 0.1


@pytest.mark.parametrize("discount, trace", [(1.0, 1.0), (0.9, 0.7)])
@pytest.mark.parametrize("level, name", [("step", "step_ppo"), ("token", "ppo")])
def test_spa_with_the_terminal_reward_is_ppo(level, name, discount, trace, batch):
    options = dict(discount=discount, trace=trace)
    spa = credit(batch, "spa", beta=0.0, step_reward="terminal", level=level, **options)
    assert_same(spa, credit(batch, name, **options))


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_spa_is_rbt_with_one_bag(beta, batch):
    assert_same(credit(batch, "spa", beta=beta), credit(batch, "rbt", beta=beta))
    output = batch.signals["progress"]
    loss, gradient = jax.value_and_grad(lambda x: make("spa", beta=beta).progress_loss(x, batch)[0])(output)
    for bag_size in (0, batch.max_steps):
        bags = make("rbt", beta=beta, bag_size=bag_size)
        other, other_gradient = jax.value_and_grad(lambda x: bags.progress_loss(x, batch)[0])(output)
        np.testing.assert_allclose(loss, other, rtol=1e-6)
        np.testing.assert_allclose(gradient, other_gradient, rtol=1e-6)


def test_without_a_weight_the_estimator_is_not_asked_for(batch):
    method = make("spa", alpha=0.0)
    assert method.requires == {"value"} and not method.has_progress
    executed = np.where(counted(batch), batch.executed, False)
    np.testing.assert_allclose(method.credit(batch).step_reward, 0.5 * executed, **CLOSE)
    assert executed.any() and (counted(batch) & ~executed).any()


# The actor-critic.


def test_unit_discount_and_trace_give_the_return_to_go_minus_the_value(batch):
    result = credit(batch, "step_ppo", reward="env", whiten=False)
    reward, first = np.asarray(result.step_reward), by_step(batch.signals["value"], batch)
    for e, t in zip(*np.nonzero(counted(batch))):
        expected = reward[e, t:].sum() - first[e, t][0]
        np.testing.assert_allclose(result.step_advantage[e, t], expected, **CLOSE)


def token_rewards(batch, reward_ExS, coefficient=0.0):
    """`[R, L]`: a step's reward at its last counted token, minus the KL penalty of each token."""
    counted_RxL, step_id = np.asarray(token_mask(batch)), np.asarray(batch.step_id)
    log_ratio = np.asarray(batch.log_prob_old) - np.asarray(batch.signals["log_prob_initial"])
    reward = np.where(counted_RxL, -coefficient * log_ratio, 0.0)
    for r, l in zip(*np.nonzero(counted_RxL)):
        if l + 1 == step_id.shape[1] or step_id[r, l + 1] != step_id[r, l]:
            reward[r, l] += np.asarray(reward_ExS).reshape(-1)[step_id[r, l]]
    return reward


def recursion_over_all_tokens(reward, value, mask, discount, trace):
    """TRL: masked tokens have reward and value 0, but the recursion runs through them."""
    value, reward = value * mask, reward * mask
    advantage, last, next_value = np.zeros(len(reward)), 0.0, 0.0
    for t in reversed(range(len(reward))):
        advantage[t] = last = reward[t] + discount * next_value - value[t] + discount * trace * last
        next_value = value[t]
    return advantage * mask, (advantage + value) * mask


TOKEN_LEVEL = {
    "ppo": dict(reward="env", whiten=False),
    "ppo-kl": dict(reward="env", whiten=False, kl_in_reward=True),
    "spa-released": dict(variant="released", whiten=False),
}


@pytest.mark.parametrize("discount, trace", [(1.0, 1.0), (0.9, 0.7), (0.99, 0.95), (0.9, 0.0)])
@pytest.mark.parametrize("observation", ["skip", "decay"])
@pytest.mark.parametrize("name", TOKEN_LEVEL)
def test_token_recursion(name, observation, discount, trace, batch):
    """With "decay" TRL's loop over every token of the row, with "skip" the loop over the action tokens only."""
    options = TOKEN_LEVEL[name] | dict(observation=observation, discount=discount, trace=trace)
    method = make(name.split("-")[0], **options)
    result = method.credit(batch)
    reward = token_rewards(batch, result.step_reward, 0.3 if method.kl_in_reward else 0.0)
    value, mask = np.asarray(batch.signals["value"]), np.asarray(token_mask(batch))
    loop = recursion_over_all_tokens if observation == "decay" else gae_loop
    for r in range(len(mask)):
        advantage, returns = loop(reward[r], value[r], mask[r], discount, trace)
        np.testing.assert_allclose(result.advantage[r], advantage, **CLOSE)
        np.testing.assert_allclose(result.returns[r], returns, **CLOSE)


def test_observations_decay_what_comes_after_them():
    # Two steps of one token; three tokens of observation before the second one.
    episodes = random_episodes(np.random.default_rng(0), groups=(1,), failed=(), steps=1)
    second = random_episodes(np.random.default_rng(1), groups=(1,), failed=(), steps=1)[0].steps[0]
    steps = [episodes[0].steps[0], second]
    for step in steps:
        for name in ("log_prob_old", *SIGNALS):
            setattr(step, name, np.zeros(1))
    steps[1].observation = 3
    episodes[0].steps, episodes[0].outcome = steps, 1.0
    options = dict(discount=0.9, trace=0.5, whiten=False)
    for observation, expected in (("skip", 0.45), ("decay", 0.45**4)):
        for packing in ("episode", "step"):
            packed = pack(episodes, packing)
            result = credit(packed, "ppo", observation=observation, **options)
            np.testing.assert_allclose(result.step_advantage[0, :2], [expected, 1.0], **CLOSE)


@pytest.mark.parametrize("name, options", [("ppo", {}), ("step_ppo", {}), ("spa", {"baseline": "group"})])
def test_a_kl_coefficient_of_zero_changes_nothing(name, options, batch):
    without = credit(batch, name, **options)
    penalised = credit(batch.with_signals(kl_coef=jnp.float32(0.0)), name, kl_in_reward=True, **options)
    assert {"kl_initial", "kl_coef"} == set(penalised.metrics) - set(without.metrics)
    for key in ("kl_initial", "kl_coef"):
        del penalised.metrics[key]
    assert_same(without, penalised)


@pytest.mark.parametrize("of_signal", [False, True])
def test_the_kl_penalty_is_taken_from_each_step(of_signal, batch):
    """With a value of 0 and without discount the returns are sums of the steps' rewards."""
    batch = batch.with_signals(value=jnp.zeros_like(batch.signals["value"]))
    if of_signal:  # the policy that is trained, where it is not the one of the rollout
        batch = batch.with_signals(log_prob_policy=batch.log_prob_old - 0.25)
    policy = batch.signals.get("log_prob_policy", batch.log_prob_old)
    result = credit(batch, "step_ppo", reward="env", kl_in_reward=True)
    returns = by_step(result.returns, batch)
    kl = {key: sum(v) for key, v in by_step(policy - batch.signals["log_prob_initial"], batch).items()}
    mask = counted(batch)
    for e, t in zip(*np.nonzero(mask)):
        later = [s for s in range(t, batch.max_steps) if mask[e, s]]
        expected = sum(float(batch.env_reward[e, s]) - 0.3 * kl[e, s] for s in later)
        np.testing.assert_allclose(returns[e, t], expected, atol=1e-4)
    sums = [sum(kl[e, s] for s in range(batch.max_steps) if mask[e, s]) for e in range(batch.num_episodes) if mask[e].any()]
    np.testing.assert_allclose(result.metrics["kl_initial"], np.mean(sums), rtol=1e-5)
    np.testing.assert_allclose(result.step_reward, np.where(mask, batch.env_reward, 0), atol=1e-6)  # before the penalty


# Labels of progress.


@pytest.mark.parametrize(
    "sequences, success, expected",
    [
        (["abc"], [True], [[1 / 3, 2 / 3, 1]]),
        # Both succeed by "a", then "c": what only one of them did is no progress.
        (["axc", "yacz"], [True, True], [[0.5, 0.5, 1], [0, 0.5, 1, 1]]),
        # A failed episode that took the first two key steps, and one that took them out of order.
        (["abc", "xab", "cba"], [True, False, False], [[1 / 3, 2 / 3, 1], [0, 1 / 3, 2 / 3], [0, 0, 1 / 3]]),
        (["abc", "b"], [False, False], [[-1, -1, -1], [-1]]),
        (["ab", "cd", "ac"], [True, True, False], [[-1, -1], [-1, -1], [-1, -1]]),
        # Each repetition is a key step of its own; a failed episode that only did "a" once got a third of the way.
        (["aab", "abb"], [True, False], [[1 / 3, 2 / 3, 1], [1 / 3, 1 / 3, 1 / 3]]),
        (["aa", "aaa"], [True, True], [[0.5, 1], [0.5, 1, 1]]),
        (["", "ab"], [False, True], [[], [0.5, 1]]),
        (["", "ab"], [True, True], [[], [-1, -1]]),
        (["", ""], [True, False], [[], []]),
        ([], [], []),
    ],
)
def test_labels_from_the_common_steps_of_successes(sequences, success, expected):
    labels = lcs_progress_labels(sequences, success, [0] * len(sequences))
    assert [label.dtype for label in labels] == [np.float32] * len(sequences)
    assert [len(label) for label in labels] == [len(sequence) for sequence in sequences]
    for label, values in zip(labels, expected):
        np.testing.assert_allclose(label, values, atol=1e-6)


def test_groups_label_themselves():
    labels = lcs_progress_labels(["ab", "ba", "ab", "b"], [True, True, False, False], [7, 2, 2, 5])
    for label, expected in zip(labels, ([0.5, 1], [0.5, 1], [0, 0.5], [-1])):
        np.testing.assert_allclose(label, expected)


def is_subsequence(part, sequence):
    rest = iter(sequence)
    return all(item in rest for item in part)


@pytest.mark.parametrize("seed", range(5))
def test_labels_count_the_longest_common_subsequence(seed):
    rng = np.random.default_rng(seed)
    a, b = ("".join(rng.choice(list("abc"), size)) for size in rng.integers(4, 8, 2))
    longest = max(n for n in range(len(a) + 1) for part in itertools.combinations(a, n) if is_subsequence(part, b))
    labels = lcs_progress_labels([a, b], [True, True], [0, 0])
    assert longest and len(set(labels[0]) - {0}) == longest  # 1/m, 2/m … 1
    for label in labels:
        assert label[-1] == 1 and (np.diff(label) >= 0).all()
        np.testing.assert_allclose(label * longest, np.round(label * longest), atol=1e-6)


def test_clamping_rewards_leaves_the_gradient_of_negative_outputs_alone():
    """L = (Σ ĉ − R)², with dL/dĉ = 2·(Σ ĉ − R) = −2 at every step, below 0 too: the estimator can leave what clamping hides."""
    batch = literal([[1, 1, 1]], [1.0], progress=[[-0.5, 0.25, 0.25]])
    method = make("spa", clamp=True)
    (loss, _), gradient = jax.value_and_grad(method.progress_loss, has_aux=True)(batch.signals["progress"], batch)
    np.testing.assert_allclose(loss, 1.0, rtol=1e-6)
    np.testing.assert_allclose(gradient[0], [-2, -2, -2, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(method.contributions(batch.signals["progress"], batch)[0], [0, 0.25, 0.25, 0, 0])


@pytest.mark.parametrize("singleton, expected", [("zero", [1, -1, 0]), ("raw", [1, -1, 0.5])])
def test_what_the_only_episode_of_a_task_gets(singleton, expected):
    """R minus the mean of the others of the task, at every step; the release keeps R where there are no others."""
    batch = literal([[1, 1]] * 3, [1, 0, 0.5], groups=[0, 0, 1])
    reward = make("spa", step_reward="leave_one_out", beta=0.0, singleton=singleton).credit(batch).step_reward
    np.testing.assert_allclose(reward[:3, :2], np.repeat(np.array(expected)[:, None], 2, axis=1), atol=1e-6)
    assert make("spa").singleton == "zero" and make("spa", variant="released").singleton == "raw"
