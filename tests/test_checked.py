"""A result that breaks the protocol fails its call, with an error that names the fault."""

import sys

import malformed
import numpy as np
import pytest

from stepreward.rollout.checked import checked
from stepreward.rollout.environments import Call, EnvironmentFailure
from stepreward.rollout.pools import make_pool


def pool_of(fault, kind="inline", **limits):
    return make_pool(kind, checked(malformed.factory(fault)), **limits)


def test_what_keeps_the_protocol_comes_as_plain_values():
    class Plain(malformed.Malformed):
        def step(self, action):
            info = {"won": np.bool_(True), "executed": 1, "state_key": "k", "admissible": ["a"], "task": None}
            return {"text": "t"}, np.float32(0.5), np.bool_(True), 0, info

    with make_pool("inline", checked(Plain)) as pool:
        observation, reward, terminated, truncated, info = pool.call(0, "step", "open")
    assert observation == {"text": "t"}
    assert (type(reward), reward) == (float, 0.5) and terminated is True and truncated is False
    assert info == {"won": True, "executed": True, "state_key": "k", "score": 1.0, "admissible": ("a",)}


def test_other_methods_come_as_plain_values():
    with pool_of("") as pool:
        assert pool.capabilities() == {"expert", "distance", "tasks"}
        assert pool.call(0, "reset", seed=3)[1] == malformed.GOOD_INFO
        assert pool.call(0, "expert", None) == ["open"]
        assert pool.call(0, "distance") == float("inf")
        assert type(pool.call(0, "num_tasks", "train")) is int


def test_a_distance_may_be_unknown():
    class Unsure(malformed.Malformed):
        def distance(self):
            return float("nan")

    with make_pool("inline", checked(Unsure)) as pool:
        assert np.isnan(pool.call(0, "distance"))


@pytest.mark.parametrize("fault", malformed.STEPS)
def test_a_wrong_step_is_named(fault):
    with pool_of(fault) as pool:
        pool.call(0, "reset", seed=0)
        with pytest.raises(EnvironmentFailure, match=malformed.STEPS[fault][1]):
            pool.call(0, "step", "open")
        assert pool.failures == 1


@pytest.mark.parametrize("fault", malformed.PICTURES)
def test_a_wrong_picture_is_named(fault):
    with pool_of(f"picture: {fault}") as pool:
        with pytest.raises(EnvironmentFailure, match=malformed.PICTURES[fault][1]):
            pool.call(0, "step", "open")


@pytest.mark.parametrize("method, fault", malformed.OTHERS)
def test_another_wrong_result_is_named(method, fault):
    with pool_of(f"{method}: {fault}") as pool:
        words = malformed.OTHERS[method, fault][1]
        if method == "capabilities":
            with pytest.raises(ValueError, match=f"no environment can be made: {words}"):
                pool.capabilities()
            return
        with pytest.raises(EnvironmentFailure, match=words):
            pool.call(0, method)


@pytest.mark.skipif(sys.platform != "linux", reason="starts processes")
def test_the_same_in_processes():
    """The check runs in the environment's own process, and the failure names no place in our code."""
    with pool_of("reward is nan", "process", timeout_s=20, reset_timeout_s=60) as pool:
        assert pool.capabilities() == {"expert", "distance", "tasks"}
        found = pool.call_all([[Call(0, "reset"), Call(0, "step", ("open",))], Call(1, "reset")])
        assert str(found[0]) == "the reward of step is nan, not a finite number" and not found[0].where
        assert found[1][0]["text"] == "a door"
    with pool_of("capabilities: none", "process", timeout_s=20, reset_timeout_s=60) as pool:
        with pytest.raises(ValueError, match="no environment can be made: capabilities is None"):
            pool.capabilities()


def test_the_same_in_threads():
    with pool_of("four", "thread") as pool:
        found = pool.call_all([Call(slot, "step", ("open",)) for slot in range(3)])
        assert [str(x).partition(",")[0] for x in found] == ["step returned a tuple of 4"] * 3


def test_an_environment_that_cannot_be_made_is_one_line():
    def factory():
        raise KeyError("LICENCE")

    with make_pool("inline", checked(factory)) as pool:
        with pytest.raises(ValueError, match="no environment can be made: KeyError: 'LICENCE'"):
            pool.capabilities()


def test_an_environment_that_cannot_be_closed_costs_nothing(caplog):
    with pool_of("close raises") as pool:
        pool.call(0, "reset")
    assert "it is stuck" in caplog.text and not pool.failures


class Kept(malformed.Malformed):
    """Gives its own list away as a snapshot."""

    def __init__(self):
        super().__init__()
        self.doors = []

    def step(self, action):
        self.doors.append(action)
        return super().step(action)

    def snapshot(self):
        return self.doors if self.doors != ["lambda"] else [lambda: None]

    def restore(self, state):
        self.doors = state

    def opened(self):
        return list(self.doors)


@pytest.mark.parametrize("kind", ["inline", "process"])
def test_a_snapshot_is_a_copy(kind):
    with make_pool(kind, checked(Kept)) as pool:
        pool.call(0, "step", "one")
        snapshot = pool.call(0, "snapshot")
        pool.call(0, "step", "two")
        for _ in range(2):
            pool.call(1, "restore", snapshot)  # in an environment that was not reset
            assert pool.call(1, "opened") == ["one"]
            pool.call(1, "step", "three")
        assert pool.call(0, "opened") == ["one", "two"] and type(snapshot) is bytes


def test_a_snapshot_that_cannot_be_pickled_is_named():
    with make_pool("inline", checked(Kept)) as pool:
        pool.call(0, "step", "lambda")
        with pytest.raises(EnvironmentFailure, match="what snapshot returned cannot be pickled: "):
            pool.call(0, "snapshot")


@pytest.mark.parametrize("factory", [Kept, checked(Kept)])
def test_a_pool_knows_the_class_of_its_environments(factory):
    with make_pool("inline", factory) as pool:
        assert pool.name() == "Kept"
