"""Named settings: the questions, the search engine, the limits and rewards of published experiments."""

from __future__ import annotations

import os
from dataclasses import dataclass

from stepreward.envs.choosing import settings_of
from stepreward.envs.search_qa.scoring import NORMS

STYLES = ("short", "full")
OBSERVATIONS = ("documents", "compact")
MEASURES = ("f1", "em")
MOST_HOPS = 4


@dataclass(frozen=True)
class Settings:
    """The settings of a Search QA environment. Hashable.

    data: a file of questions (HotpotQA, 2WikiMultihopQA, MuSiQue, FlashRAG); None for the embedded world.
    held_out_data: another such file, whose questions form the held-out split; None splits `data`.
    corpus: a JSONL file of documents ({"id", "contents"}); None takes the documents that the questions come with.
    held_out: number of questions in the held-out split, unless held_out_data is given.
    seed: seeds the embedded world, and the division of a data file into train and held-out questions.
    questions: number of training questions of the embedded world.
    people: number of people in the embedded world; the numbers of other things are proportional to it.
    hops: numbers of facts that the embedded world's questions chain, each from 1 to 4.
    style: "short" writes the embedded world in a few lower-case words, for tiny models; "full" writes sentences.
    observation: "documents", numbered and with titles, as in Search-R1; "compact", only their texts.
    hits: number of documents that a search returns.
    max_words: words of the documents that an observation shows; a mark stands for those that are cut. 0: all.
    max_steps: turns after which an episode is truncated.
    answer_turns: number of last turns in which a search is an invalid action.
    repeats: whether a query may be searched again in an episode; if not, repeating it is an invalid action.
    norm: "squad" or "igpo", how answers are compared; see scoring.py.
    reward, score: "f1" or "em": what an answer earns, and what info["score"] has.
    win_f1: None: an answer wins if it matches exactly. A number: it wins with an F1 of at least that.
    wrong_reward: reward of an answer that would earn 0.
    invalid_reward: reward of a turn with an invalid action.
    unanswered_reward: added to the reward of the last turn if no answer was given.
    tool_bonus: added to the reward of an answer that earns something and follows a search.
    turn_reward: whether info has "turn_reward", the share of the question's documents that the turn found first.

    Raises ValueError that names the setting and its allowed values.
    """

    data: str | None = None
    held_out_data: str | None = None
    corpus: str | None = None
    held_out: int = 500
    seed: int = 0
    questions: int = 4000
    people: int = 600
    hops: tuple[int, ...] = (1, 2, 3, 4)
    style: str = "full"
    observation: str = "documents"
    hits: int = 3
    max_words: int = 0
    max_steps: int = 10
    answer_turns: int = 0
    repeats: bool = True
    norm: str = "squad"
    reward: str = "f1"
    score: str = "f1"
    win_f1: float | None = None
    wrong_reward: float = 0.0
    invalid_reward: float = 0.0
    unanswered_reward: float = 0.0
    tool_bonus: float = 0.0
    turn_reward: bool = False

    def __post_init__(self):
        for name in ("data", "held_out_data", "corpus"):
            path = getattr(self, name)
            object.__setattr__(self, name, os.fspath(path) if isinstance(path, os.PathLike) else path or None)
        least = {"held_out": 1, "seed": 0, "questions": 1, "people": 80, "hits": 1, "max_words": 0, "max_steps": 1, "answer_turns": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ValueError(f"{name}={value!r}: give a whole number, at least {low}")
        if self.people > MOST_PEOPLE:
            raise ValueError(f"people={self.people}: give at most {MOST_PEOPLE}, because the embedded world has no more names")
        if self.answer_turns >= self.max_steps and self.answer_turns:
            raise ValueError(f"answer_turns={self.answer_turns}: give less than max_steps={self.max_steps}, so that a search is possible")
        hops = self.hops if isinstance(self.hops, (tuple, list)) else (None,)
        if not hops or any(type(hop) is not int or not 1 <= hop <= MOST_HOPS for hop in hops):
            raise ValueError(f"hops={self.hops!r}: give one or more whole numbers from 1 to {MOST_HOPS}, such as (1, 2)")
        object.__setattr__(self, "hops", tuple(sorted(set(hops))))
        known = {"style": STYLES, "observation": OBSERVATIONS, "norm": NORMS, "reward": MEASURES, "score": MEASURES}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r}: give one of {', '.join(values)}")
        for name in ("wrong_reward", "invalid_reward", "unanswered_reward", "tool_bonus"):
            if not _is_number(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)!r}: give a number")
        if self.win_f1 is not None and not (_is_number(self.win_f1) and 0 < self.win_f1 <= 1):
            raise ValueError(f"win_f1={self.win_f1!r}: give a number above 0 and at most 1, or None")
        for name in ("held_out_data", "corpus"):
            if getattr(self, name) and not self.data:
                raise ValueError(f"{name}={getattr(self, name)!r} needs data, a file of questions: set environment.data")


MOST_PEOPLE = 2000


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


PRESETS = {
    # One short document per search, for models trained from scratch. In a smaller world, they learn the facts by heart.
    "tiny": Settings(people=2000, questions=12_000, hops=(1, 2), style="short", observation="compact", hits=1, max_steps=5),
    # A small world with questions of one hop.
    "micro": Settings(people=80, questions=200, held_out=40, hops=(1,), style="short", observation="compact", hits=1, max_steps=4),
    # verl-agent's search environment, whose prompts iStar's code uses: 4 turns, exact match, a repeated query is invalid.
    "istar": Settings(hops=(1, 2, 3), max_steps=4, repeats=False, reward="em", invalid_reward=-0.01),
    # SPA-RL has no search environment: its answer format with ReAct's two actions.
    "spa": Settings(),
    # Search-R1 (arXiv 2503.09516), release v0.3: 4 turns with search and a last one without, 3 documents, 500 tokens of them.
    "search_r1": Settings(max_words=375, max_steps=5, answer_turns=1, reward="em", score="em"),
    # IGPO (arXiv 2510.14967): 10 turns, F1 over sets of words, −2 without a readable answer.
    "igpo": Settings(norm="igpo", unanswered_reward=-2.0),
    # ARPO (arXiv 2507.19849): SQuAD's F1, −1 without a readable answer, +0.1 for the use of tools.
    "arpo": Settings(unanswered_reward=-1.0, tool_bonus=0.1),
}


def settings(preset: str = "tiny", **overrides) -> Settings:
    """Returns the settings of a preset, with the fields in `overrides` replaced.

    Raises ValueError for an unknown preset or field, and lists the known ones.
    """
    return settings_of("Search QA", PRESETS, preset, overrides)
