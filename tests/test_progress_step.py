"""The progress estimator: its gradient, its training data, its stopping rule, and its evaluation."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import VOCABULARY
from ml_collections import ConfigDict

from stepreward import credit
from stepreward.credit import outcome_fit
from stepreward.credit.base import last_token, step_sum
from stepreward.errors import UserError
from stepreward.models.heads import head_outputs
from stepreward.models.presets import decoder_config
from stepreward.rollout.episode import Episode, Step, Task
from stepreward.training.auxiliaries.estimator import Estimator, check_outcomes, estimate, held_out_groups, with_labels
from stepreward.training.auxiliaries.update import StepOutputs, auxiliary_step
from stepreward.training.backbones import Backbone
from stepreward.training.layout import Layout
from stepreward.training.minibatches import round_up, take_rows
from stepreward.training.state import create

SGD = optax.sgd(1.0)  # parameters move by minus the gradient
METHODS = {
    "spa": credit.make("spa"),
    "rbt": credit.make("rbt", bag_size=2),
    "rudder": credit.make("rudder"),
    "progrm": credit.make("progrm"),
}


def labelled(batch):
    """Labels on most steps; −1 is none."""
    label = np.random.default_rng(3).random(batch.step_mask.shape).astype(np.float32)
    return batch.with_signals(progress_label=np.where(label < 0.2, -1.0, label).astype(np.float32))


def whole_loss(params, graphdef, method, batch):
    """The loss through the model in one piece."""
    output = head_outputs(
        graphdef, params, batch.tokens, batch.positions, batch.segment_ids, action_mask_RxL=batch.action_mask, before=False
    )
    return method.progress_loss(step_sum(jnp.where(last_token(batch), output, 0.0), batch), batch)[0]


def step(headed, method, batch, chunk_rows=8, optimizer=SGD, state=None, **options):
    state = create(headed[1], optimizer) if state is None else state
    what = dict(name="estimator", outputs=StepOutputs(), method=method)
    return auxiliary_step(state, batch, graphdef=headed[0], optimizer=optimizer, chunk_rows=chunk_rows, **what, **options)


@pytest.mark.parametrize("name", METHODS)
def test_chunks_of_any_size_give_the_gradient_of_the_whole_loss(headed, make_batch, flat, assert_same, name):
    method, batch = METHODS[name], jax.tree.map(jnp.asarray, labelled(make_batch(failed=(2,))))
    value, gradient = jax.jit(jax.value_and_grad(partial(whole_loss, graphdef=headed[0], method=method, batch=batch)))(headed[1])
    assert np.linalg.norm(flat(gradient["decoder"])) > 1e-3 and np.linalg.norm(flat(gradient["scalar_head"])) > 1e-2
    for chunk_rows, options in ((4, {}), (24, {}), (4, {"max_actions": 2})):
        state, metrics = step(headed, method, batch, chunk_rows, **options)
        assert_same(flat(headed[1]) - flat(state.params), flat(gradient))
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(flat(gradient)), rtol=1e-4)


def test_empty_rows_the_order_of_rows_and_uncounted_episodes_change_nothing(headed, make_batch, assert_same):
    method, batch = METHODS["spa"], make_batch(failed=(2,))
    state, metrics = step(headed, method, batch)
    order = np.random.default_rng(0).permutation(24)
    shuffled = take_rows(batch, order, 40)
    noise = np.random.default_rng(1).integers(0, 16, shuffled.tokens.shape)
    empty = ~shuffled.action_mask.any(axis=1, keepdims=True)
    outcome = np.where(batch.episode_mask, batch.outcome, 7.0).astype(np.float32)
    shuffled = shuffled.replace(tokens=np.where(empty, noise, shuffled.tokens).astype(np.int32), outcome=outcome)
    assert empty.sum() > 10 and not batch.episode_mask.all()
    again, more = step(headed, method, shuffled)
    assert_same(again.params, state.params)
    np.testing.assert_allclose(more["loss"], metrics["loss"], rtol=1e-6)


def test_the_estimate_is_the_output_at_the_last_token_of_each_step(headed, make_batch):
    batch = make_batch(failed=(2,))
    mask = jnp.asarray(batch.action_mask)
    output = head_outputs(*headed, batch.tokens, batch.positions, batch.segment_ids, action_mask_RxL=mask, before=False)
    expected = np.zeros(batch.step_mask.shape)
    for row in np.flatnonzero(batch.action_mask.any(axis=1)):
        at = np.flatnonzero(batch.action_mask[row])[-1]
        expected[np.unravel_index(batch.step_id[row, at], expected.shape)] = output[row, at]
    for chunk_rows in (4, 24):
        found = estimate(headed[1], batch, graphdef=headed[0], chunk_rows=chunk_rows, max_actions=2)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (expected[batch.step_mask] != 0).all() and not np.asarray(found)[~batch.step_mask].any()


@pytest.mark.parametrize("name", METHODS)
def test_updates_lower_the_loss(headed, make_batch, name):
    batch, optimizer, state, losses = labelled(make_batch()), optax.adam(3e-3), None, []
    for _ in range(15):
        state, metrics = step(headed, METHODS[name], batch, optimizer=optimizer, state=state)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]


# --- The estimator of a run ---

CONFIG = decoder_config("tiny-micro", vocab_size=VOCABULARY)
SETTINGS = dict(
    head="mlp",
    learning_rate=3e-3,
    warmup_updates=0,
    decay_updates=0,
    weight_decay=0.0,
    max_grad_norm=1.0,
    minibatch_episodes=3,
    patience=1,
    refresh_every=2,
    attention="causal",
)


class OneDevice(Layout):
    """What an estimator asks of a run's layout, on one device."""

    def __init__(self, graphdef, max_steps=3):
        self.passes = lambda model: dict(graphdef=graphdef, chunk_rows=8, max_actions=None)
        self.row_capacity = lambda episodes: round_up(episodes * max_steps, 8)

    place = staticmethod(lambda batch: batch)
    place_parameters = staticmethod(lambda params: params)


