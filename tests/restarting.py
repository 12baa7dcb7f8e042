"""A walk on a line that can be restarted, and goes wrong where it is told to: for tests of starts and strategies."""

from __future__ import annotations

import functools

import misbehaving

GOAL = 3  # the place where the walk is won
TURNS = 6  # after so many the walk is truncated


class Walk:
    """Begins at place `seed % 2`; "up" adds 1, "down" takes 1 away. Each step's reward is the place that it leads to.

    `fault` is "WHERE: WHAT": WHERE is a method, or "step N" for the N-th step after a reset or restore; WHAT is what `misbehaving` does,
    or "elsewhere" (another state than it should be), "over" (the walk ends) or "nonsense" (a result that breaks the protocol).
    """

    def __init__(self, capabilities=("snapshot", "replay"), fault="", only_seed=None):
        self.capabilities = frozenset(capabilities)
        self._where, _, self._what = fault.partition(": ")
        self._only_seed = only_seed

    def reset(self, *, seed, options):
        self.state, self.taken = [seed, seed % 2, 0], 0
        return self._answer("reset", self._observe())

    def step(self, action):
        if self.state is None:
            raise RuntimeError("the walk is over")
        self.taken += 1
        self.state[1] += {"up": 1, "down": -1}.get(action, 0)
        self.state[2] += 1
        observation, info = self._observe(action is not None)
        truncated = not info["won"] and self.state[2] == TURNS
        return self._answer(f"step {self.taken}", (observation, float(self.state[1]), info["won"], truncated, info))

    def snapshot(self):
        return self._answer("snapshot", self.state)  # the state itself, not a copy

    def restore(self, state):
        self.state, self.taken = state, 0
        self._answer("restore", ())

    def close(self):
        pass

    def _observe(self, executed=True):
        seed, place, turn = self.state
        info = {"won": place == GOAL, "executed": executed, "state_key": f"{place} at {turn}", "task": f"seed {seed}"}
        return {"text": f"say:{place} {turn}"}, info

    def _answer(self, where, found):
        if where != self._where or self._only_seed not in (None, self.state[0]):
            return found
        if self._what == "elsewhere":
            found[-1]["state_key"] = "elsewhere"
        elif self._what == "over":
            found, self.state = (*found[:2], True, False, found[-1]), None
        elif self._what == "nonsense":
            return None
        elif self._what == "unpicklable":
            return lambda: None
        else:
            misbehaving.Misbehaving().do(self._what)
        return found


def make(**settings):
    """A picklable factory."""
    return functools.partial(Walk, **settings)
