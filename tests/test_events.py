"""The events of steps: new states, errors and recoveries."""

import pickle

from envs.events import Events


def test_the_events_of_an_episode():
    events = Events("hall")
    steps = [("kitchen", True), ("kitchen", False), ("kitchen", False), ("hall", True), ("attic", True), ("attic", False), ("cellar", True)]
    assert [events.after(*step) for step in steps] == [
        ("new_state",), ("error",), ("error",), ("recovered",), ("new_state",), ("error",), ("new_state", "recovered"),
    ]  # fmt: skip


def test_a_failed_action_may_reach_a_new_state():
    """A clock may run on while the action does nothing."""
    assert Events("noon").after("one", False) == ("new_state", "error")


def test_the_memory_continues_an_episode_and_stays_as_it_was_saved():
    events = Events("hall")
    events.after("kitchen", True)
    events.after("kitchen", False)
    memory = pickle.loads(pickle.dumps(events.saved()))
    assert events.after("hall", True) == ("recovered",)
    for _ in range(2):
        again = Events.of(memory)
        assert again.after("kitchen", True) == ("recovered",)
        assert again.after("hall", True) == ()
        assert again.after("attic", True) == ("new_state",)