@pytest.fixture
def make_estimator(headed):
    """`make_estimator("spa", patience=2)`, with the parameters of `headed`."""

    def make(name="spa", **changes):
        estimator = Estimator(
            ConfigDict({"estimator": SETTINGS | changes, "model": {"moment_dtype": "float32"}}),
            SimpleNamespace(method=METHODS[name]),
            OneDevice(headed[0]),
            jax.random.key(0),
        )
        estimator.take(Backbone(headed[0], CONFIG), headed[1])
        return estimator

    return make


def four_groups(make_batch, **options):
    return make_batch(groups=4, group_size=2, steps=3, **options)


def test_an_estimator_begins_as_the_policy_with_a_head_that_says_zero(headed, make_batch, make_estimator, flat):
    estimator, batch = make_estimator(), four_groups(make_batch)
    assert np.abs(estimator.scores(batch, None, None)["progress"]).max() > 0
    estimator.begin(Backbone(headed[0], CONFIG), headed[1]["decoder"])
    np.testing.assert_array_equal(flat(estimator.params["decoder"]), flat(headed[1]["decoder"]))
    assert not estimator.scores(batch, None, None)["progress"].any() and estimator.best_loss == np.inf


def test_the_best_parameters_are_kept_and_patience_ends_the_training(make_batch, make_estimator, monkeypatch, flat):
    estimator, batch = make_estimator(patience=1), four_groups(make_batch)
    scripted, ends, finished = [3.0, 1.0, 2.0, 1.0], [], []
    monkeypatch.setattr(estimator, "loss", lambda *_: scripted[len(ends)])
    for epoch in range(4):
        metrics = estimator.epoch(batch, np.array([0]), [epoch])
        ends.append(flat(estimator.state.params))
        finished.append(estimator.finished)
        assert metrics["estimator/held_out_loss"] == scripted[epoch]
        np.testing.assert_array_equal(flat(estimator.best), ends[min(epoch, 1)])
    assert finished == [False, False, False, True] and (estimator.best_loss, estimator.stale) == (1.0, 2)
    assert all(np.abs(b - a).max() > 1e-4 for a, b in zip(ends, ends[1:]))


def test_held_out_episodes_measure_and_never_train(make_batch, make_estimator, flat):
    batch, held_out = four_groups(make_batch), np.array([1, 3])
    theirs = np.isin(batch.group_id, held_out)

    def trained(outcome):
        estimator = make_estimator()
        metrics = [estimator.epoch(batch.replace(outcome=outcome.astype(np.float32)), held_out, [0, e]) for e in range(2)]
        return flat(estimator.state.params), metrics[-1]

    params, metrics = trained(batch.outcome)
    same, other = trained(np.where(theirs, 1 - batch.outcome, batch.outcome))
    np.testing.assert_array_equal(same, params)
    assert other["estimator/loss"] == metrics["estimator/loss"]
    assert abs(other["estimator/held_out_loss"] - metrics["estimator/held_out_loss"]) > 1e-2
    assert np.abs(trained(np.where(theirs, batch.outcome, 1 - batch.outcome))[0] - params).max() > 1e-4


