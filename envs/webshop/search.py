"""Ranked search as the benchmark's Lucene index does it: Porter stems, 33 stop words, BM25 with k1 = 0.9, b = 0.4.

    score(d, q) = Σ_{t in q} ln(1 + (N − n_t + ½) / (n_t + ½)) · f_td / (f_td + k1 · (1 − b + b · |d| / mean |d|))

with N documents, n_t of them with the stem t, f_td times in d. This is the package bm25s's method "lucene", whose numbers the
tests compare; that package is not imported here, because its import starts JAX's backend.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import Stemmer

K1, B = 0.9, 0.4

# Lucene's English stop words.
STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to "
    "was will with".split()
)
_WORD = re.compile(r"\b\w\w+\b")


class Index:
    """Documents by their stems. Ties of equal score go to the document that comes first."""

    def __init__(self, documents: Sequence[str]):
        stemmer = Stemmer.Stemmer("porter")
        self._stem = stemmer.stemWord
        self._size = len(documents)
        postings: dict[str, tuple[list[int], list[int]]] = {}
        stems: dict[str, str] = {}
        lengths = np.zeros(max(self._size, 1), np.float64)
        for number, text in enumerate(documents):
            words = _words(text)
            lengths[number] = len(words)
            for word in words:
                if word not in stems:
                    stems[word] = self._stem(word)
            for stem, count in Counter(stems[word] for word in words).items():
                where, counts = postings.setdefault(stem, ([], []))
                where.append(number)
                counts.append(count)
        norm = K1 * (1 - B + B * lengths / max(lengths.mean(), 1e-9))
        self._weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for stem, (where, counts) in postings.items():
            rows, tf = np.array(where, np.int32), np.array(counts, np.float64)
            idf = np.log(1 + (self._size - len(rows) + 0.5) / (len(rows) + 0.5))
            self._weights[stem] = rows, (idf * tf / (tf + norm[rows])).astype(np.float32)

    def scores(self, query: str) -> np.ndarray:
        """The score of every document: float32[N], 0 where no stem of the query occurs."""
        scores = np.zeros(self._size, np.float32)
        for word in _words(query):
            found = self._weights.get(self._stem(word))
            if found is not None:
                scores[found[0]] += found[1]
        return scores

    def search(self, query: str, hits: int) -> list[int]:
        """The numbers of the best documents, at most `hits`, best first; documents without a stem of the query never."""
        scores = self.scores(query)
        rows = np.flatnonzero(scores)
        if len(rows) > hits:
            least = np.partition(scores[rows], len(rows) - hits)[len(rows) - hits]
            rows = rows[scores[rows] >= least]
        return rows[np.argsort(-scores[rows], kind="stable")][:hits].tolist()


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.lower()) if word not in STOP_WORDS]
