"""Random streams: names stand for numbers that never change, since a resumed run must repeat its draws."""

import jax
import numpy as np
import pytest

from stepreward.training import streams


@pytest.mark.parametrize("table", [streams.HOST, streams.DEVICE, streams.TASKS], ids=["host", "device", "tasks"])
def test_no_two_streams_share_a_number(table):
    assert len(set(table.values())) == len(table)


def test_a_stream_on_the_host_is_seed_number_and_indices():
    assert streams.host(7, "sft", 3) == [7, 2, 3]
    assert streams.host(7, "policy", 3, 1) == [7, 5, 3, 1]
    assert streams.host(7, "offline") == [7, 9]


def test_a_stream_on_the_device_folds_its_number_and_then_its_indices():
    key = jax.random.key(7)
    expected = jax.random.fold_in(jax.random.fold_in(key, 2), 5)
    assert (jax.random.key_data(streams.device(key, "train", 5)) == jax.random.key_data(expected)).all()


def test_a_task_is_drawn_from_seed_stream_and_index():
    expected = int(np.random.SeedSequence([7, 2, 4, 1]).generate_state(1, np.uint32)[0])
    assert streams.task(7, "train", 4, 1) == expected
    assert len({streams.task(7, name, 0) for name in streams.TASKS}) == len(streams.TASKS)


@pytest.mark.parametrize("name, same", [("held_out", True), ("pictures", True), ("train", False), ("explore", False)])
def test_the_tasks_that_measure_are_the_same_for_every_seed(name, same):
    assert (streams.task(0, name, 5) == streams.task(1, name, 5)) == same


def test_a_stream_without_a_name_is_an_error():
    with pytest.raises(KeyError):
        streams.host(0, "policies")
