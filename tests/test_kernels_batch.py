"""The checks of a batch, and its rows."""

import jax.numpy as jnp
import numpy as np
import pytest
from references import pack, random_episodes

from stepreward.batch import validate


@pytest.fixture(scope="module")
def batch():
    return pack(random_episodes(np.random.default_rng(0)))


@pytest.mark.parametrize("packing", ["episode", "step"])
@pytest.mark.parametrize("padded", [True, False])
def test_both_packings_are_valid(packing, padded):
    validate(pack(random_episodes(np.random.default_rng(0)), packing, padded=padded))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda b: dict(outcome=b.outcome[:, None]), r"outcome has shape \(14, 1\); it must be \(14,\)"),
        (lambda b: dict(success=b.outcome), "success has dtype float32; it must be bool"),
        (lambda b: dict(group_id=b.group_id + 14), r"group_id has values in \[14, 17\]; they must be in \[0, 14\)"),
        (
            lambda b: dict(step_id=b.step_id.at[0, 0].set(70)),
            r"step_id has values in \[-1, 70\]; they must be in \[-1, 70\)",
        ),
        (lambda b: dict(action_mask=~b.action_mask), "exactly where batch.action_mask is False"),
        (lambda b: dict(step_mask=b.step_mask & False), "a step whose batch.step_mask is False"),
        (lambda b: dict(step_id=jnp.where(b.step_id >= 0, 0, -1)), "more than one row"),
    ],
)
def test_what_is_wrong_is_named(batch, change, message):
    with pytest.raises(ValueError, match=message):
        validate(batch.replace(**change(batch)))


def test_rows_keeps_steps_and_episodes_whole(batch):
    part = batch.rows(jnp.array([3, 0]))
    np.testing.assert_array_equal(part.step_id, np.asarray(batch.step_id)[[3, 0]])
    np.testing.assert_array_equal(part.signals["value"], np.asarray(batch.signals["value"])[[3, 0]])
    assert part.step_mask is batch.step_mask and part.signals["step_permutation"] is batch.signals["step_permutation"]
