"""Calls of a pool that nobody waits for: they arrive as they end, and an interrupt leaves none behind."""

import time

import misbehaving
import pytest

from stepreward.rollout.environments import Call, EnvironmentFailure
from stepreward.rollout.pools import make_pool


@pytest.fixture(params=["inline", "thread", "process"])
def pool(request):
    with make_pool(request.param, misbehaving.make(), timeout_s=20, reset_timeout_s=30) as pool:
        pool.call_all([Call(slot, "step", ("",)) for slot in range(3)])
        pool.kind = request.param
        yield pool


def step(slot, action=""):
    return Call(slot, "step", (action,))


def all_arrived(pool):
    found = {}
    while new := pool.arrived():
        found |= new
    return found


def test_each_result_arrives_once_and_under_its_slot(pool):
    rounds = pool.rounds
    assert pool.begin([step(2), [step(0), Call(0, "distance")]]) == [2, 0]
    found = all_arrived(pool)
    assert found[2][1] == 2 and [found[0][0][1], found[0][1]] == [2, 2.0] and set(found) == {0, 2}
    assert pool.arrived() == pool.arrived(wait=False) == {} and pool.rounds == rounds + 1


def test_a_slow_call_does_not_delay_a_fast_one(pool):
    if pool.kind == "inline":
        pytest.skip("calls in this process run one after the other")
    pool.begin([step(0, "sleep:1.5")])
    started = time.monotonic()
    for _ in range(3):  # other slots go on meanwhile
        pool.begin([step(1), step(2)])
        found = {}
        while len(found) < 2:
            found |= pool.arrived()
        assert set(found) == {1, 2}
    assert time.monotonic() - started < 1.2 and pool.arrived(wait=False) == {}
    assert all_arrived(pool) == {0: "sleep"}


def test_a_failure_is_the_result_of_its_own_slot(pool):
    pool.begin([step(0, "raise"), step(1)])
    found = all_arrived(pool)
    assert isinstance(found[0], EnvironmentFailure) and "the server is gone" in str(found[0]) and found[1][1] == 2
    assert pool.failures == 1 and pool.call(0, "step", "")[1] == 1  # a fresh environment


def test_a_busy_slot_takes_no_other_call(pool):
    pool.begin([step(0)])
    with pytest.raises(ValueError, match="the slot 0 is busy"):
        pool.begin([step(1), step(0)])
    with pytest.raises(ValueError, match="still running"):
        pool.call_all([step(1)])
    assert all_arrived(pool)[0][1] == 2
    with pytest.raises(ValueError, match="called once a round"):
        pool.begin([step(1), step(1)])
    assert pool.call(1, "step", "")[1] == 2


def test_what_was_abandoned_never_arrives(pool):
    pool.begin([step(0, "" if pool.kind == "inline" else "sleep:1"), step(1)])
    pool.abandon()
    assert pool.arrived() == {}
    assert [found[1] for found in pool.call_all([step(0), step(1)])] == [1, 1]  # fresh environments, and their own answers


def test_a_late_call_fails_alone():
    with make_pool("process", misbehaving.make(), timeout_s=0.5, reset_timeout_s=30) as pool:
        pool.call_all([step(0), step(1)])
        pool.begin([step(0, "hang"), step(1)])
        assert set(pool.arrived()) == {1}
        found = pool.arrived()
        assert isinstance(found[0], EnvironmentFailure) and "took longer than 0.5 s" in str(found[0])
