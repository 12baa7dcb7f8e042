"""Ranked search as in Lucene (WebShop, Search QA): Porter stems, 33 stop words, BM25 with k1 = 0.9 and b = 0.4.

    score(d, q) = Σ_{t in q} ln(1 + (N − n_t + ½) / (n_t + ½)) · f_td / (f_td + k1 · (1 − b + b · |d| / mean |d|))

for N documents, of which n_t contain the stem t, f_td times in document d. The package bm25s computes it (method "lucene").
"""

from __future__ import annotations

import functools
import logging
import re
import sys
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


def _import_bm25s():
    """Imports bm25s without JAX: its import would start a JAX backend, and an environment must not occupy a device."""
    hidden = {name: sys.modules.get(name) for name in ("jax", "jax.lax")}
    sys.modules.update(dict.fromkeys(hidden))  # None makes an import raise ImportError, which bm25s handles
    try:
        import bm25s
    finally:
        for name, module in hidden.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # bm25s turns its debug messages on
    return bm25s


class Index:
    """An index of documents by their stems. Documents of equal score keep their order."""

    def __init__(self, documents: Sequence[str]):
        self._stem = functools.lru_cache(maxsize=65_536)(Stemmer.Stemmer("porter").stemWord)
        self._size = len(documents)
        self._index = _import_bm25s().BM25(k1=K1, b=B, method="lucene")
        corpus = [self._stems(text) for text in documents]
        self._empty = not any(corpus)  # bm25s rejects a corpus without words
        if not self._empty:
            self._index.index(corpus, show_progress=False)

    def scores(self, query: str) -> np.ndarray:
        """Returns the score of every document: float32[N], 0 for documents without a stem of the query."""
        stems = self._stems(query)
        if self._empty or not stems:
            return np.zeros(self._size, np.float32)
        return self._index.get_scores(stems)

    def search(self, query: str, hits: int) -> list[int]:
        """Returns the indices of at most `hits` documents with a stem of the query, best first."""
        scores = self.scores(query)
        rows = np.flatnonzero(scores)
        if len(rows) > hits:
            least = np.partition(scores[rows], len(rows) - hits)[len(rows) - hits]
            rows = rows[scores[rows] >= least]
        return rows[np.argsort(-scores[rows], kind="stable")][:hits].tolist()

    def _stems(self, text: str) -> list[str]:
        return [self._stem(word) for word in _WORD.findall(text.lower()) if word not in STOP_WORDS]
