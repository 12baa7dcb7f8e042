"""The Search QA environment: answer a question after searching documents."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from stepreward.envs.events import event_names
from stepreward.envs.protocol import ADMISSIBLE, DISTANCE, EVENTS, EXPERT, REFERENCE, REPLAY, SNAPSHOT, TASKS, TURN_REWARD, Observation
from stepreward.envs.search_qa import library
from stepreward.envs.search_qa.actions import ANSWER, SEARCH, parse, write
from stepreward.envs.search_qa.presets import Settings
from stepreward.envs.search_qa.presets import settings as preset_settings
from stepreward.envs.search_qa.records import Question
from stepreward.envs.search_qa.scoring import exact_match, f1

# What an observation is: observation["kind"].
QUESTION, DOCUMENTS, NOTHING, INVALID, DONE = "question", "documents", "nothing", "invalid", "done"
_NOTICES = {NOTHING: "nothing found", INVALID: "invalid", DONE: "done"}


class Snapshot(NamedTuple):
    """The whole state of an episode, as plain data that can be pickled and restored in another environment.

    seen: indices of the documents that searches have shown, in the order of their first appearance.
    queries: the searches so far.
    answer: the answer, or None.
    steps: turns taken. failed: whether the last action was invalid.
    """

    split: str
    number: int
    seen: tuple[int, ...] = ()
    queries: tuple[str, ...] = ()
    answer: str | None = None
    steps: int = 0
    failed: bool = False


class SearchEnv:
    """One question; implements `stepreward.envs.protocol.Environment`.

    * Observation: {"text": str, "kind": "question", "documents", "nothing" (found), "invalid" or "done"}.
    * Actions: "search[words]" and "answer[words]". Any other string, None, a search in one of the last settings.answer_turns turns, and a
      repeated search if settings.repeats is False, are invalid: they change nothing and use a turn.
    * Reward: at the answer its F1 or exact match; 0 otherwise, but for the settings' penalties.
    * `terminated` after an answer; otherwise `truncated` after settings.max_steps turns.
    * info: won (the answer matches, see settings.win_f1), score (its F1 or exact match; 0 before), executed, state_key (the
      documents seen and the answer), task (the question), reference_answer, admissible (searches and answers with the names that the
      documents seen offer: some of the actions, since any words may be searched), events, and turn_reward if settings ask for it.
    * capabilities: snapshot, replay, distance (steps of the gold path not yet found, and 1 for the answer), expert, tasks, admissible,
      reference_answer, events; turn_reward if settings.turn_reward.

    Raises FileNotFoundError or ValueError for data that cannot be read, see files.py.
    """

    def __init__(self, settings: Settings | None = None):
        self.settings = preset_settings("tiny") if settings is None else settings
        self._library = library.load(self.settings)
        able = {SNAPSHOT, REPLAY, DISTANCE, EXPERT, TASKS, ADMISSIBLE, REFERENCE, EVENTS}
        if self.settings.turn_reward:
            if not any(question.hops for question in self._library.questions["train"]):
                raise ValueError(f"turn_reward=True: {self.settings.data} does not tell which documents a question needs; set it to False")
            able.add(TURN_REWARD)
        self.capabilities = frozenset(able)
        self._at: Snapshot | None = None

    def num_tasks(self, split: str) -> int:
        """Returns the number of questions in a split. Raises ValueError for an unknown split."""
        return len(self._questions(split))

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts question `seed` mod num_tasks of options["split"] (default "train"). Without a seed, it draws one.

        Raises ValueError for an unknown option or split, or a negative seed.
        """
        options = {} if options is None else options
        if unknown := sorted(set(options) - {"split"}):
            raise ValueError(f"unknown reset option {', '.join(unknown)}; the only option is split")
        split = options.get("split", "train")
        count = self.num_tasks(split)
        seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        if seed < 0:
            raise ValueError(f"seed={seed!r}: give a whole number, at least 0")
        self.restore(Snapshot(split, seed % count))
        return {"text": self._question.text, "kind": QUESTION}, self._info(executed=True)

    def step(self, action: str | None) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes one action. Raises RuntimeError only when no episode is running."""
        if self._at is None or self._over():
            raise RuntimeError("the episode is over or has not begun: call reset()")
        before, s = self._at, self.settings
        kind, words = parse(action) or (None, "")
        executed = kind == ANSWER or (kind == SEARCH and self._may_search(words))
        found = self._library.search(words, s.hits) if executed and kind == SEARCH else ()
        self._at = before._replace(
            seen=tuple(dict.fromkeys(before.seen + found)),
            queries=before.queries + ((words,) if executed and kind == SEARCH else ()),
            answer=words if kind == ANSWER else None,
            steps=before.steps + 1,
            failed=not executed,
        )
        answered = kind == ANSWER
        truncated = not answered and self._over()
        reward = self._earned() if answered else 0.0 if executed else s.invalid_reward
        reward += s.unanswered_reward if truncated else 0.0
        info = self._info(executed)
        new = answered or len(self._at.seen) > len(before.seen)
        info[EVENTS] = event_names(new, executed, before.failed)
        if s.turn_reward:
            info[TURN_REWARD] = (self._left(before) - self._left(self._at)) / max(1, len(self._question.hops))
        shown = DONE if answered else INVALID if not executed else DOCUMENTS if found else NOTHING
        text = self._told(found) if shown == DOCUMENTS else _NOTICES[shown]
        return {"text": text, "kind": shown}, float(reward), answered, truncated, info

    def close(self) -> None:
        """Does nothing: the process keeps the library for its next environment."""

    def snapshot(self) -> Snapshot:
        """Returns the state of the episode for `restore`. Raises RuntimeError before the first reset."""
        self._require_question()
        return self._at

    def restore(self, state: Snapshot) -> None:
        """Continues from a snapshot, including its count of turns. Any environment with equal settings may have taken it."""
        self._at = state
        self._question = self._questions(state.split)[state.number]

    def distance(self) -> float:
        """Returns the number of steps of the gold path that have not been found, plus 1 for the answer.

        It is 0 after an answer that wins, math.inf after any other, and math.nan if the gold path is unknown. It ignores the turn limit.
        """
        self._require_question()
        if self._at.answer is not None:
            return 0.0 if self._won() else math.inf
        return float(self._left(self._at) + 1) if self._question.hops else math.nan

    def expert(self, rng: np.random.Generator | None = None) -> list[str] | None:
        """Returns a search for each step of the gold path that has not been found, as far as turns allow, and the right answer.

        A search has the title of the step's document; if that does not find it, the title and the question. A step that neither finds
        is left out; if the gold path is unknown, the question is searched. Returns None when the episode is over. `rng` is not used.
        """
        self._require_question()
        if self._over():
            return None
        searches, seen, question = [], set(self._at.seen), self._question
        for hop, title in zip(question.hops, question.queries):
            if not hop & seen:
                searches += [query for query in (title, f"{title} {question.text}") if self._finds(query, hop)][:1]
                seen |= hop
        if not question.hops and not seen:
            searches = [question.text]
        searches = [query for query in searches if self.settings.repeats or query not in self._at.queries]
        s = self.settings
        left = min(s.max_steps - s.answer_turns - self._at.steps, s.max_steps - 1 - self._at.steps)
        return [*(write(SEARCH, query) for query in searches[: max(0, left)]), write(ANSWER, question.answers[0])]

    # --- The state ---

    def _questions(self, split: str) -> list[Question]:
        if split not in library.SPLITS:
            raise ValueError(f"unknown split {split!r}; the splits are {', '.join(library.SPLITS)}")
        return self._library.questions[split]

    def _require_question(self) -> None:
        if self._at is None:
            raise RuntimeError("no question yet: call reset()")

    def _over(self) -> bool:
        return self._at.answer is not None or self._at.steps >= self.settings.max_steps

    def _may_search(self, query: str) -> bool:
        late = self._at.steps >= self.settings.max_steps - self.settings.answer_turns
        return not late and (self.settings.repeats or query not in self._at.queries)

    def _finds(self, query: str, hop: frozenset[int]) -> bool:
        return not hop.isdisjoint(self._library.search(query, self.settings.hits))

    def _left(self, state: Snapshot) -> int:
        """Number of steps of the gold path without a document among those seen."""
        return sum(hop.isdisjoint(state.seen) for hop in self._question.hops)

    # --- The answer ---

    def _measured(self, measure: str) -> float:
        if self._at.answer is None:
            return 0.0
        return (f1 if measure == "f1" else exact_match)(self._at.answer, self._question.answers, self.settings.norm)

    def _won(self) -> bool:
        least = self.settings.win_f1
        return bool(self._measured("em")) if least is None else self._measured("f1") >= least

    def _earned(self) -> float:
        s, value = self.settings, self._measured(self.settings.reward)
        if not value:
            return s.wrong_reward
        return value + (s.tool_bonus if self._at.queries else 0.0)

    # --- What is shown ---

    def _told(self, found: tuple[int, ...]) -> str:
        """Writes the documents of a search, cut after settings.max_words words."""
        documents = [self._library.documents[number] for number in found]
        if self.settings.observation == "documents":
            lines = [f"Doc {place}(Title: {document.title}) {document.text}" for place, document in enumerate(documents, 1)]
        else:
            lines = [d.text if d.text.lower().startswith(d.title.lower()) else f"{d.title}: {d.text}" for d in documents]
        text = "\n".join(lines)
        words, most = text.split(" "), self.settings.max_words
        return text if not most or len(words) <= most else f"{' '.join(words[:most])} [… {len(words) - most} words cut …]"

    def _info(self, executed: bool) -> dict[str, Any]:
        info = {
            "won": self._at.answer is not None and self._won(),
            "score": self._measured(self.settings.score),
            "executed": executed,
            "state_key": self._key(),
            "task": self._question.text,
            "admissible": self._listed(),
            REFERENCE: self._question.answers[0],
        }
        return info

    def _key(self) -> str:
        """The documents seen, in any order, and the answer: what decides all that can follow, but for the number of turns."""
        state = self._at
        answer = "" if state.answer is None else ";" + hashlib.sha256(state.answer.encode("utf-8", "replace")).hexdigest()[:12]
        return f"{state.split} {state.number}: {','.join(map(str, sorted(state.seen)))}{answer}"

    def _listed(self) -> tuple[str, ...]:
        if self._over():
            return ()
        mentions, searching = self._library.mentions, self._at.steps < self.settings.max_steps - self.settings.answer_turns
        seen = dict.fromkeys(name for number in self._at.seen for name in mentions[number])
        searches = [write(SEARCH, query) for query in (self._question.text, *seen) if self._may_search(query)] if searching else []
        return (*searches, *(write(ANSWER, name) for name in seen or (self._question.text,)))


def make(preset: str = "tiny", *, max_steps: int | None = None, data: str | None = None, **settings) -> Callable[[], SearchEnv]:
    """Returns a function without arguments that makes environments of a preset; `settings` replace fields of Settings.

    Args:
      preset: name of the preset.
      max_steps: turns after which an episode is truncated; None keeps the preset's value.
      data: file of questions; None keeps the preset's value, the embedded world.

    Raises ValueError for an unknown preset or setting, and lists the known ones.
    """
    if max_steps is not None:
        settings["max_steps"] = max_steps
    if data is not None:
        settings["data"] = data
    return functools.partial(SearchEnv, preset_settings(preset, **settings))


def random_play_success(settings: Settings, questions: int = 500, seed: int = 0, split: str = "train") -> float:
    """Returns the share of questions, in [0, 1], that uniformly random listed actions answer within max_steps.

    The questions have the seeds seed … seed + questions − 1 in `split`; `seed` also seeds the actions.
    """
    environment = SearchEnv(settings)
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    won = 0
    for number in range(seed, seed + questions):
        _, info = environment.reset(seed=number, options={"split": split})
        while info["admissible"]:
            info = environment.step(info["admissible"][int(generator.integers(len(info["admissible"])))])[-1]
        won += info["won"]
    return won / questions