def test_the_loss_of_some_episodes_is_their_mean_whatever_the_parts(headed, make_batch, make_estimator):
    batch = four_groups(make_batch, failed=(4,))
    estimator = make_estimator(minibatch_episodes=3)
    mine = estimator.episodes(batch, np.array([0]), among=False)
    np.testing.assert_array_equal(mine, [2, 3, 5, 6, 7])  # of the other groups, without the one that failed
    np.testing.assert_array_equal(estimator.episodes(batch, np.array([0, 2])), [0, 1, 5])
    output = np.asarray(estimate(headed[1], batch, graphdef=headed[0], chunk_rows=8))
    error = output.sum(axis=1) - batch.outcome
    np.testing.assert_allclose(estimator.loss(batch, mine), (error[mine] ** 2).mean(), rtol=1e-5)
    # Where nothing is held out, the training tasks measure.
    metrics = estimator.epoch(batch, np.array([], int), [0])
    everyone = np.array([0, 1, 2, 3, 5, 6, 7])
    np.testing.assert_allclose(metrics["estimator/held_out_loss"], estimator.loss(batch, everyone), rtol=1e-6)


def test_the_seed_orders_the_episodes_of_an_epoch(make_batch, make_estimator, flat):
    batch = four_groups(make_batch)

    def end(seed):
        estimator = make_estimator()
        estimator.epoch(batch, np.array([0]), seed)
        return flat(estimator.state.params)

    np.testing.assert_array_equal(end([0, 1]), end([0, 1]))
    assert np.abs(end([0, 1]) - end([0, 2])).max() > 0


