"""Environments in actors of a Ray cluster of two nodes on this machine."""

import os
import sys

import malformed
import misbehaving
import pytest

from stepreward.rollout.checked import checked
from stepreward.rollout.environments import Call, EnvironmentFailure
from stepreward.rollout.pools import make_pool


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[ray\]'"):
        make_pool("ray", misbehaving.make(), address="local")


def test_one_line_says_that_no_cluster_is_there(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for address, words in {
        "": "no Ray cluster is named",
        "127.0.0.1:9": "no Ray cluster answers at '127.0.0.1:9'",
        "somewhere": "HOST:PORT",
        "auto": "the Ray cluster at 'auto' cannot be joined",
    }.items():
        with pytest.raises(ValueError, match=words) as raised:
            make_pool("ray", misbehaving.make(), address=address)
        assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def cluster(root):
    """The address of a cluster of two nodes, which can import what the tests can."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{root}{os.pathsep}{root / 'tests'}")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        yield cluster.address
        cluster.shutdown()


@pytest.fixture(scope="module")
def pool(cluster):
    with make_pool("ray", misbehaving.make(), timeout_s=20, reset_timeout_s=60, address=cluster) as pool:
        pool.call_all([Call(slot, "step", ("",)) for slot in range(3)])
        yield pool


def test_rounds_over_two_nodes(pool):
    pool.call_all([Call(slot, "reset") for slot in range(3)])
    two, zero, one = pool.call_all([Call(2, "step", ("",), {"bonus": 7}), Call(0, "step", ("sleep:0.2",)), Call(1, "distance")])
    assert (two[1:], zero, one) == ((1, 7), "sleep", 0.0)
    assert pool.call_all([[Call(1, "step", ("",)), Call(1, "distance")]])[0][1] == 1.0
    assert pool.capabilities() == {"distance"}
    assert len({pool.call(slot, "step", "")[0] for slot in range(3)}) == 3
    assert not {"jax", "flax"} & set(pool.call(0, "step", "modules"))
    assert len(pool.call(0, "step", "image")) == 3_000_000
    import ray

    assert len([node for node in ray.nodes() if node["Alive"]]) == 2


HARM = {
    "raise": "RuntimeError: the server is gone",
    "exit": "its process died",
    "segfault": "its process died",
    "unpicklable": "cannot be sent",
    "unreadable": "cannot be read: OSError: not here",
}


@pytest.mark.parametrize("what", HARM)
def test_harm_costs_the_call_of_its_slot(pool, what):
    pool.call_all([Call(slot, "reset") for slot in range(3)])
    failures = pool.failures
    zero, one, two = pool.call_all([Call(0, "step", ("",)), Call(1, "step", (what,)), Call(2, "distance")])
    assert zero[1] == 1 and two == 0.0 and isinstance(one, EnvironmentFailure) and pool.failures == failures + 1
    with pytest.raises(EnvironmentFailure, match=HARM[what]):
        raise one
    assert "\n" not in str(one)
    assert [pool.call(slot, "step", "")[1] for slot in range(3)] == [2, 1, 1]


def test_one_that_hangs_is_killed(pool, monkeypatch):
    pool.call_all([Call(slot, "reset") for slot in range(2)])
    monkeypatch.setattr(pool, "_timeout_s", 0.5)
    zero, one = pool.call_all([Call(0, "step", ("hang",)), Call(1, "distance")])
    assert str(zero) == "step took longer than 0.5 s" and one == 0.0
    monkeypatch.undo()
    assert pool.call(0, "step", "")[1] == 1


def test_results_are_checked_in_actors(pool, cluster):
    pool.close()
    with make_pool("ray", checked(malformed.factory("four")), timeout_s=20, reset_timeout_s=60, address=cluster) as own:
        fine, wrong = own.call_all([Call(0, "reset"), Call(1, "step", ("open",))])
        assert fine[0]["text"] == "a door" and str(wrong).startswith("step returned a tuple of 4, not (observation, reward")


def test_a_closed_pool_leaves_its_cluster_and_can_join_again(pool):
    import ray

    pool.close()
    assert not ray.is_initialized()
    assert pool.call(0, "step", "")[1] == 1
    pool.close()


def test_a_cluster_of_its_own_ends_with_the_pool(pool):
    import ray

    pool.close()
    with make_pool("ray", misbehaving.make(), timeout_s=20, reset_timeout_s=60, address="local") as own:
        assert own.call(0, "step", "")[1] == 1
    assert not ray.is_initialized()
