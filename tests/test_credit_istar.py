"""iStar and PRIME: the loss of the process reward model and its gradient, options, controls, credit quality."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import by_step, pack, random_episodes

from stepreward.credit import PRIME, IStar, credit_quality, make, rank_correlation, step_permutation, token_mask
from stepreward.credit.schedules import Standing


@pytest.fixture(scope="module")
def episodes():
    return random_episodes(np.random.default_rng(1), groups=(4, 3, 4, 1), failed=(5,), uniform=(2,))


@pytest.fixture(scope="module")
def batch(episodes):
    return pack(episodes)


def loss_loop(method, episodes, log_prob_of=lambda step: step.log_prob_prm):
    """The loss of the prm by its definition, in float64."""
    beta = method.beta if method.prm_beta is None else method.prm_beta
    reference = "log_prob_old" if method.reference == "old" else "log_prob_initial"
    scores = []
    for episode in episodes:
        steps = [log_prob_of(step) - getattr(step, reference) for step in episode.steps]
        unit = {"sum": 1, "mean": len(steps), "token_mean": sum(map(len, steps))}[method.trajectory_reduce]
        scores.append(beta * sum(d.sum() for d in steps) / unit)
    softplus = lambda x: np.logaddexp(0, x)
    counted = [i for i, e in enumerate(episodes) if e.counted]
    pairs = [
        (i, j)
        for i in counted
        for j in counted
        if episodes[i].success and not episodes[j].success and episodes[i].group == episodes[j].group
    ]
    if method.prm_objective == "state_pairs":
        steps = [
            (e, (e.group, s.state), beta * (log_prob_of(s) - getattr(s, reference)).sum()) for e in episodes if e.counted for s in e.steps
        ]
        margins = [a[2] - b[2] for a in steps for b in steps if a[1] == b[1] and a[0].success and not b[0].success]
        loss = np.mean(softplus(-np.array(margins)))
    elif method.prm_objective == "dpo":
        loss = np.mean([softplus(scores[j] - scores[i]) for i, j in pairs])
    else:
        loss = np.mean([softplus(-scores[i] if episodes[i].success else scores[i]) for i in counted])
    winners = {i for i, _ in pairs}
    tokens = np.concatenate([log_prob_of(step) for i in sorted(winners) for step in episodes[i].steps])
    return loss - method.nll_coef * tokens.mean()


LOSSES = {
    "paper": IStar(),
    "mean": IStar(trajectory_reduce="mean", prm_beta=0.5),
    "token_mean": IStar(trajectory_reduce="token_mean", beta=1.0),
    "nll": IStar(nll_coef=0.3),
    "initial": IStar(reference="initial"),
    "prime": PRIME(),
    "state-pairs": IStar(prm_objective="state_pairs", beta=1.0),
    "state-pairs-nll": IStar(prm_objective="state_pairs", nll_coef=0.3, reference="initial"),
    "prime-nll": PRIME(nll_coef=0.1, trajectory_reduce="mean"),
}


@pytest.mark.parametrize("packing", ["episode", "step"])
@pytest.mark.parametrize("name", LOSSES)
def test_prm_loss_against_a_loop(name, packing, episodes):
    batch = pack(episodes, packing)
    loss, metrics = LOSSES[name].prm_loss(batch.signals["log_prob_prm"], batch)
    np.testing.assert_allclose(loss, loss_loop(LOSSES[name], episodes), rtol=1e-5)
    assert metrics["pairs"] > 0 and 0 <= metrics["pair_accuracy"] <= 1


@pytest.mark.parametrize("name", ["paper", "mean", "nll", "prime", "state-pairs"])
def test_prm_loss_has_the_gradient_of_finite_differences(name, episodes, batch):
    """The public release of iStar cuts this gradient; it must reach the log-probability of every token that counts."""
    method, delta = LOSSES[name], 1e-5
    gradient = jax.grad(lambda lp: method.prm_loss(lp, batch)[0])(batch.signals["log_prob_prm"])
    assert not np.asarray(gradient)[~np.asarray(token_mask(batch))].any()
    analytic = by_step(gradient, batch)
    checked = 0
    for e in (0, 1, 4, 6):
        for s, step in enumerate(episodes[e].steps):
            for k in range(len(step.log_prob_prm)):
                nudge = lambda sign: (
                    lambda other: other.log_prob_prm + (sign * delta * (np.arange(len(other.log_prob_prm)) == k) if other is step else 0)
                )
                up, down = (loss_loop(method, episodes, nudge(sign)) for sign in (1, -1))
                np.testing.assert_allclose(analytic[e, s][k], (up - down) / (2 * delta), rtol=2e-3, atol=1e-7)
                checked += abs(up - down) > 0
    assert checked > 5


def test_gradient_with_respect_to_a_token_is_beta_times_that_of_its_episode(batch):
    """∂L/∂log π = β·∂L/∂S of the token's episode: the same for all its tokens, negative exactly for winners."""
    gradient = jax.grad(lambda lp: IStar().prm_loss(lp, batch)[0])(batch.signals["log_prob_prm"])
    mixed = {e for e in range(batch.num_episodes) if batch.episode_mask[e] and mixed_group(batch, int(batch.group_id[e]))}
    for (e, _), values in by_step(gradient, batch).items():
        assert np.ptp(values) == 0
        expected = 0 if e not in mixed else -1 if batch.success[e] else 1
        assert np.sign(values[0]) == expected
    assert mixed


