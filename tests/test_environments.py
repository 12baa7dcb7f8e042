"""The pool of environments: one a slot, replaced when it raises."""

import pytest

from stepreward.rollout.environments import EnvironmentFailure, EnvironmentPool


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
