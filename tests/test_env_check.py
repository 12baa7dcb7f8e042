"""The environment checker finds nothing wrong with the built-in environments, and names every breach of one that has some."""

import subprocess
import sys

import numpy as np
import pytest

from stepreward.envs import sokoban
from stepreward.rollout.checking import breaches


class Corridor:
    """A corridor of five places. Subclasses break one rule each."""

    capabilities = frozenset({"admissible", "distance", "expert", "tasks", "snapshot", "replay"})

    def reset(self, *, seed=None, options=None):
        self.goal, self.place, self.turn = 2 + seed % self.num_tasks("train"), 0, 0
        return self.observation(), self.info(True)

    def step(self, action):
        moves = {"left": -1, "right": 1}
        self.turn += 1
        executed = action in moves and 0 <= self.place + moves[action] <= 4
        self.place += moves[action] if executed else 0
        won = self.place == self.goal
        return self.observation(), float(won), won, self.turn >= 9, self.info(executed)

    def observation(self):
        return {"text": f"place {self.place} of 5, goal {self.goal}"}

    def info(self, executed):
        listed = ("right",) if self.place == 0 else ("left",) if self.place == 4 else ("left", "right")
        return {
            "won": self.place == self.goal,
            "executed": executed,
            "state_key": str(self.place),
            "admissible": listed,
            "task": f"reach {self.goal}",
        }

    def distance(self):
        return abs(self.goal - self.place)

    def expert(self, rng=None):
        return ["right"] * (self.goal - self.place)

    def num_tasks(self, split):
        return 3

    def snapshot(self):
        return self.goal, self.place, self.turn

    def restore(self, state):
        self.goal, self.place, self.turn = state

    def close(self):
        pass


def broken(**methods):
    return type("Broken", (Corridor,), methods)


def changed(name, **facts):
    """A method whose info has other facts."""
    kept = getattr(Corridor, name)

    def method(self, *arguments, **more):
        *found, info = kept(self, *arguments, **more)
        return (*found, info | facts)

    return method


def raising(self, *arguments, **more):
    raise KeyError("oops")


def forgets_the_turn(self, state):
    self.goal, self.place, self.turn = state[0], 0, state[2]


DRAWN = np.random.default_rng()
BROKEN = {
    "a factory that raises": (broken(__init__=raising), "the factory raised KeyError"),
    "no text": (broken(observation=lambda self: {"words": "here"}), "lacks 'text'"),
    "no state": (broken(info=lambda self, executed: {"won": False, "executed": True}), "lacks 'state_key'"),
    "four results": (broken(step=lambda self, action: (self.observation(), 0.0, False, {})), "a tuple of 4"),
    "an error of an action": (
        broken(step=lambda self, action: Corridor.step(self, action) if action in ("left", "right") else raising(self)),
        "step(None) raised KeyError",
    ),
    "chance": (
        broken(observation=lambda self: {"text": str(DRAWN.random())}),
        "the same seed and actions gave another text at turn 0 of a second episode",
    ),
    "nothing was executed at reset": (broken(reset=changed("reset", executed=False)), "info['executed'] is False at reset"),
    "an answer without an action took effect": (broken(step=changed("step", executed=True)), "step(None) has executed=True"),
    "listed actions that fail": (broken(step=changed("step", executed=False)), "info['admissible'] listed that action"),
    "declared and missing": (broken(reset=changed("reset", admissible=None)), "capabilities has 'admissible', but info lacks it"),
    "won and on": (
        broken(step=lambda self, action: (*(found := Corridor.step(self, action))[:2], False, False, found[-1])),
        "info['won'] is True, but the episode goes on",
    ),
    "another task": (
        broken(info=lambda self, executed: Corridor.info(self, executed) | {"task": f"turn {self.turn}"}),
        "info['task'] changed within an episode",
    ),
    "no distance": (broken(distance=lambda self: -1), "distance is -1"),
    "far from a goal that is reached": (broken(distance=lambda self: 3.0), "distance is 3 where the task is won"),
    "too many tasks": (
        broken(reset=lambda self, *, seed=None, options=None: Corridor.reset(self, seed=seed // 3)),
        "the seeds 0 and 3 begin different tasks",
    ),
    "a wrong expert": (broken(expert=lambda self, rng=None: ["right"]), "the 1 actions of the expert do not solve the task of seed 0"),
    "an expert that is not understood": (broken(expert=lambda self, rng=None: ["jump"]), "'jump', has executed=False"),
    "snapshots that forget": (broken(restore=forgets_the_turn), "after restore in the same environment, the same action led to another observation"),
    "snapshots that cannot be sent": (broken(snapshot=lambda self: lambda: 0), "cannot be pickled"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_breach_is_named(what):
    kind, words = BROKEN[what]
    assert any(words in sentence for sentence in breaches(kind)), breaches(kind)


@pytest.mark.parametrize("factory", [Corridor, sokoban.make("tiny")], ids=["corridor", "sokoban"])
def test_a_good_environment_has_no_breach(factory):
    assert breaches(factory) == []


def test_actions_are_tried_where_none_are_listed():
    silent = {
        "capabilities": frozenset(),
        "info": lambda self, executed: {"won": False, "executed": executed, "state_key": str(self.place)},
    }
    seen = []

    def step(self, action):
        seen.append(action)
        return Corridor.step(self, action)

    assert breaches(broken(**silent, step=step), actions=("left", "right")) == [] and {"left", "right"} <= set(seen)


def test_an_episode_may_be_too_short_for_the_expert():
    assert breaches(sokoban.make("tiny", max_steps=2)) == []


def env(root, *arguments):
    return subprocess.run([sys.executable, f"{root}/launch/env.py", *arguments], capture_output=True, text=True, cwd=root / "tests")


def test_the_command(root):
    good = env(root, "check", "sokoban", "--seeds=1", "--options={'max_steps': 9}")
    assert good.returncode == 0 and good.stdout == "sokoban: no breach in 2 tasks of at most 30 steps\n", good.stderr
    mine = env(root, "check", "test_env_check:Corridor", "--seeds=1")
    assert mine.returncode == 0, mine.stderr
    bad = env(root, "check", "test_env_check:DRAWN.random", "--seeds=1")
    assert bad.returncode == 1 and bad.stdout.splitlines()[-1].endswith("of the protocol")
    for arguments, words in (
        (("check",), "give 'check' and an environment"),
        (("check", "sokobann"), "did you mean 'sokoban'?"),
        (("check", "nowhere:make"), "there is no module 'nowhere'"),
        (("check", "test_env_check:Nothing"), "no attribute 'Nothing'"),
        (("check", "sokoban", "--options=9"), "no Python dictionary"),
        (("check", "sokoban", "--seeds=0"), "--seeds=0 must be at least 1"),
    ):
        done = env(root, *arguments)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
