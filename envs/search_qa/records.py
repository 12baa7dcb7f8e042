"""Documents and questions, whatever they are read or made from."""

from __future__ import annotations

from typing import NamedTuple


class Document(NamedTuple):
    """A document of the corpus. `contents` is what the search engine indexes."""

    title: str
    text: str
    contents: str


class Question(NamedTuple):
    """A question with its right answers.

    answers: the right answers; the first one is the reference.
    hops: for each step of the gold path, the indices of the documents of which one must be found; empty if the path is unknown.
    queries: for each step, the title of its document.
    """

    text: str
    answers: tuple[str, ...]
    hops: tuple[frozenset[int], ...]
    queries: tuple[str, ...]
