"""The rules between text and simulator: which instance a name means, and what a text does."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stepreward.envs.virtualhome.actions import FORMS, Command, Named, read, write
from stepreward.envs.virtualhome.goals import Goal
from stepreward.envs.virtualhome.simulator import Scene

_FROM_HAND = ("PUTBACK", "PUTIN", "POUR", "PUTOBJBACK", "DROP", "RELEASE")  # their first object is one that is held


class Position(NamedTuple):
    """Where an episode stands; never changed.

    state: the simulator's. memory: the instance that each name meant last. last: the object acted on last, or None.
    acted: how many of the goal's actions are done.
    """

    state: Any
    memory: Mapping[str, int]
    last: int | None = None
    acted: int = 0


class Game:
    """One task as it is played. `seed` decides between instances of a name where nothing else does."""

    def __init__(self, scene: Scene, goal: Goal, seed: int = 0):
        self.scene, self.goal, self.seed = scene, goal, seed

    def start(self, memory: Mapping[str, int] | None = None) -> Position:
        """The first position; `memory` holds the instances that names shall mean from the start."""
        there = {name: number for name, number in (memory or {}).items() if number in self.scene.names}
        return Position(self.scene.start(), there)

    def missing(self, at: Position) -> int:
        """How many parts of the goal are not reached."""
        return self.goal.missing(self.scene, at.state, at.acted)

    def key(self, at: Position) -> str:
        """Equal for positions from which the same texts do the same."""
        return self.scene.key(at.state, sorted(at.memory.items()), at.last, at.acted)

    def instance(self, at: Position, named: Named, from_hand: bool = False) -> int | None:
        """The instance that an object of an action means; None when the scene has none of that class.

        Its number where it is said; else, for what is taken from a hand, the one held; else the one that the name meant last;
        else the lowest close to the agent; else the lowest close to or inside the object acted on last; else any, drawn from the
        seed and the name.
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
        """The instances of a command's objects; None when one is not there."""
        found = tuple(self.instance(at, named, not index and command.verb in _FROM_HAND) for index, named in enumerate(command.objects))
        return None if None in found else found

    def do(self, at: Position, verb: str, ids: Sequence[int]) -> Position | None:
        """The position after an action on instances; None when it cannot be done, or does not do anything."""
        state = self.scene.execute(at.state, verb, tuple(ids))
        if state is None:
            return None
        memory = {**at.memory, **{self.scene.names[number]: number for number in ids}}
        return Position(state, memory, ids[-1] if ids else at.last, self.goal.advance(at.acted, verb))

    def take(self, at: Position, text: object) -> Position | None:
        """The position after a text action; None when it is none, names what is not there, or cannot be done."""
        command = read(text, self.scene.ids)
        ids = None if command is None else self.instances(at, command)
        return None if ids is None else self.do(at, command.verb, ids)

    def say(self, at: Position, verb: str, ids: Sequence[int]) -> str:
        """The text that means an action on these instances here: with numbers only where the bare name means another one."""
        objects = tuple(Named(self.scene.names[number]) for number in ids)
        meant = self.instances(at, Command(verb, objects)) or ()
        exact = tuple(
            named if number == wanted else Named(named.name, wanted) for named, number, wanted in zip(objects, meant, ids, strict=True)
        )
        return write(verb, exact)

    def follow(self, at: Position, program: Sequence[tuple[str, Sequence[int]]]) -> Iterator[tuple[str, Position]]:
        """Takes the actions of a program in text until the goal is reached; those that cannot be done are left out.

        Yields the text and the position after it.
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
        """The texts by which a program reaches the goal from here; None when it does not."""
        texts = []
        for text, after in self.follow(at, program):
            texts.append(text)
            at = after
        return None if self.missing(at) else texts

    def shortened(self, at: Position, program: Sequence[tuple[str, Sequence[int]]]) -> list[tuple[str, Sequence[int]]]:
        """The program without the lines that the goal can do without, tried from the first to the last."""
        kept = list(program)
        for line in list(program):
            shorter = list(kept)
            shorter.remove(line)
            if self.solution(at, shorter) is not None:
                kept = shorter
        return kept


def lines(program) -> list[tuple[str, tuple[int, ...]]]:
    """A task's program as verbs and instances."""
    return [(verb, tuple(each.number for each in objects)) for verb, objects in program]


VERBS = tuple(FORMS)
