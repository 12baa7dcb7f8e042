"""Environments in processes: a faulty one fails only its own call, and no process is left over."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import misbehaving
import numpy as np
import pytest

from stepreward.envs import sokoban
from stepreward.rollout.environments import Call, EnvironmentFailure, EnvironmentPool
from stepreward.rollout.process_pool import ProcessPool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

MARK = "STEPREWARD_TEST_POOL"


def alive(mark: str) -> list[int]:
    """The processes that descend from this one since `mark` was set."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            pass
    return found


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


@pytest.fixture
def mark(monkeypatch):
    """Marks the processes of a test, and looks that they are gone after it."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    yield mark
    left = alive(mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.fixture
def pool(mark):
    """A pool whose first three slots have played a step."""
    with ProcessPool(misbehaving.make(), timeout_s=10, reset_timeout_s=20, grace_s=0.5) as pool:
        pool.call_all([Call(slot, "step", ("",)) for slot in range(3)])
        yield pool


def test_results_come_in_the_order_of_the_calls(pool):
    two, zero, one = pool.call_all([Call(2, "step", ("",), {"bonus": 7}), Call(0, "step", ("sleep:0.2",)), Call(1, "distance")])
    assert (two[1:], zero, one) == ((2, 7), "sleep", 1.0)
    assert pool.capabilities() == {"distance"} and pool.failures == 0
    assert pool.call_all([]) == []
    assert len({pool.call(slot, "step", "")[0] for slot in range(3)} - {os.getpid()}) == 3


def test_several_calls_of_a_slot_in_one_round_trip(pool):
    found = pool.call_all([[Call(0, "step", ("",)), Call(0, "distance")], Call(1, "distance"), [Call(2, "reset")]])
    assert found[0][0][1:] == (2, 0) and found[0][1] == 2.0
    assert found[1:] == [1.0, [({"text": "seed None"}, {})]]
    with pytest.raises(ValueError, match="once a round"):
        pool.call_all([Call(0, "step", ("",)), [Call(0, "distance")]])
    for bad in ([], [Call(0, "distance"), Call(1, "distance")]):
        with pytest.raises(ValueError, match="one slot"):
            pool.call_all([bad])


HARM = {
    "raise": "RuntimeError: the server is gone",
    "sys.exit": "SystemExit: 3",
    "exit": r"its process died \(exit code 3\)",
    "segfault": r"its process died \(signal SIGSEGV\)",
    "kill": r"its process died \(signal SIGKILL\)",
    "fork and exit": r"its process died \(exit code 4\)",
    "unpicklable": "what it returned cannot be sent: .*local",
    "unreadable": "what it returned cannot be read: OSError: not here",
}


@pytest.mark.parametrize("what", HARM)
def test_harm_costs_the_call_of_its_slot(pool, what):
    calls = [Call(0, "step", ("",)), [Call(1, "distance"), Call(1, "step", (what,)), Call(1, "step", ("",))], Call(2, "distance")]
    zero, one, two = pool.call_all(calls)
    assert zero[1] == 2 and two == 1.0
    assert isinstance(one, EnvironmentFailure) and pool.failures == 1
    with pytest.raises(EnvironmentFailure, match=HARM[what]):
        raise one
    assert [pool.call(slot, "step", "")[1] for slot in range(3)] == [3, 1, 2]  # a fresh one, and the other two as they were


def test_a_call_that_cannot_be_made_is_a_failure_too(pool):
    unknown, unsendable, fine = pool.call_all([Call(0, "restore"), Call(1, "step", (lambda: None,)), Call(2, "distance")])
    assert "AttributeError" in str(unknown) and "restore" in str(unknown)
    assert isinstance(unsendable, EnvironmentFailure) and fine == 1.0 and pool.failures == 2
    assert pool.call_all([Call(slot, "distance") for slot in range(3)]) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("what", ["hang", "hang stubbornly"])
def test_one_that_hangs_is_killed(mark, what):
    with ProcessPool(misbehaving.make(), timeout_s=0.5, reset_timeout_s=20, grace_s=0.5) as pool:
        pool.call_all([Call(slot, "step", ("",)) for slot in range(2)])
        before = set(alive(mark))
        zero, one = pool.call_all([[Call(0, "step", (what,)), Call(0, "distance")], Call(1, "step", ("",))])
        assert str(zero) == "step and distance took longer than 1 s" and one[1] == 2
        assert wait_until(lambda: len(before - set(alive(mark))) == 1)
        assert [pool.call(slot, "step", "")[1] for slot in (0, 1)] == [1, 3]


def test_a_reset_may_take_longer(mark):
    with ProcessPool(misbehaving.make(), timeout_s=0.3, reset_timeout_s=20, grace_s=0.5) as pool:
        pool.call(0, "distance")
        assert pool.call(0, "reset", options={"do": "sleep:0.6"}) == "sleep"
        with pytest.raises(EnvironmentFailure, match="step took longer than 0.3 s"):
            pool.call(0, "step", "sleep:5")


@pytest.mark.parametrize("broken, words", [("raise", "RuntimeError: the server is gone"), ("segfault", "SIGSEGV")])
def test_one_that_cannot_be_made_fails_one_call(mark, tmp_path, broken, words):
    factory = misbehaving.make(broken=broken, broken_until=str(tmp_path / "made"))
    with ProcessPool(factory, timeout_s=10, reset_timeout_s=20) as pool:
        with pytest.raises(EnvironmentFailure, match=words):
            pool.call(0, "step", "")
        assert pool.call(0, "step", "")[1] == 1 and pool.failures == 1
    with ProcessPool(misbehaving.make(broken=broken), timeout_s=10, reset_timeout_s=20) as pool:
        with pytest.raises(ValueError, match=f"no environment can be made: .*{words}"):
            pool.capabilities()


IMPORTS = {
    "time.sleep(1000)": "distance took longer than 1.5 s",
    "raise OSError('not on this machine')": "OSError: not on this machine",
    "sys.exit()": "SystemExit",
    "os._exit(5)": "the server that it was forked from did \\(exit code 5\\)",
}


@pytest.mark.parametrize("harm", IMPORTS)
def test_a_module_that_cannot_be_imported(mark, tmp_path, monkeypatch, harm):
    name = f"import_harm_{list(IMPORTS).index(harm)}"
    code = f"import os, sys, time\nif os.getpid() != {os.getpid()}:\n    {harm}\nclass Fine:\n    capabilities = frozenset()\n"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with ProcessPool(__import__(name).Fine, timeout_s=0.5, reset_timeout_s=1 if "sleep" in harm else 20, grace_s=0.5) as pool:
        for _ in range(2):
            zero, one = pool.call_all([Call(0, "distance"), Call(1, "distance")])
            for failure in (zero, one):
                with pytest.raises(EnvironmentFailure, match=IMPORTS[harm]):
                    raise failure


def test_an_idle_one_that_dies_fails_its_next_call(pool):
    pid = pool.call(1, "step", "")[0]
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not Path(f"/proc/{pid}").exists())  # reaped
    assert pool.call_all([Call(0, "distance"), Call(2, "step", ("sleep:0.1",))]) == [1.0, "sleep"]  # their rounds go on
    with pytest.raises(EnvironmentFailure, match=r"its process died \(signal SIGKILL\)"):
        pool.call(1, "step", "")
    assert pool.call(1, "step", "")[1] == 1


def test_when_the_server_dies_its_children_do_and_another_takes_over(pool, mark):
    children = {pool.call(slot, "step", "")[0] for slot in range(3)}
    (server,) = set(alive(mark)) - children
    os.kill(server, signal.SIGKILL)
    assert wait_until(lambda: not children & set(alive(mark)))
    found = pool.call_all([Call(slot, "step", ("",)) for slot in range(4)])
    assert all("the server that it was forked from" in str(one) for one in found[:3])
    assert [one[1] for one in pool.call_all([Call(slot, "step", ("",)) for slot in range(3)])] == [1, 1, 1]


def test_what_an_environment_started_ends_with_it(mark):
    with ProcessPool(misbehaving.make(), timeout_s=10, reset_timeout_s=20, grace_s=0.5) as pool:
        grandchildren = [pool.call(slot, "step", "child") for slot in range(3)]
        assert wait_until(lambda: set(grandchildren) <= set(alive(mark)))  # a program that starts has no environment yet
        pool.call_all([Call(0, "step", ("kill",)), Call(1, "step", ("raise",))])
        assert wait_until(lambda: not set(grandchildren[:2]) & set(alive(mark))) and grandchildren[2] in alive(mark)


def test_close_closes_the_environments_even_stubborn_ones(mark, tmp_path):
    pool = ProcessPool(misbehaving.make(files=str(tmp_path)), timeout_s=10, reset_timeout_s=20, grace_s=0.5)
    pids = [pool.call(slot, "step", "")[0] for slot in range(2)]
    pool.call_all([[Call(1, "step", ("",))] * 12])  # now it hangs when it is closed
    pool.close()
    assert not alive(mark) and {file.name for file in tmp_path.iterdir()} == {f"closed-{pid}" for pid in pids}
    pool.close()
    assert pool.call(0, "step", "")[1] == 1  # a closed pool starts afresh
    pool.close()


def test_an_interrupt_leaves_no_answer_behind(pool, monkeypatch):
    selector = pool._server.selector

    def interrupted(timeout):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(selector, "select", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.call_all([Call(0, "step", ("late",)), Call(1, "step", ("late",))])
    assert pool.call_all([Call(0, "distance"), Call(1, "distance"), Call(2, "distance")]) == [0.0, 0.0, 1.0]


def test_signals_to_a_whole_job_do_not_reach_environments(pool):
    pids = [pool.call(slot, "step", "")[0] for slot in range(3)]
    for pid in pids:
        assert os.getpgid(pid) == pid
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    assert [pool.call(slot, "step", "")[1] for slot in range(3)] == [3, 3, 3]


def test_what_they_print_goes_to_a_file_of_choice(mark, tmp_path, capfd):
    for output in (os.devnull, str(tmp_path / "output")):
        with ProcessPool(misbehaving.make(), output=output) as pool:
            assert pool.call(0, "step", "print") == "print"
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "output").stat().st_size >= 200_000


def test_large_results_and_arguments(pool):
    images = pool.call_all([Call(slot, "step", ("image",)) for slot in range(3)])
    assert [len(image) for image in images] == [3_000_000] * 3
    assert pool.call(0, "reset", options={"state": b"x" * 3_000_000})[0] == {"text": "seed None"}


def test_no_jax_in_the_processes(pool):
    modules = pool.call(0, "step", "modules")
    assert "misbehaving" in modules and not {"jax", "jaxlib", "flax", "numpy"} & set(modules)


def test_a_factory_that_cannot_travel_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="no lambda"):
        ProcessPool(lambda: None)
    monkeypatch.setattr(misbehaving.Misbehaving, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "Misbehaving", misbehaving.Misbehaving, raising=False)
    with pytest.raises(ValueError, match="not the main script"):
        ProcessPool(misbehaving.Misbehaving)


END = """
import sys, threading
import misbehaving
from stepreward.rollout.environments import Call
from stepreward.rollout.process_pool import ProcessPool
pool = ProcessPool(misbehaving.make(files=sys.argv[1]), timeout_s=100, reset_timeout_s=100, grace_s=0.5)
pool.call(0, "step", "")
pool.call_all([Call(0, "step", ("",)), Call(1, "step", ("child",))])
print("ready", flush=True)
"""
ENDS = {
    "exit": "",
    "exception": "raise RuntimeError",
    "interrupt": 'pool.call_all([Call(0, "step", ("hang stubbornly",)), Call(1, "step", ("hang",))])',
    "kill": 'pool.call_all([Call(0, "step", ("hang stubbornly",)), Call(1, "step", ("hang",))])',
}


@pytest.mark.parametrize("how", ENDS)
def test_nothing_outlives_the_process_of_the_pool(mark, tmp_path, root, how):
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    command = [sys.executable, "-c", END + ENDS[how], str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        if how in ("interrupt", "kill"):
            assert wait_until(lambda: len(alive(mark)) == 5)  # it, its server, two environments, and what one of them started
            process.send_signal(signal.SIGINT if how == "interrupt" else signal.SIGKILL)
        error = process.stderr.read()
    assert wait_until(lambda: not alive(mark))
    assert ("Traceback" in error) == (how in ("exception", "interrupt"))
    if how in ("exit", "exception"):
        assert len(list(tmp_path.iterdir())) == 2  # both were closed


def test_the_same_games_as_in_one_process(mark):
    factory = sokoban.make("istar_image", max_steps=5)
    rng = np.random.default_rng(0)
    rounds = [[Call(slot, "reset", (), {"seed": slot, "options": {"split": "train"}}) for slot in range(4)]]
    for _ in range(4):
        actions = rng.choice(["up", "left"], 4)
        rounds.append([[Call(slot, "step", (action,)), Call(slot, "snapshot")] for slot, action in enumerate(actions)])
    with EnvironmentPool(factory) as inline, ProcessPool(factory) as processes:
        assert inline.capabilities() == processes.capabilities()
        for calls in rounds:
            np.testing.assert_equal(processes.call_all(calls), inline.call_all(calls))
