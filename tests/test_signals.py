"""The table of arrays alone determines their levels, even if their shapes happen to be equal."""

import dataclasses

import jax
import numpy as np
import pytest
from references import pack, random_episodes

from stepreward import credit, signals
from stepreward.batch import Batch, validate
from stepreward.rollout.bins import bin_rows
from stepreward.training.minibatches import take_episodes, take_rows

SIZES = {"rows": 3, "length": 4, "episodes": 3, "steps": 4}  # rows and episodes, tokens and steps are as many


def square() -> Batch:
    """A batch in which the token level and the step level have one shape: episode e lies in row e, two tokens a step from its second."""
    step_id = np.array([[-1, 0, 0, 1], [-1, 4, 4, 5], [-1, 8, 8, 9]], np.int32)
    steps = np.array([[True, True, False, False]] * 3)
    numbers = np.arange(12).reshape(3, 4)
    return Batch(
        tokens=numbers.astype(np.int32),
        positions=np.tile(np.arange(4, dtype=np.int32), (3, 1)),
        segment_ids=np.ones((3, 4), np.int32),
        action_mask=step_id >= 0,
        step_id=step_id,
        log_prob_old=-numbers / 10,
        step_mask=steps,
        env_reward=numbers * 1.0,
        executed=steps,
        episode_mask=np.ones(3, bool),
        outcome=np.arange(3.0),
        success=np.ones(3, bool),
        truncated=np.zeros(3, bool),
        group_id=np.arange(3, dtype=np.int32),
        signals={"value": numbers * 2.0, "progress": numbers * 3.0, "kl_coef": np.float32(1)},
    )


def test_every_field_of_a_batch_has_a_row_and_no_other():
    fields = {field.name for field in dataclasses.fields(Batch)} - {"signals", "vision"}
    assert fields == set(signals.FIELDS) and not fields & set(signals.SIGNALS)
    assert {row.level for row in (*signals.FIELDS.values(), *signals.SIGNALS.values())} == set(signals.LEVELS)
    assert all(row.meaning.endswith(".") for row in (*signals.FIELDS.values(), *signals.SIGNALS.values()))


def test_what_methods_require_is_in_the_table():
    for name in credit.names():
        for variant in credit.make(name).variants or (None,):
            method = credit.make(name, **({"variant": variant} if variant else {}))
            assert method.requires | method.label_signals <= set(signals.SIGNALS)


def test_rows_are_taken_by_level_where_two_levels_have_one_shape():
    batch = square()
    part = take_rows(batch, np.array([2, 0]), 3)
    np.testing.assert_array_equal(part.signals["value"], [[16, 18, 20, 22], [0, 2, 4, 6], [0, 0, 0, 0]])
    np.testing.assert_array_equal(part.signals["progress"], batch.signals["progress"])
    np.testing.assert_array_equal(batch.rows(np.array([1])).signals["value"], [[8, 10, 12, 14]])
    np.testing.assert_array_equal(batch.rows(np.array([1])).signals["progress"], batch.signals["progress"])


def test_episodes_are_taken_by_level_where_two_levels_have_one_shape():
    part = take_episodes(square(), np.array([2, 1]), capacity=4, num_episodes=3)
    np.testing.assert_array_equal(part.signals["progress"], [[24, 27, 30, 33], [12, 15, 18, 21], [0, 0, 0, 0]])
    np.testing.assert_array_equal(part.signals["value"], [[8, 10, 12, 14], [16, 18, 20, 22], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(part.step_id[:2, 1], [4, 0])
    assert part.signals["kl_coef"] == 1 and (part.step_id[2:] == -1).all()


def test_rows_are_packed_by_level_where_two_levels_have_one_shape():
    packed, _ = bin_rows(square(), length=8)
    np.testing.assert_array_equal(packed.signals["progress"], square().signals["progress"])
    assert packed.signals["value"].shape == packed.tokens.shape == (2, 8)


@pytest.mark.parametrize("name, near", [("log_prob_prn", "log_prob_prm"), ("zzz", None)])
def test_a_name_without_a_row_is_refused(name, near):
    with pytest.raises(ValueError, match=f"there is no signal {name!r}") as raised:
        square().with_signals(**{name: np.zeros((3, 4))})
    assert (f"did you mean {near!r}" in str(raised.value)) == (near is not None)


def test_a_signal_of_one_s_own(monkeypatch):
    monkeypatch.setattr(signals, "SIGNALS", dict(signals.SIGNALS))
    signals.add("tide", signals.STEP, np.float32, "How high the water stands after a step, in metres.")
    signals.add("tide", signals.STEP, np.float32, "How high the water stands after a step, in metres.")  # a module that is imported twice
    batch = square().with_signals(tide=np.ones((3, 4), np.float32))
    assert take_rows(batch, np.array([0]), 2).signals["tide"].shape == (3, 4)
    for level, message in ((signals.TOKEN, "already has an array 'tide' .How high the water"), ("row", "level 'row' is not one of token")):
        with pytest.raises(ValueError, match=message):
            signals.add("tide", level, np.float32, "Another.")
    with pytest.raises(ValueError, match="already has an array 'outcome'"):
        signals.add("outcome", signals.EPISODE, np.float32, "Another.")


@pytest.mark.parametrize("signal, shape", [("value", (3, 5)), ("progress", (3,)), ("kl_coef", (1,))])
def test_a_signal_of_another_level_s_shape_is_named(signal, shape):
    with pytest.raises(ValueError, match=rf"batch.signals\['{signal}'\] has shape"):
        validate(square().with_signals(**{signal: np.zeros(shape)}))


def test_the_table_says_the_types_of_a_packed_batch():
    batch = jax.device_get(pack(random_episodes(np.random.default_rng(0))))
    for name, row in signals.FIELDS.items():
        assert getattr(batch, name).dtype == row.dtype, name