def test_state_pairs_compare_actions_of_one_state_only(episodes, batch):
    """A step whose state no step of an episode with the other outcome has met gets no gradient, although its episode is in a pair."""
    method = IStar(prm_objective="state_pairs")
    gradient = by_step(jax.grad(lambda lp: method.prm_loss(lp, batch)[0])(batch.signals["log_prob_prm"]), batch)
    met = {}
    for e in episodes:
        for step in e.steps if e.counted else ():
            met.setdefault((e.group, step.state), set()).add(e.success)
    kinds = set()
    for (e, s), values in gradient.items():
        paired = len(met[episodes[e].group, episodes[e].steps[s].state]) == 2
        assert np.sign(values[0]) == (0 if not paired else -1 if episodes[e].success else 1)
        kinds.add(paired)
    assert kinds == {True, False}


def test_state_pairs_do_not_depend_on_the_names_of_states_and_leave_out_what_has_none(batch):
    method, anchor = IStar(prm_objective="state_pairs"), batch.signals["anchor_id"]
    loss = lambda ids: method.prm_loss(batch.signals["log_prob_prm"], batch.with_signals(anchor_id=ids))
    found, metrics = loss(anchor)
    renamed = jnp.where(anchor >= 0, 10**9 - 7 * anchor, -1)
    np.testing.assert_allclose(loss(renamed)[0], found, rtol=1e-6)
    assert metrics["pairs"] > 0 and loss(jnp.full_like(anchor, -1))[1]["pairs"] == 0


def mixed_group(batch, group):
    labels = np.asarray(batch.success)[(np.asarray(batch.group_id) == group) & np.asarray(batch.episode_mask)]
    return labels.any() and not labels.all()


@pytest.mark.parametrize("method", [IStar(prm_frozen=True, nll_coef=0.1), IStar.variant("released"), PRIME(prm_frozen=True)])
def test_a_frozen_prm_has_a_loss_but_no_gradient(method, batch):
    loss, gradient = jax.value_and_grad(lambda lp: method.prm_loss(lp, batch)[0])(batch.signals["log_prob_prm"])
    assert loss > 0 and not np.asarray(gradient).any()


def test_no_pair_means_no_gradient(batch):
    for success in (True, False):
        uniform = batch.replace(success=jnp.full_like(batch.success, success))
        function = lambda lp: IStar(nll_coef=0.1).prm_loss(lp, uniform)[0]
        loss, gradient = jax.value_and_grad(function)(batch.signals["log_prob_prm"])
        assert loss == 0 and not np.asarray(gradient).any()


def test_gradient_over_micro_batches_by_the_chain_rule(batch):
    """The recipe of `Method.prm_loss`: the gradient of the log-probs, then row by row through the model."""
    model = lambda w, base: base * w[0] + w[1] * jnp.tanh(base)  # stands for the forward pass of the prm
    base, weights = batch.signals["log_prob_prm"] * 1e-3, jnp.array([0.7, 0.2])
    whole = jax.grad(lambda w: IStar(beta=1.0).prm_loss(model(w, base), batch)[0])(weights)
    cotangent = jax.grad(lambda lp: IStar(beta=1.0).prm_loss(lp, batch)[0])(model(weights, base))
    part = jax.jit(jax.grad(lambda w, rows: (cotangent[rows] * model(w, base[rows])).sum()))
    rows = np.random.default_rng(0).permutation(base.shape[0]).reshape(4, -1)
    np.testing.assert_allclose(sum(part(weights, r) for r in rows), whole, rtol=1e-4, atol=1e-8)


