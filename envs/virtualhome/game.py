"""The rules between text and simulator: which instance a name refers to, and what an action in text does."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stepreward.envs.virtualhome.actions import FORMS, Command, Named, read, write
from stepreward.envs.virtualhome.goals import Goal
from stepreward.envs.virtualhome.simulator import Scene

_FROM_HAND = ("PUTBACK", "PUTIN", "POUR", "PUTOBJBACK", "DROP", "RELEASE")  # their first object is in the agent's hand


class Position(NamedTuple):
    """The state of a game; immutable.

    state: the simulator's state. memory: the last instance that each name referred to. last: the object of the last action, or
    None. acted: number of the goal's actions that are done.
    """

    state: Any
    memory: Mapping[str, int]
    last: int | None = None
    acted: int = 0


class Game:
    """The rules of one task. `seed` selects among the instances of a name when nothing else does."""

    def __init__(self, scene: Scene, goal: Goal, seed: int = 0):
        self.scene, self.goal, self.seed = scene, goal, seed

    def start(self, memory: Mapping[str, int] | None = None) -> Position:
        """Returns the first position; `memory` presets the instances of names."""
        there = {name: number for name, number in (memory or {}).items() if number in self.scene.names}
        return Position(self.scene.start(), there)

    def missing(self, at: Position) -> int:
        """Returns the number of the goal's parts that are not reached."""
        return self.goal.missing(self.scene, at.state, at.acted)

    def key(self, at: Position) -> str:
        """Returns a key that is equal for positions in which the same actions have the same effects."""
        return self.scene.key(at.state, sorted(at.memory.items()), at.last, at.acted)

    def instance(self, at: Position, named: Named, from_hand: bool = False) -> int | None:
        """Returns the instance that an object of an action refers to; None if the scene has none of that class.

        The first of these applies: the number in the action; for an object taken from the hand, the held instance; the instance
        that the name referred to last; the lowest number close to the agent; the lowest number close to or inside the object of the
        last action; any instance, drawn from the seed and the name.
        """
        scene, same = self.scene, self.scene.ids.get(named.name, ())
        if named.number is not None:
            return named.number if named.number in same else None
        if len(same) < 2:
            return same[0] if same else None
        if from_hand:
            held = [number for number in scene.held(at.state) if number in same]
            if held and at.memory.get(named.name) not in held:
                return held[0]
        if named.name in at.memory:
            return at.memory[named.name]
        near = set(scene.targets(at.state, scene.agent, "CLOSE"))
        beside = set(scene.targets(at.state, at.last, "CLOSE")) if at.last is not None else set()
        within = {number for number in same if at.last is not None and scene.has_edge(at.state, number, "INSIDE", at.last)}
        for closer in (near, beside | within):
            found = [number for number in same if number in closer]
            if found:
                return found[0]
        draw = np.random.SeedSequence([self.seed, zlib.crc32(named.name.encode())]).generate_state(1)[0]
        return same[int(draw) % len(same)]

    def instances(self, at: Position, command: Command) -> tuple[int, ...] | None:
        """Returns the instances of a command's objects; None if the scene lacks one."""
        found = tuple(self.instance(at, named, not index and command.verb in _FROM_HAND) for index, named in enumerate(command.objects))
        return None if None in found else found

    def do(self, at: Position, verb: str, ids: Sequence[int]) -> Position | None:
        """Returns the position after an action on instances; None if it is impossible or has no effect."""
        state = self.scene.execute(at.state, verb, tuple(ids))
        if state is None:
            return None
        memory = {**at.memory, **{self.scene.names[number]: number for number in ids}}
        return Position(state, memory, ids[-1] if ids else at.last, self.goal.advance(at.acted, verb))

    def take(self, at: Position, text: object) -> Position | None:
        """Returns the position after an action in text; None if it cannot be parsed, names a missing object, or is impossible."""
        command = read(text, self.scene.ids)
        ids = None if command is None else self.instances(at, command)
        return None if ids is None else self.do(at, command.verb, ids)

    def say(self, at: Position, verb: str, ids: Sequence[int]) -> str:
        """Writes an action on these instances, with a number only if the bare name would refer to another instance here."""
        objects = tuple(Named(self.scene.names[number]) for number in ids)
        meant = self.instances(at, Command(verb, objects)) or ()
        exact = tuple(
            named if number == wanted else Named(named.name, wanted) for named, number, wanted in zip(objects, meant, ids, strict=True)
        )
        return write(verb, exact)

    def follow(self, at: Position, program: Sequence[tuple[str, Sequence[int]]]) -> Iterator[tuple[str, Position]]:
        """Takes the actions of a program as text until the goal is reached; skips impossible ones.

        Yields (text, position after it).
        """
        for verb, ids in program:
            if not self.missing(at):
                return
            text = self.say(at, verb, ids)
            after = self.take(at, text)
            if after is not None:
                at = after
                yield text, at

    def solution(self, at: Position, program: Sequence[tuple[str, Sequence[int]]]) -> list[str] | None:
        """Returns the texts by which a program reaches the goal from here; None if it does not."""
        texts = []
        for text, after in self.follow(at, program):
            texts.append(text)
            at = after
        return None if self.missing(at) else texts

    def shortened(self, at: Position, program: Sequence[tuple[str, Sequence[int]]]) -> list[tuple[str, Sequence[int]]]:
        """Removes the lines that the goal does not need, trying them from first to last."""
        kept = list(program)
        for line in list(program):
            shorter = list(kept)
            shorter.remove(line)
            if self.solution(at, shorter) is not None:
                kept = shorter
        return kept


def lines(program) -> list[tuple[str, tuple[int, ...]]]:
    """Returns a task's program as (verb, instances) pairs."""
    return [(verb, tuple(each.number for each in objects)) for verb, objects in program]


VERBS = tuple(FORMS)
