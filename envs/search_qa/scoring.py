"""Compares an answer with the right ones: exact match and F1, after one of the field's two normalisations.

    F1 = 2 · P · R / (P + R),  P = |answer ∩ gold| / |answer|,  R = |answer ∩ gold| / |gold|

* "squad" (SQuAD, HotpotQA, Search-R1, ARPO): lower case, punctuation deleted, articles removed; F1 counts words as often as they occur.
  Its F1 is 0 if only one of the two is "yes", "no" or "noanswer".
* "igpo" (IGPO): lower case, punctuation replaced by spaces, articles kept; F1 is over the sets of words.

With several right answers, the largest value counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

NORMS = ("squad", "igpo")
_CLOSED = ("yes", "no", "noanswer")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_DELETED = str.maketrans("", "", string.punctuation)
_SPACED = str.maketrans(string.punctuation, " " * len(string.punctuation))


def normalise(text: str, norm: str = "squad") -> str:
    """Returns the text as the comparison sees it: words separated by single spaces."""
    text = text.lower()
    text = text.translate(_SPACED) if norm == "igpo" else _ARTICLES.sub(" ", text.translate(_DELETED))
    return " ".join(text.split())


def exact_match(answer: str, golds: Sequence[str], norm: str = "squad") -> float:
    """Returns 1.0 if the answer equals one of the right answers, and 0.0 otherwise."""
    return float(normalise(answer, norm) in {normalise(gold, norm) for gold in golds})


def f1(answer: str, golds: Sequence[str], norm: str = "squad") -> float:
    """Returns the largest F1 in [0, 1] of the answer and a right answer; 0 for a text without words."""
    return max(_f1(normalise(answer, norm), normalise(gold, norm), norm) for gold in golds)


def _f1(answer: str, gold: str, norm: str) -> float:
    if norm == "squad" and answer != gold and (answer in _CLOSED or gold in _CLOSED):
        return 0.0
    count = Counter if norm == "squad" else lambda words: Counter(set(words))
    said, right = count(answer.split()), count(gold.split())
    shared = (said & right).total()
    return 2 * shared / (said.total() + right.total()) if shared else 0.0