def test_paper_advantage_against_a_loop(episodes, batch):
    """A = A^E + α·z over all steps of the group, β = 0.1 and α = 2."""
    credit = IStar(beta=0.1, alpha=2.0, episode_advantage="dr_grpo").credit(batch)
    reward = [[0.1 * (s.log_prob_prm - s.log_prob_old).sum() for s in e.steps] for e in episodes]
    for g in {e.group for e in episodes}:
        members = [i for i, e in enumerate(episodes) if e.group == g and e.counted]
        pool = np.concatenate([reward[i] for i in members])
        outcomes = np.array([episodes[i].outcome for i in members])
        for i in members:
            for s, r in enumerate(reward[i]):
                z = (r - pool.mean()) / (pool.std(ddof=1) + 1e-6) if len(pool) > 1 else 0.0
                expected = episodes[i].outcome - outcomes.mean() + 2.0 * z
                np.testing.assert_allclose(credit.step_advantage[i, s], expected, atol=1e-4)
                np.testing.assert_allclose(credit.step_reward[i, s], r, atol=1e-5)


def test_rloo_over_steps_is_the_deviation_from_the_others(batch):
    plain = np.asarray(make("rloo").credit(batch).step_advantage)
    part = {how: np.asarray(IStar(step_advantage=how).credit(batch).step_advantage) - plain for how in ("rloo", "centre")}
    group_of_0 = np.asarray(batch.step_mask & ((batch.group_id == 0) & batch.episode_mask)[:, None])
    n = group_of_0.sum()
    np.testing.assert_allclose(part["rloo"][group_of_0], part["centre"][group_of_0] * n / (n - 1), atol=1e-5)


def test_alpha_zero_is_the_outcome_method(batch):
    np.testing.assert_allclose(
        IStar(alpha=0.0, episode_advantage="grpo").credit(batch).advantage,
        make("grpo").credit(batch).advantage,
        atol=1e-6,
    )


def test_a_scaled_alpha_follows_the_pair_accuracy(batch):
    method = IStar(alpha=0.5, alpha_scaled=True)
    values = method.scheduled_values(Standing(pair_accuracy=0.7))
    scaled = method.credit(batch.with_signals(**values))
    assert values["scheduled_alpha"] == np.float32(0.5) * np.float32(2 * 0.7 - 1)
    np.testing.assert_allclose(scaled.advantage, IStar(alpha=0.2).credit(batch).advantage, atol=1e-6)
    np.testing.assert_allclose(scaled.metrics["alpha"], 0.2, rtol=1e-6)


def test_step_norm_makes_advantages_free_of_the_scale_of_rewards(batch):
    for norm in ("maxabs", "std"):
        options = dict(step_norm=norm, step_norm_floor=1e-9, step_advantage="centre")
        small, large = (IStar(beta=beta, **options).credit(batch) for beta in (1e-3, 1.0))
        np.testing.assert_allclose(small.advantage, large.advantage, atol=1e-4)
        np.testing.assert_allclose(small.step_reward * 1e3, large.step_reward, rtol=1e-4)  # logged before the rescaling


def test_the_floor_keeps_noise_small(batch):
    """A prm equal to the policy up to rounding: without a floor its noise becomes advantages of order one."""
    noise = batch.with_signals(log_prob_prm=batch.log_prob_old + 1e-4 * jnp.sin(jnp.arange(batch.tokens.size).reshape(batch.tokens.shape)))
    flat = noise.replace(outcome=jnp.zeros_like(batch.outcome))
    size = lambda floor: np.abs(IStar.variant("released", step_norm_floor=floor).credit(flat).advantage).max()
    assert size(1e-3) < 0.1 < 0.5 < size(1e-12)


def test_controls_keep_what_they_should(batch):
    true = np.asarray(IStar().credit(batch).step_reward)
    shuffled = np.asarray(IStar(step_reward="shuffled").credit(batch).step_reward)
    uniform = np.asarray(IStar(step_reward="uniform").credit(batch).step_reward)
    mask = np.asarray(batch.step_mask & batch.episode_mask[:, None])
    for e in np.flatnonzero(mask.any(axis=1)):
        np.testing.assert_allclose(np.sort(shuffled[e, mask[e]]), np.sort(true[e, mask[e]]))
        np.testing.assert_allclose(uniform[e, mask[e]], true[e, mask[e]].mean(), atol=1e-6)
    assert np.abs(shuffled - true).max() > 1e-3 and np.abs(uniform - true).max() > 1e-3


