"""A library: documents, their search index, and questions. A process loads it once and shares it among environments."""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Sequence

from stepreward.envs.bm25 import Index
from stepreward.envs.search_qa import files, world
from stepreward.envs.search_qa.presets import Settings
from stepreward.envs.search_qa.records import Document, Question

SPLITS = ("train", "held_out")
CACHED = 16_384  # number of searches that a library remembers; queries are a model's output, so the number is bounded
_log = logging.getLogger(__name__)


class Library:
    """The immutable part of the environment.

    Args:
      documents: the corpus.
      questions: the questions of each split.
      mentions: for each document, names in it that a next action may be about.
    """

    def __init__(self, documents: Sequence[Document], questions: dict[str, list[Question]], mentions: Sequence[tuple[str, ...]]):
        self.documents, self.questions, self.mentions = documents, questions, mentions
        self._index = Index([document.contents for document in documents])
        self.search = functools.lru_cache(CACHED)(self._search)

    def _search(self, query: str, hits: int) -> tuple[int, ...]:
        """Returns the indices of the documents that a query finds, best first."""
        return tuple(self._index.search(query, hits))


def load(settings: Settings) -> Library:
    """Loads the library of an environment's settings.

    Raises FileNotFoundError for a missing file, ValueError for a malformed one or for settings that do not fit the data.
    """
    s = settings
    if s.data is None:
        return _embedded(s.people, s.hops, s.questions, s.held_out, s.style, s.seed)
    return _read(s.data, s.held_out_data, s.corpus, s.held_out, s.seed)


@functools.lru_cache(maxsize=4)
def _embedded(people: int, hops: tuple[int, ...], questions: int, held_out: int, style: str, seed: int) -> Library:
    return Library(*world.build(people, hops, {"train": questions, "held_out": held_out}, style, seed))


@functools.lru_cache(maxsize=2)
def _read(data: str, held_out_data: str | None, corpus: str | None, held_out: int, seed: int) -> Library:
    """Reads files. The corpus, if none is given, is the union of the questions' documents; equal ones (title and text) count once."""
    read = {"train": _questions(data)}
    if held_out_data is not None:
        read["held_out"] = _questions(held_out_data)
    if corpus is not None:
        documents = dict.fromkeys(files.read_corpus(corpus))
    else:
        documents = dict.fromkeys(pair for raws in read.values() for raw in raws for pair in raw.context)
        if not documents:
            raise ValueError(f"{data} has questions without documents: set environment.options.corpus to a JSONL file of documents")
    place = {pair: number for number, pair in enumerate(documents)}
    titled: dict[str, set[int]] = {}
    for (title, _), number in place.items():
        titled.setdefault(title, set()).add(number)
    missing = 0
    questions: dict[str, list[Question]] = {}
    for split, raws in read.items():
        questions[split] = []
        for raw in raws:
            # Documents of the questions are known exactly; those of another corpus by their titles.
            hops = [{place[pair]} if corpus is None else titled.get(pair[0], set()) for pair in raw.gold]
            missing += sum(not hop for hop in hops)
            kept = [(frozenset(hop), pair[0]) for hop, pair in zip(hops, raw.gold) if hop]
            questions[split].append(Question(raw.text, raw.answers, tuple(hop for hop, _ in kept), tuple(title for _, title in kept)))
    if missing:
        _log.warning("%s lacks %d supporting documents of the questions in %s; they are no part of gold paths.", corpus, missing, data)
    made = [Document(title, text, f"{title}\n{text}") for title, text in documents]
    return Library(made, _split(questions, data, held_out, seed), [(document.title,) for document in made])


def _questions(path: str) -> list[files.Raw]:
    """Reads questions; of questions with equal texts, the first is kept."""
    raws, unanswerable = files.read_questions(path)
    if unanswerable:
        _log.warning("%s: %d questions are marked as not answerable and are left out.", path, unanswerable)
    unique = {raw.text: raw for raw in reversed(raws)}
    if len(unique) < len(raws):
        _log.warning("%s: %d questions repeat the text of another one and are left out.", path, len(raws) - len(unique))
    return list(unique.values())[::-1]


def _split(questions: dict[str, list[Question]], data: str, held_out: int, seed: int) -> dict[str, list[Question]]:
    if "held_out" in questions:
        known = {question.text for question in questions["train"]}
        apart = [question for question in questions["held_out"] if question.text not in known]
        if len(apart) < len(questions["held_out"]):
            _log.warning("%d held-out questions are also training questions and are left out.", len(questions["held_out"]) - len(apart))
        if not apart:
            raise ValueError("held_out_data has no question that data does not have too")
        return {"train": questions["train"], "held_out": apart}
    made = questions["train"]
    if len(made) <= held_out:
        raise ValueError(f"{data} has {len(made)} questions, too few to hold out {held_out}; set held_out to a smaller number")
    random.Random(f"search_qa split {seed}").shuffle(made)
    return {"train": made[held_out:], "held_out": made[:held_out]}
