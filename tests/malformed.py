"""A game that breaks the protocol in a named way, for tests of its checks. It opens `doors` doors, one per step."""

from __future__ import annotations

import functools
import math

import numpy as np

GOOD_INFO = {"won": False, "score": 0.0, "executed": True, "state_key": "a door"}
PICTURE = np.zeros((4, 4, 3), np.uint8)


def without(name):
    return {key: value for key, value in GOOD_INFO.items() if key != name}


def stepped(observation={"text": "a door"}, reward=0.0, terminated=False, truncated=False, info=GOOD_INFO):  # noqa: B006
    return observation, reward, terminated, truncated, info


# What `step` returns -> a part of the message.
STEPS = {
    "none": (None, r"step returned None, not \(observation, reward"),
    "four": (({"text": "a door"}, 1.0, True, GOOD_INFO), "step returned a tuple of 4, not .*adapters.gym"),
    "observation is text": (stepped("a door"), "the observation of step is the str 'a door', not a mapping with 'text'"),
    "no text": (stepped({"board": "a door"}), "the observation of step lacks 'text'; it has 'board'"),
    "text is none": (stepped({"text": None}), r"observation\['text'\] of step is None, not a str"),
    "reward is nan": (stepped(reward=math.nan), "the reward of step is nan, not a finite number"),
    "reward is infinite": (stepped(reward=np.float32("inf")), "the reward of step is .*inf.*, not a finite number"),
    "reward is none": (stepped(reward=None), "the reward of step is None, not a finite number"),
    "reward is text": (stepped(reward="1"), "the reward of step is the str '1', not a finite number"),
    "reward is an array": (stepped(reward=np.zeros(2)), r"the reward of step is float64 \[2\], not a finite number"),
    "reward is huge": (stepped(reward=1e30), r"the reward of step is 1e\+30: give one between"),
    "terminated is none": (stepped(terminated=None), "terminated of step is None, not True or False"),
    "truncated is text": (stepped(truncated="no"), "truncated of step is the str 'no', not True or False"),
    "info is none": (stepped(info=None), "the info of step is None, not a mapping"),
    "no won": (stepped(info=without("won")), "the info of step lacks 'won'; it has 'score', 'executed', 'state_key'"),
    "no executed": (stepped(info=without("executed")), "the info of step lacks 'executed'"),
    "no state key": (stepped(info=without("state_key")), "the info of step lacks 'state_key'"),
    "won is none": (stepped(info=GOOD_INFO | {"won": None}), r"info\['won'\] of step is None, not True or False"),
    "state key is a number": (stepped(info=GOOD_INFO | {"state_key": 3}), r"info\['state_key'\] of step is 3, not a str"),
    "score is nan": (stepped(info=GOOD_INFO | {"score": math.nan}), r"info\['score'\] of step is nan, not a finite number"),
    "admissible is text": (stepped(info=GOOD_INFO | {"admissible": "open"}), r"info\['admissible'\] of step is the str 'open'"),
    "admissible holds none": (stepped(info=GOOD_INFO | {"admissible": ("a", None)}), "an item of info.*admissible.* is None, not a str"),
    "task is a number": (stepped(info=GOOD_INFO | {"task": 4}), r"info\['task'\] of step is 4, not a str"),
}
# What other methods and attributes hold -> a part of the message.
OTHERS = {
    ("reset", "observation alone"): ({"text": "a door", "more": "text"}, "reset returned a dict, not .observation, info.; .*adapters.gym"),
    ("reset", "no text"): (({}, GOOD_INFO), "the observation of reset lacks 'text'; it has nothing"),
    ("reset", "info is none"): (({"text": "a door"}, None), "the info of reset is None"),
    ("capabilities", "none"): (None, "capabilities is None, not a set of names"),
    ("capabilities", "text"): ("expert", "capabilities is the str 'expert', not a set of names"),
    ("expert", "text"): ("open", "what expert returned is the str 'open', not a sequence of str"),
    ("expert", "numbers"): ([1, 2], "an item of what expert returned is 1, not a str"),
    ("distance", "none"): (None, "distance is None, not a number"),
    ("distance", "negative"): (-1.0, "distance is -1: give at least 0"),
    ("num_tasks", "zero"): (0, "num_tasks returned 0, not a whole number of at least 1"),
    ("num_tasks", "a share"): (0.5, "num_tasks returned 0.5, not a whole number"),
}
PICTURES = {
    "none": (None, r"observation\['image'\] of step is None, not uint8 \[H, W, 3\]"),
    "floats": (PICTURE.astype(np.float32), r"is float32 \[4, 4, 3\], not uint8"),
    "grey": (PICTURE[:, :, 0], r"is uint8 \[4, 4\], not uint8 \[H, W, 3\]"),
    "empty": (PICTURE[:0], r"is uint8 \[0, 4, 3\], not uint8 \[H, W, 3\]"),
}


class Malformed:
    capabilities = frozenset({"expert", "distance", "tasks"})

    def __init__(self, fault=""):
        self.fault = fault
        for method, name in OTHERS:
            if fault == f"{method}: {name}":
                value = OTHERS[method, name][0]
                setattr(self, method, value if method == "capabilities" else lambda *_, **__: value)
        if fault.startswith("picture: "):
            self.capabilities = frozenset({"image"})

    def reset(self, *, seed=None, options=None):
        return {"text": "a door", "image": PICTURE}, GOOD_INFO

    def step(self, action):
        if self.fault.startswith("picture: "):
            return stepped({"text": "a door", "image": PICTURES[self.fault.removeprefix("picture: ")][0]})
        return STEPS[self.fault][0] if self.fault in STEPS else stepped()

    def expert(self, rng=None):
        return ["open"]

    def distance(self):
        return math.inf

    def num_tasks(self, split):
        return np.int64(3)

    def close(self):
        if self.fault == "close raises":
            raise RuntimeError("it is stuck")


def factory(fault=""):
    """Returns a picklable factory."""
    return functools.partial(Malformed, fault)