def test_step_permutation_permutes_within_the_mask():
    mask = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
    permutation = step_permutation(np.random.default_rng(0), mask)
    assert permutation.dtype == np.int32
    np.testing.assert_array_equal(np.sort(permutation, axis=1), np.tile(np.arange(6), (3, 1)))
    assert all((row[~m] == np.arange(6)[~m]).all() for row, m in zip(permutation, mask))
    assert (permutation[0] != np.arange(6)).any()


def test_prm_equal_to_the_reference_gives_no_step_credit(batch):
    credit = IStar().credit(batch.with_signals(log_prob_prm=batch.log_prob_old))
    assert not np.asarray(credit.step_reward).any()
    np.testing.assert_array_equal(credit.advantage, make("rloo").credit(batch).advantage)
    assert credit.metrics["prm_kl_k3"] == 0 and credit.metrics["process_share"] == 0


def test_metrics_by_their_definitions(episodes, batch):
    metrics = IStar().credit(batch).metrics
    counted = [e for e in episodes if e.counted]
    difference = np.concatenate([s.log_prob_old - s.log_prob_prm for e in counted for s in e.steps])
    reward = [-0.05 * (s.log_prob_old - s.log_prob_prm).sum() for e in counted for s in e.steps]
    np.testing.assert_allclose(metrics["prm_kl_k1"], difference.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["step_reward_std"], np.std(reward, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(metrics["shaped_to_outcome"], np.abs(reward).sum() / sum(abs(e.outcome) for e in counted), rtol=1e-4)
    groups = {e.group for e in counted}
    labels = [{e.success for e in counted if e.group == g} for g in groups]
    np.testing.assert_allclose(metrics["mixed_groups"], np.mean([len(label) == 2 for label in labels]), rtol=1e-6)
    flat = [len({e.outcome for e in counted if e.group == g}) == 1 for g in groups]
    np.testing.assert_allclose(metrics["flat_groups"], np.mean(flat), rtol=1e-6)


def test_variants():
    assert make("istar", variant="paper") == IStar() == IStar.variant("paper")
    assert make("istar", variant="released", trajectory_reduce="sum") == IStar.variant("released", trajectory_reduce="sum")
    released = IStar.variant("released")
    assert released.prm_frozen and released.trajectory_reduce == "mean" and released.baseline == "first_seen"
    with pytest.raises(ValueError, match="there are: paper, released"):
        IStar.variant("draft")


def test_prm_loss_names_a_missing_reference(batch):
    with pytest.raises(ValueError, match="log_prob_initial"):
        PRIME().prm_loss(batch.log_prob_old, batch.replace(signals={}))
    IStar().prm_loss(batch.log_prob_old, batch.replace(signals={}))  # needs nothing but the batch


def test_rank_correlation_and_quality():
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)
    progress = np.array([[1.0, -1.0, 2.0, 0.0], [1.0, np.inf, -1.0, 9.0]])
    # Right in order within each episode, and shifted between them.
    reward = np.array([[0.1, -0.3, 0.2, 0.0], [-0.1, 5.0, -0.2, -9.0]])
    quality = credit_quality(reward, progress, mask)
    assert quality["steps"] == 6 and quality["rank_correlation_within"] == pytest.approx(1.0)
    assert quality["sign_accuracy"] == pytest.approx(4 / 5)
    # Ranks by hand: progress 4.5, 1.5, 6, 3, 4.5, 1.5 and reward 5, 1, 6, 4, 3, 2.
    expected = np.corrcoef([4.5, 1.5, 6, 3, 4.5, 1.5], [5, 1, 6, 4, 3, 2])[0, 1]
    assert quality["rank_correlation"] == rank_correlation(reward, progress, mask) == pytest.approx(expected)
    assert rank_correlation(-reward, progress, mask) == pytest.approx(-expected)


def test_quality_leaves_out_what_is_undefined():
    constant = np.ones((2, 3))
    assert np.isnan(rank_correlation(constant, np.arange(6.0).reshape(2, 3), constant > 0))
    assert credit_quality(constant, 0 * constant, constant > 0) == {"steps": 6.0}
    assert credit_quality(constant, constant, constant < 0) == {"steps": 0.0}
    with pytest.raises(ValueError, match="share one shape"):
        rank_correlation(np.ones((2, 3)), np.ones((2, 2)), np.ones((2, 3), bool))