def test_quality_measures_the_best_parameters_on_the_episodes_asked_for(headed, make_batch, make_estimator):
    batch, estimator = four_groups(make_batch), make_estimator()
    some = np.array([5, 0, 3])
    contribution = np.asarray(estimate(headed[1], batch, graphdef=headed[0], chunk_rows=8))
    estimator.state = estimator.state.replace(params=jax.tree.map(lambda x: x * np.nan, estimator.state.params))
    measured = estimator.quality(batch, some, contribution, 0.25)
    error = contribution[some].sum(axis=1) - batch.outcome[some]
    np.testing.assert_allclose(measured["mse"], (error**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(measured["mse_of_mean"], ((batch.outcome[some] - 0.25) ** 2).mean(), rtol=1e-6)
    assert measured["rank_correlation"] == pytest.approx(1) and measured["steps"] == batch.step_mask[some].sum()


def test_a_refresh_trains_on_the_latest_batches(make_batch, make_estimator, flat):
    batches = [four_groups(make_batch, seed=seed).with_signals(value=np.zeros(3)) for seed in range(3)]
    estimator = make_estimator(refresh_every=2)
    for batch in batches:
        estimator.remember(batch)
    assert [b.tokens.tolist() for b in estimator.replay] == [b.tokens.tolist() for b in (batches[2], batches[1])]
    assert not any(b.signals for b in estimator.replay)  # what no label needs is dropped
    before, updates = flat(estimator.params), int(estimator.state.updates)
    metrics = estimator.refresh([0])
    assert int(estimator.state.updates) == updates + 2 * 3  # 8 episodes in parts of at most 3
    np.testing.assert_array_equal(flat(estimator.params), flat(estimator.state.params))
    assert np.abs(flat(estimator.params) - before).max() > 1e-4 and np.isfinite(metrics["estimator/loss"])
    never = make_estimator(refresh_every=0)
    never.remember(batches[0])
    assert never.replay == []


# --- What it is trained on ---


def test_held_out_groups_are_a_share_drawn_by_the_seed():
    group_id = np.repeat(np.arange(16), 4)
    found = held_out_groups(group_id, 0.25, 0)
    assert len(found) == len(set(found)) == 4 and set(found) < set(range(16)) and (np.diff(found) > 0).all()
    np.testing.assert_array_equal(held_out_groups(group_id[::-1], 0.25, 0), found)
    assert len({tuple(held_out_groups(group_id, 0.25, seed)) for seed in range(5)}) > 1
    assert len(held_out_groups(group_id, 0.0, 0)) == 0


def test_outcomes_beyond_zero_and_one_are_one_error(make_batch):
    batch = make_batch(failed=(0,))
    check_outcomes(batch)
    check_outcomes(batch.replace(outcome=np.where(batch.episode_mask, batch.outcome, -7.0)))  # a failed episode plays no part
    for outcome, words in ((batch.outcome - 1.5, "outcomes range from -1.5 to -0.5"), (batch.outcome * 10.9, "range from 0 to 10.9")):
        with pytest.raises(UserError, match=words + r".*set credit.outcome=success, or choose credit.outcome_scale"):
            check_outcomes(batch.replace(outcome=outcome))


def played(group, success, *moves, failure=None):
    none = np.zeros(0, np.float32)
    steps = [Step(none, none, none, none, "", "", action, 0.0, True, key) for key, action in moves]
    return Episode(Task(0, "train", group), steps, success=success, failure=failure)


def test_progrm_s_labels_follow_the_steps_that_successes_share(make_batch):
    """Group 0's successes share a|up and c|up, in that order: the first is half the way. Group 1 has no success: −1."""
    a, b, c = ("a", "up"), ("b", "down"), ("c", "up")
    episodes = [
        played(0, True, a, b, c), played(0, True, a, c), played(0, False, b, a, a), played(0, False, ("a", "down"), c),
        played(1, False, a, c), played(1, True, a, c, failure="broken"), played(2, True, a), played(2, False, b),
    ]  # fmt: skip
    batch = make_batch(failed=(5,))
    success = np.array([e.success and e.failure is None for e in episodes])
    batch = batch.replace(success=success, group_id=np.array([0, 0, 0, 0, 1, 1, 2, 2], np.int32))
    label = with_labels(batch, episodes, METHODS["progrm"]).signals["progress_label"]
    expected = [[0.5, 0.5, 1], [0.5, 1, -1], [0, 0.5, 0.5], [0, 0, -1], [-1, -1, -1], [-1, -1, -1], [1, -1, -1], [0, -1, -1]]
    np.testing.assert_array_equal(label, expected)
    assert with_labels(batch, episodes, METHODS["spa"]) is batch


def test_outcome_fit_of_literal_numbers():
    """Errors −0.05, 0.5, −0.2, 0.09; of the constant 0.25: 0.25, 0.25, −0.75, −0.75."""
    found = outcome_fit([-0.05, 0.5, 0.8, 1.09], [0.0, 0.0, 1.0, 1.0], 0.25, bins=2)
    expected = {
        "mse": (0.0025 + 0.25 + 0.04 + 0.0081) / 4, "mae": (0.05 + 0.5 + 0.2 + 0.09) / 4, "within_0.1": 2 / 4,
        "mse_of_mean": (2 * 0.0625 + 2 * 0.5625) / 4, "explained": 1 - 0.3006 / 1.25,
        "calibration_error": ((0.5 - 0.05) / 2 + (0.2 - 0.09) / 2) / 2,  # in each bin errors may cancel
    }  # fmt: skip
    assert found == pytest.approx(expected)


def test_outcome_fit_s_bins_are_of_equally_many_episodes_sorted_by_prediction():
    prediction, outcome = np.array([0.9, 0.1, 0.5]), np.array([1.0, 0.0, 0.0])
    errors = {1: abs(0.5 - 1 / 3), 2: (2 * 0.3 + 0.1) / 3, 9: 0.7 / 3}  # {all}; {0.1, 0.5}, {0.9}; each its own
    for bins, expected in errors.items():
        assert outcome_fit(prediction, outcome, 0.0, bins=bins)["calibration_error"] == pytest.approx(expected)


def test_outcome_fit_leaves_out_what_is_explained_of_equal_outcomes_and_refuses_other_shapes():
    assert "explained" not in outcome_fit([0.2, 0.4], [1.0, 1.0], 1.0)
    for prediction, outcome in (([], []), ([0.1], [0.1, 0.2]), ([[0.1]], [[0.1]])):
        with pytest.raises(ValueError, match="must share one shape"):
            outcome_fit(prediction, outcome, 0.0)
