"""Truncated sampling: literal probabilities, and the distribution of the draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepreward.rollout.sampling import Sampling, sample, truncate

PROBABILITIES = [0.05, 0.4, 0.2, 0.3, 0.05]


def kept(probabilities, top_k, top_p):
    log_p = jnp.log(jnp.array([probabilities, probabilities[::-1]]))
    found = np.asarray(truncate(log_p, top_k, top_p))
    np.testing.assert_array_equal(np.isfinite(found[0]), np.isfinite(found[1])[::-1])  # rows are independent
    np.testing.assert_array_equal(found[0][np.isfinite(found[0])], np.asarray(log_p)[0][np.isfinite(found[0])])
    return list(np.flatnonzero(np.isfinite(found[0])))


@pytest.mark.parametrize(
    "top_k, top_p, expected",
    [
        (0, 1.0, [0, 1, 2, 3, 4]),
        (1, 1.0, [1]),
        (2, 1.0, [1, 3]),
        (4, 1.0, [0, 1, 2, 3, 4]),  # the two of 0.05 tie for the fourth place: both stay
        (5, 1.0, [0, 1, 2, 3, 4]),
        (99, 1.0, [0, 1, 2, 3, 4]),
        (0, 1e-9, [1]),
        (0, 0.39, [1]),
        (0, 0.41, [1, 3]),
        (0, 0.69, [1, 3]),
        (0, 0.71, [1, 2, 3]),
        (0, 0.92, [0, 1, 2, 3, 4]),
        (2, 0.56, [1]),  # of the two that stay, the first has 4/7 = 0.571
        (2, 0.58, [1, 3]),
        (3, 1e-9, [1]),
    ],
)
def test_truncation_keeps(top_k, top_p, expected):
    assert kept(PROBABILITIES, top_k, top_p) == expected


def test_ties_stay_together():
    assert kept([0.25, 0.25, 0.25, 0.25], 1, 1.0) == [0, 1, 2, 3]
    assert kept([0.3, 0.3, 0.2, 0.2], 0, 0.1) == [0, 1]
    assert kept([0.3, 0.3, 0.2, 0.2], 3, 1.0) == [0, 1, 2, 3]


def test_one_certain_token_stays():
    log_p = jnp.array([[-jnp.inf, 0.0, -jnp.inf]])
    for top_k, top_p in ((0, 1e-6), (1, 1.0), (2, 0.5), (0, 1.0)):
        np.testing.assert_array_equal(jnp.exp(truncate(log_p, top_k, top_p)), [[0, 1, 0]])


@pytest.mark.parametrize(
    "settings, expected",
    [
        (dict(), PROBABILITIES),
        (dict(top_k=2), [0, 4 / 7, 0, 3 / 7, 0]),
        (dict(top_p=0.71), [0, 4 / 9, 2 / 9, 3 / 9, 0]),
        (dict(top_k=1), [0, 1, 0, 0, 0]),
        (dict(temperature=0.0), [0, 1, 0, 0, 0]),
    ],
)
def test_frequencies(settings, expected):
    draws = 20_000
    log_p = jnp.broadcast_to(jnp.log(jnp.array(PROBABILITIES)), (draws, 5))
    drawn = sample(log_p, jax.random.split(jax.random.key(0), draws), Sampling((), 1, **settings))
    assert drawn.dtype == jnp.int32
    # Five standard deviations of a frequency are at most 5 · sqrt(¼ / 20,000) = 0.018.
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / draws, expected, atol=0.018)
    if 1 in expected:
        assert (drawn == 1).all()


def test_a_draw_depends_on_its_own_row_and_key_alone():
    log_p = jax.random.normal(jax.random.key(1), (6, 9))
    keys = jax.random.split(jax.random.key(2), 6)
    order = np.array([4, 0, 3])
    drawn = sample(log_p, keys, Sampling((), 1))
    np.testing.assert_array_equal(sample(log_p[order], keys[order], Sampling((), 1)), drawn[order])


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(temperature=-0.1), "temperature=-0.1"),
        (dict(temperature=float("nan")), "temperature=nan"),
        (dict(temperature=float("inf")), "temperature=inf"),
        (dict(top_k=-1), "top_k=-1"),
        (dict(top_p=0.0), "top_p=0.0"),
        (dict(top_p=1.1), "top_p=1.1"),
        (dict(top_p=float("nan")), "top_p=nan"),
        (dict(max_answer_tokens=0), "max_answer_tokens=0"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        Sampling(**{"stop_ids": (), "max_answer_tokens": 1, **settings})
