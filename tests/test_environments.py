"""The pool of environments: one environment per slot, which is replaced when it raises."""

import inspect
import threading

import pytest

from stepreward.configs.common.base import base_config
from stepreward.rollout.environment_host import time_limit
from stepreward.rollout.environments import Call, EnvironmentFailure, EnvironmentPool
from stepreward.rollout.pools import make_pool


class Fragile:
    capabilities = frozenset({"distance"})

    def __init__(self, number):
        self.number, self.closed = number, False

    def step(self, action, *, bonus=0):
        if action == "break":
            raise RuntimeError("the server is gone")
        return self.number, action, bonus

    def close(self):
        self.closed = True
        if self.number == 1:
            raise OSError("cannot close either")


@pytest.fixture
def made():
    return []


@pytest.fixture
def pool(made):
    def factory():
        made.append(Fragile(len(made)))
        return made[-1]

    return EnvironmentPool(factory)


def test_the_limits_of_a_pool_are_those_of_a_config():
    limits = {name: inspect.signature(make_pool).parameters[name].default for name in ("timeout_s", "reset_timeout_s")}
    assert limits == {name: base_config().environment[name] for name in limits} == {"timeout_s": 60.0, "reset_timeout_s": 300.0}


def test_slots_are_filled_when_used_and_kept(pool, made):
    assert pool.capabilities() == {"distance"} and len(made) == 1
    assert pool.call(2, "step", "up", bonus=3) == (1, "up", 3) and len(made) == 2
    assert pool.call(0, "step", "up") == (0, "up", 0) and pool.call(2, "step", "down")[0] == 1
    assert len(made) == 2 and pool.failures == 0


def test_an_environment_that_raises_is_closed_and_replaced(pool, made):
    assert [pool.call(slot, "step", "up")[0] for slot in (0, 1)] == [0, 1]
    for slot in (0, 1):  # the second one cannot even be closed
        with pytest.raises(EnvironmentFailure, match="RuntimeError: the server is gone"):
            pool.call(slot, "step", "break")
        assert made[slot].closed
    assert pool.failures == 2 and len(made) == 2
    assert [pool.call(slot, "step", "up")[0] for slot in (0, 1)] == [2, 3]


def test_an_environment_that_cannot_be_made_fails_one_call(made):
    broken = [True]

    def factory():
        if broken:
            raise OSError(broken.pop() and "the server is down")
        return Fragile(0)

    pool = EnvironmentPool(factory)
    with pytest.raises(EnvironmentFailure, match="OSError: the server is down"):
        pool.call(0, "step", "up")
    assert pool.call(0, "step", "up")[0] == 0 and pool.failures == 1
    pool.close()


def test_an_unknown_method_is_a_failure_too(pool):
    with pytest.raises(EnvironmentFailure, match="AttributeError.*restore"):
        pool.call(0, "restore")


def test_close_reaches_every_environment(pool, made):
    for slot in (0, 2):
        pool.call(slot, "step", "up")
    pool.close()
    assert [environment.closed for environment in made] == [True] * 2
    assert pool.call(0, "step", "up")[0] == 2  # a closed pool starts afresh


def test_a_round_holds_failures_beside_results(pool):
    zero, one, two = pool.call_all(
        [Call(0, "step", ("break",)), Call(1, "step", ("up",), {"bonus": 2}), [Call(2, "number"), Call(2, "step", ("up",))]]
    )
    assert isinstance(zero, EnvironmentFailure) and str(zero) == "RuntimeError: the server is gone"
    assert zero.where.startswith("in step")
    assert one == (1, "up", 2) and two == [2, (2, "up", 0)]
    assert pool.failures == 1 and pool.call(0, "number") == 3
    failed = pool.call_all([[Call(1, "number"), Call(1, "step", ("break",)), Call(1, "number")]])
    assert len(failed) == 1 and isinstance(failed[0], EnvironmentFailure)


def test_a_round_names_a_slot_once(pool, made):
    for calls in ([Call(0, "number"), Call(0, "number")], [[]], [[Call(0, "number"), Call(1, "number")]]):
        with pytest.raises(ValueError, match="slot"):
            pool.call_all(calls)
    assert not made and pool.call_all([]) == []


def test_what_capabilities_raises_is_what_making_raises():
    def factory():
        raise FileNotFoundError("no data")

    with pytest.raises(FileNotFoundError, match="no data"):
        EnvironmentPool(factory).capabilities()


def test_kinds_of_pools_by_name():
    with make_pool("inline", lambda: Fragile(4)) as pool:
        assert pool.call(0, "number") == 4
    with make_pool("process", dict, timeout_s=1, reset_timeout_s=1) as pool:  # nothing is started before it is called
        assert type(pool).__name__ == "ProcessPool"
    for wrong, words in {
        ("fibre",): "'fibre' is unknown; there are: inline, thread, process, ray",
        ("inline", 0): "above 0 seconds",
        ("process", float("inf")): "finite",
        ("process", 1, "host:1"): "address='host:1' is of a Ray cluster",
    }.items():
        kind, timeout_s, address = (*wrong, *(1, "")[len(wrong) - 1 :])
        with pytest.raises(ValueError, match=words):
            make_pool(kind, dict, timeout_s=timeout_s, address=address)


def test_a_round_of_a_thread_pool_waits_once():
    together = threading.Barrier(3)

    class Waits:
        capabilities = frozenset()

        def step(self, action):
            together.wait(timeout=30)  # all three calls are under way at the same time, or this breaks
            return action

        def close(self):
            pass

    with make_pool("thread", Waits) as pool:
        assert pool.call_all([Call(slot, "step", (slot,)) for slot in range(3)]) == [0, 1, 2]


def test_what_an_environment_noted_is_told():
    class Notes:
        capabilities = frozenset()

        def reset(self):
            error = RuntimeError("no judge")
            error.add_note("the talk is kept")
            raise error

        def close(self):
            pass

    with pytest.raises(EnvironmentFailure, match="RuntimeError: no judge; the talk is kept"):
        make_pool("thread", Notes).call(0, "reset")


def test_a_restore_may_take_as_long_as_a_reset():
    assert time_limit([("restore", (), {}), ("distance", (), {})], False, 1.0, 20.0) == 21.0
    assert time_limit([("reset", (), {})], True, 1.0, 20.0) == 40.0
