"""The words of the embedded world: names, relations, and how documents and questions are written.

Every name has two words. Trained and held-out things share the words but not the names, so a model that copies names word by word can
also copy those that it has never seen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)  # compared and hashed by identity, which is fast
class Relation:
    """A fact's kind: each subject has exactly one object.

    name: its word in the short style.
    object: the kind of the object.
    phrases: noun phrases for questions; {} is the subject.
    verbs: what a document says of its subject; {} is the object.
    """

    name: str
    object: str
    phrases: tuple[str, ...]
    verbs: tuple[str, ...]


RELATIONS: Mapping[str, tuple[Relation, ...]] = {
    "person": (
        Relation("birthplace", "town", ("the birthplace of {}", "the town where {} was born"),
                 ("was born in {}", "is a native of {}", "has {} as a birthplace")),
        Relation("employer", "company", ("the employer of {}", "the company that employs {}"),
                 ("works for {}", "is employed by {}", "has a post at {}")),
        Relation("spouse", "person", ("the spouse of {}", "the person married to {}"),
                 ("is married to {}", "is the spouse of {}", "shares a house with a spouse, {}")),
        Relation("teacher", "person", ("the teacher of {}", "the person who taught {}"),
                 ("was taught by {}", "was a student of {}", "learned the trade from a teacher, {}")),
    ),
    "company": (
        Relation("seat", "town", ("the town where {} has its head office", "the town in which {} is based"),
                 ("has its head office in {}", "is based in {}", "is run from {}")),
        Relation("founder", "person", ("the founder of {}", "the person who founded {}"),
                 ("was founded by {}", "was started by {}", "goes back to its founder, {}")),
        Relation("head", "person", ("the head of {}", "the person who leads {}"),
                 ("is led by {}", "is headed by {}", "has {} as its head")),
    ),
    "town": (
        Relation("river", "river", ("the river that flows through {}", "the river on which {} lies"),
                 ("lies on the river {}", "is crossed by the river {}", "grew up beside the river {}")),
        Relation("mayor", "person", ("the mayor of {}", "the person who is mayor of {}"),
                 ("has {} as its mayor", "is governed by its mayor, {}", "elected {} as mayor")),
        Relation("twin", "town", ("the twin town of {}", "the town that {} is twinned with"),
                 ("is twinned with {}", "has a twin town, {}", "exchanges visits with its twin, {}")),
    ),
    "river": (
        Relation("source", "town", ("the town at the source of {}", "the town near which {} rises"),
                 ("rises near {}", "has its source at {}", "begins as a spring by {}")),
        Relation("mouth", "town", ("the town at the mouth of {}", "the town where {} reaches the sea"),
                 ("reaches the sea at {}", "has its mouth at {}", "ends in the harbour of {}")),
    ),
    "work": (
        Relation("author", "person", ("the author of {}", "the person who wrote {}"),
                 ("was written by {}", "is a book by {}", "is the best known work of {}")),
        Relation("publisher", "company", ("the publisher of {}", "the company that published {}"),
                 ("was published by {}", "was brought out by {}", "appeared with {}")),
        Relation("setting", "town", ("the town in which {} is set", "the setting of {}"),
                 ("is set in {}", "takes place in {}", "tells of life in {}")),
    ),
}  # fmt: skip

_ASKS = ("What is the name of {}?", "Can you name {}?", "Find out the name of {}.")
_PRONOUNS = {"person": ("He", "She"), "company": ("It",), "town": ("It",), "river": ("It",), "work": ("It",)}


def _joined(heads: str, tails: str) -> list[str]:
    return [head + tail for head in heads.split() for tail in tails.split()]


_FIRST = _joined("ab el iv or un jav kem mil", "an or is ek ul a")
_LAST = _joined("bren dolm fars grim holt kest lund tarn", "er in ow ald ett y")
_PLACE = _joined("bar cor dun fen gal mor sil wex", "ham ley ton wick mere ford")
_NAMES: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "person": (_FIRST, _LAST),
    "town": ("upper lower north south east west old new great little high long deep far mid fair".split(), _PLACE),
    "company": (_LAST, "mills works bank press glass lines tools foods mines yards steel paper".split()),
    "river": ("black white red green grey blue cold swift slow clear dark bright".split(), _PLACE[::2]),
    "work": (
        ("silent golden broken hidden last first stolen winter summer distant empty frozen gentle hollow lonely naked "
         "open paper quiet rising sacred secret seven silver simple single sleeping strange sudden tender twelve velvet").split(),
        ("garden window mirror island letter shadow bridge candle castle circle colour corner door dream field fire "
         "forest harbour horse kitchen lantern meadow morning orchard road room season song storm tower train voyage").split(),
    ),
}  # fmt: skip


def names(kind: str, draw: random.Random) -> Iterator[str]:
    """Yields all names of a kind, in title case and in random order."""
    first, second = _NAMES[kind]
    pairs = [f"{one} {two}".title() for one in first for two in second]
    draw.shuffle(pairs)
    return iter(pairs)


def question(kind: str, name: str, path: Sequence[Relation], style: str, draw: random.Random) -> str:
    """Writes the question for what a chain of relations leads to from the thing called `name`."""
    if style == "short":
        return " of ".join([relation.name for relation in reversed(path)] + [name.lower()]) + "?"
    phrase = f"the river {name}" if kind == "river" else name
    for relation in path:
        phrase = draw.choice(relation.phrases).format(phrase)
    return draw.choice(_ASKS).format(phrase)


def document(kind: str, name: str, facts: Sequence[tuple[Relation, str]], style: str, draw: random.Random) -> str:
    """Writes the text of the document about one thing; `facts` are its relations and the names of their objects."""
    facts = draw.sample(facts, len(facts))
    if style == "short":
        return f"{name}. ".lower() + ". ".join(f"{relation.name} {other}".lower() for relation, other in facts)
    said = [draw.choice(relation.verbs).format(other) for relation, other in facts]
    sentences = [" and ".join(said[index : index + 2]) for index in range(0, len(said), 2)]
    pronoun = draw.choice(_PRONOUNS[kind])
    subject = f"The river {name}" if kind == "river" else name
    return " ".join(f"{subject if number == 0 else pronoun} {sentence}." for number, sentence in enumerate(sentences))
