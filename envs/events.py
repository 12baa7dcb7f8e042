"""Names the events of a step (`protocol.EVENTS`): it reached a new state, it failed, or it took effect right after one that failed.

An environment keeps one `Events` for its episode:

    self._events = Events(state_key)                                # in reset
    info["events"] = self._events.after(state_key, executed)        # in step
    return Snapshot(…, self._events.saved())                        # in snapshot
    self._events = Events.of(memory)                                # in restore
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from stepreward.envs.protocol import EVENT_NAMES

# By (the state is new, the action took effect, the last action failed).
_NAMES = {
    (new, executed, failed): tuple(name for name, holds in zip(EVENT_NAMES, (new, not executed, executed and failed)) if holds)
    for new, executed, failed in itertools.product((False, True), repeat=3)
}


def event_names(new: bool, executed: bool, failed_before: bool) -> tuple[str, ...]:
    """Returns the names of a step's events, in the order of `EVENT_NAMES`.

    Args:
      new: whether the episode had not reached the state after the step before.
      executed: whether the action took effect.
      failed_before: whether the action right before it failed.
    """
    return _NAMES[new, executed, failed_before]


class Memory(NamedTuple):
    """What `Events` remembers of an episode, as plain data for a snapshot.

    reached: the state keys of the episode so far, in the order in which it reached them.
    failed: whether the last action failed.
    """

    reached: tuple[str, ...] = ()
    failed: bool = False


class Events:
    """Names the events of each step of one episode.

    * new_state: the episode had not reached a state with this key before.
    * error: the action failed (it was not executed).
    * recovered: the action took effect, and the action right before it failed.

    Args:
      state_key: the key of the first state.
    """

    __slots__ = ("_failed", "_reached")

    def __init__(self, state_key: str):
        self._reached = {state_key: None}
        self._failed = False

    @classmethod
    def of(cls, memory: Memory) -> Events:
        """Returns one that goes on from what another `saved`."""
        events = cls.__new__(cls)
        events._reached, events._failed = dict.fromkeys(memory.reached), memory.failed
        return events

    def after(self, state_key: str, executed: bool) -> tuple[str, ...]:
        """Returns the names of a step's events, in the order of `EVENT_NAMES`, and remembers the step.

        Args:
          state_key: the key of the state after the step.
          executed: whether the action took effect.
        """
        new = state_key not in self._reached
        if new:
            self._reached[state_key] = None
        failed, self._failed = self._failed, not executed
        return event_names(new, executed, failed)

    def saved(self) -> Memory:
        """Returns what it remembers of the episode."""
        return Memory(tuple(self._reached), self._failed)
