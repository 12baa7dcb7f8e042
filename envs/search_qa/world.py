"""The embedded world: people, towns, companies, rivers and books with invented names, documents about them, and questions.

A question chains 1 to 4 facts ("the mayor of the birthplace of …"). For each one:

* the answer is unique: names are unique, and a relation has one object for each subject;
* the answer cannot be read from the question (they share no word), nor from a document before the last of its path;
* trained and held-out questions are about different things. A quarter of the things is held out, and facts never lead from one part to
  the other, so no fact of a held-out question is part of any training question. All documents are in one corpus.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from stepreward.envs.search_qa.records import Document, Question
from stepreward.envs.search_qa.scoring import normalise
from stepreward.envs.search_qa.wording import RELATIONS, Relation, document, names, question

_SHARES = {"person": 1.0, "town": 0.25, "company": 0.25, "river": 0.1, "work": 0.5}  # number of things per person
_HELD_OUT = 0.25  # share of the things of each kind
_TITLES = 3  # how often a title is indexed, so that a whole name finds its document first
_TRIES = 60  # random walks per question


class _Thing(NamedTuple):
    kind: str
    name: str


def build(people: int, hops: tuple[int, ...], sizes: dict[str, int], style: str, seed: int):
    """Builds a world.

    Args:
      people: number of people, at least 80.
      hops: numbers of facts that questions chain.
      sizes: number of questions of each split, "train" and "held_out"; fewer if the world has no more.
      style: "short" or "full".
      seed: any whole number; the same arguments give the same world on every machine.

    Returns:
      (documents, questions of each split, for each document the names that it mentions).
    """
    draw = random.Random(f"search_qa world {seed}")
    parts = _things(people, draw)
    facts = {thing: _facts(thing, part, draw) for part in parts.values() for things in part.values() for thing in things}
    _marry(parts, facts, draw)
    order = list(facts)
    draw.shuffle(order)
    place = {thing: number for number, thing in enumerate(order)}
    documents, mentions = [], []
    for thing in order:
        told = [(relation, other.name) for relation, other in facts[thing].items()]
        title = thing.name.lower() if style == "short" else thing.name
        text = document(thing.kind, thing.name, told, style, draw)
        documents.append(Document(title, text, "\n".join((title,) * _TITLES) + f"\n{text}"))
        mentions.append(tuple(_cased(name, style) for name in (thing.name, *(name for _, name in told))))
    questions = {}
    for split, part in parts.items():
        starts = [thing for things in part.values() for thing in things]
        questions[split] = []
        for index, length in enumerate(hops):
            wanted = sizes[split] // len(hops) + (index < sizes[split] % len(hops))
            questions[split] += _questions(starts, facts, place, length, wanted, style, draw)
        draw.shuffle(questions[split])
    return documents, questions, mentions


def _things(people: int, draw: random.Random) -> dict[str, dict[str, list[_Thing]]]:
    """Names all things; returns them by split and kind."""
    parts: dict[str, dict[str, list[_Thing]]] = {"train": {}, "held_out": {}}
    for kind, share in _SHARES.items():
        called, count = names(kind, draw), round(people * share)
        things = [_Thing(kind, next(called)) for _ in range(count)]
        held_out = round(count * _HELD_OUT)
        parts["held_out"][kind], parts["train"][kind] = things[:held_out], things[held_out:]
    return parts


def _facts(thing: _Thing, part: dict[str, list[_Thing]], draw: random.Random) -> dict[Relation, _Thing]:
    """Draws the object of each of a thing's relations."""
    found = {}
    for relation in RELATIONS[thing.kind]:
        others = part[relation.object]
        other = draw.choice(others)
        while other is thing:
            other = draw.choice(others)
        found[relation] = other
    return found


def _marry(parts, facts, draw: random.Random) -> None:
    """Makes marriages mutual. Of an odd number of people, the last keeps the spouse that was drawn."""
    (spouse,) = [relation for relation in RELATIONS["person"] if relation.name == "spouse"]
    for part in parts.values():
        people = draw.sample(part["person"], len(part["person"]))
        for one, two in zip(people[::2], people[1::2]):
            facts[one][spouse], facts[two][spouse] = two, one


def _questions(starts, facts, place, length: int, wanted: int, style: str, draw: random.Random) -> list[Question]:
    """Draws different questions of one length by random walks over the facts."""
    made: dict[tuple, Question] = {}
    for _ in range(_TRIES * wanted):
        if len(made) == wanted:
            break
        walk, path = [draw.choice(starts)], []
        for _ in range(length):
            path.append(draw.choice(list(facts[walk[-1]])))
            walk.append(facts[walk[-1]][path[-1]])
        *gold, answer = walk
        key = (gold[0], *(relation.name for relation in path))
        if key in made or len(set(walk)) <= length or any(answer in facts[thing].values() for thing in gold[:-1]):
            continue
        text = question(*gold[0], path, style, draw)
        if _words(text) & _words(answer.name):
            continue
        called = _cased(answer.name, style)
        also = (f"{called} {_cased('River', style)}",) if answer.kind == "river" else ()
        hops = tuple(frozenset({place[thing]}) for thing in gold)
        made[key] = Question(text, (called, *also), hops, tuple(_cased(thing.name, style) for thing in gold))
    return list(made.values())


def _cased(name: str, style: str) -> str:
    return name.lower() if style == "short" else name


def _words(text: str) -> set[str]:
    return set(normalise(text).split())
