"""The WebShop environment: buy what an instruction asks for, by searches and clicks."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from stepreward.envs.automata import Automaton, check_enabled
from stepreward.envs.events import Events, Memory
from stepreward.envs.protocol import (
    ADMISSIBLE,
    AUTOMATON,
    AUTOMATON_STATE,
    DISTANCE,
    EVENTS,
    EXPERT,
    REPLAY,
    SNAPSHOT,
    TASKS,
    TURN_REWARD,
    Observation,
)
from stepreward.envs.webshop import compact, pages, shop
from stepreward.envs.webshop.expert import Planner
from stepreward.envs.webshop.pages import State
from stepreward.envs.webshop.presets import Settings
from stepreward.envs.webshop.presets import settings as preset_settings
from stepreward.envs.webshop.reward import noun_score, reward
from stepreward.envs.webshop.subgoals import facts_of, subgoals

_OPTIONS = ("split", "goal")
LONG_QUERY = 100  # characters; state_key has a digest of a longer query


class Snapshot(NamedTuple):
    """The whole state of an episode, as plain data that can be pickled and restored in another environment.

    automaton: the automaton's state; −1 unless settings.automaton is set.
    """

    goal: int
    state: State
    steps: int
    over: bool
    score: float
    events: Memory = Memory()
    automaton: int = -1


class WebShopEnv:
    """One purchase; implements `stepreward.envs.protocol.Environment`.

    * Observation: {"text": str}, in the form of settings.observation.
    * Actions: "search[words]" on any page; "click[name]" with the name of something clickable on the page (in the compact form,
      a product on a page of results is named by its place). Any other string, or None, changes nothing and counts as a turn.
    * Reward: 0 until "click[buy now]", which ends the episode; then the benchmark's reward, or 10 or 0 (settings.reward).
    * `terminated` after the purchase; otherwise `truncated` after settings.max_steps turns, with reward 0.
    * info: won (the benchmark's reward is 1), score (that reward after the purchase, 0 before), executed (the site accepted the
      action), state_key, admissible (on the page with the search bar, "search[<your query>]" stands for every search), task (the
      instruction), noun_score ("spacy" or "tokens": how the reward finds the nouns of titles); after a step events, and with
      settings.turn_reward also turn_reward: the change of the score that a purchase would have. That is the benchmark's reward for the
      product on the page with the chosen options, 0 on pages without a product, and the score itself after the purchase. With
      settings.automaton it has automaton_state, the state of the automaton of subgoals.py.
    * capabilities: snapshot, replay, distance (number of actions that the scripted expert still needs), expert, tasks,
      admissible, events; turn_reward and automaton with their settings.
    """

    def __init__(self, settings: Settings | None = None):
        self.settings = chosen = preset_settings("tiny") if settings is None else settings
        indices = None if chosen.train_indices is None else (chosen.train_indices, chosen.held_out_indices)
        self._shop = shop.load(chosen.data, chosen.goals, chosen.seed, chosen.held_out, indices, chosen.hits, chosen.page_size)
        self._noun_score = noun_score()
        self._rich, self._compact = chosen.observation == "text_rich", chosen.observation == "compact"
        offered = {SNAPSHOT, REPLAY, DISTANCE, EXPERT, TASKS, ADMISSIBLE, EVENTS}
        offered |= {TURN_REWARD} if chosen.turn_reward else set()
        self.capabilities = frozenset(offered | {AUTOMATON} if chosen.automaton else offered)
        self._goal = None
        self._over = True

    def num_tasks(self, split: str) -> int:
        """Returns the number of goals in a split. Raises ValueError for an unknown split."""
        return len(self._split(split))

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts goal `seed` mod num_tasks of options["split"] (default "train"), or the goal with index options["goal"] among all
        shuffled goals.

        Without a seed, it draws one from the operating system. Raises ValueError for an unknown option or split, a
        negative seed, or an unknown goal.
        """
        options = {} if options is None else options
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise ValueError(f"unknown reset option {', '.join(unknown)}; the options are {', '.join(_OPTIONS)}")
        goals = self._split(options.get("split", "train"))
        number = options.get("goal")
        if number is not None:
            if not isinstance(number, int) or not 0 <= number < len(self._shop.goals):
                raise ValueError(f"goal={number!r}: give a whole number from 0 to {len(self._shop.goals) - 1}")
        else:
            seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
            if seed < 0:
                raise ValueError(f"seed={seed!r}: give a whole number, at least 0")
            number = goals[seed % len(goals)]
        self.restore(Snapshot(number, State(), 0, False, 0.0, automaton=subgoals().start if self.settings.automaton else -1))
        self._events = Events(self._key())
        return self._seen(executed=True)

    def step(self, action: str | None) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes one action. Raises RuntimeError only when no episode is running."""
        if self._over:
            raise RuntimeError("the episode is over or has not begun: call reset()")
        self._steps += 1
        worth = self._worth() if self.settings.turn_reward else 0.0
        executed = self._act(self._parsed(action))
        bought = self._state.kind == pages.DONE
        if bought:
            self._score = reward(self._product(), self._goal, dict(self._state.options)).total
        paid = self._score if self.settings.reward == "score" else 10.0 * (self._score == 1)
        truncated = not bought and self._steps >= self.settings.max_steps
        self._over = bought or truncated
        observation, info = self._seen(executed)
        info["events"] = self._events.after(info["state_key"], executed)
        if self.settings.turn_reward:
            info["turn_reward"] = self._worth() - worth
        return observation, float(paid), bought, truncated, info

    def close(self) -> None:
        """Does nothing: the process keeps the shop for its next environment."""

    def snapshot(self) -> Snapshot:
        """Returns the state of the episode for `restore`. Raises RuntimeError before the first reset."""
        self._require_goal()
        return Snapshot(self._number, self._state, self._steps, self._over, self._score, self._events.saved(), self._q)

    def restore(self, state: Snapshot) -> None:
        """Continues from a snapshot, including its count of turns. Any environment with equal settings may have taken it."""
        self._number, self._state, self._steps, self._over, self._score, memory, self._q = state
        self._events = Events.of(memory)
        goal = self._shop.goals[self._number]
        if goal is not self._goal:
            self._goal, self._planner = goal, None
            self._instruction = goal.text.strip()

    def automaton(self) -> Automaton:
        """Returns the automaton of subgoals (subgoals.py). Raises ValueError unless settings.automaton is set."""
        check_enabled(self.settings.automaton)
        return subgoals()

    def distance(self) -> float:
        """Returns the number of actions that the scripted expert still needs, including the purchase; math.inf if it finds no way.

        It is 0 after a purchase with reward 1 and math.inf after any other. It ignores the turn limit.
        """
        self._require_goal()
        if self._state.kind == pages.DONE:
            return 0.0 if self._score == 1 else math.inf
        return float(self._plans().distance(self._state))

    def expert(self, rng: np.random.Generator | None = None) -> list[str] | None:
        """Returns the scripted shopper's actions from here to a purchase with reward 1; `rng` draws the order of the options.

        Returns None if it finds no such purchase, and after a purchase.
        """
        self._require_goal()
        plan = self._plans().plan(self._state, rng)
        return plan if plan is None or not self._compact else self._renamed(plan)

    def _split(self, split: str) -> list[int]:
        if split not in shop.SPLITS:
            raise ValueError(f"unknown split {split!r}; the splits are {', '.join(shop.SPLITS)}")
        return self._shop.splits[split]

    def _require_goal(self) -> None:
        if self._goal is None:
            raise RuntimeError("no goal yet: call reset()")

    def _plans(self) -> Planner:
        if self._planner is None:
            self._planner = Planner(self._shop, self._goal)
        return self._planner

    def _product(self):
        return self._shop.product(self._state)

    def _worth(self) -> float:
        """Returns the score that a purchase has or would have now; 0 where nothing can be bought."""
        if self._state.asin is None or self._state.kind == pages.DONE:
            return self._score
        return reward(self._product(), self._goal, dict(self._state.options)).total

    def _parsed(self, action: str | None) -> tuple[str, str] | None:
        """Parses an action into its kind and its argument, in the site's names."""
        parsed = pages.parse(action)
        if not self._compact or parsed is None or parsed[0] == "search":
            return parsed
        return parsed[0], compact.to_site(self._shop, self._state, parsed[1])

    def _renamed(self, plan: list[str]) -> list[str]:
        """Translates a plan to compact names, which depend on the pages that the plan visits."""
        here, renamed = self._state, []
        for action in plan:
            renamed += compact.from_site(self._shop, self._state, [action])
            self._act(pages.parse(action))
        self._state = here
        return renamed

    def _act(self, action: tuple[str, str] | None) -> bool:
        """Applies the action to the state; returns False if the site does not accept it."""
        if action is None:
            return False
        name, argument = action
        if name == "search":
            self._state = pages.searched(self._state, argument)
            return True
        if self._state.kind == pages.HOME or argument not in self._view()[1]:
            return False
        self._state = pages.clicked(self._state, argument, self._product())
        return True

    def _view(self):
        return self._shop.view(*self._page())

    def _page(self) -> tuple:
        """Returns the arguments of the shop's `nodes` and `view` for the current page, without goal and chosen options."""
        kind, query, page, asin, sub, _, _ = self._state
        if kind == pages.RESULTS:
            return kind, query, page, None, None, False
        return kind, None, 0, asin, sub, self.settings.show_attributes

    def _seen(self, executed: bool) -> tuple[Observation, dict[str, Any]]:
        kind = self._state.kind
        if kind == pages.HOME:
            admissible = (pages.SEARCH_ACTION,)
        else:
            admissible = () if kind == pages.DONE else self._view()[2]
            if self._compact:
                admissible = compact.from_site(self._shop, self._state, admissible)
        info = {
            "won": self._score == 1,
            "score": self._score,
            "executed": executed,
            "state_key": self._key(),
            "admissible": admissible,
            "task": self._instruction,
            "noun_score": self._noun_score,
        }
        if self.settings.automaton:
            self._q = info[AUTOMATON_STATE] = subgoals().next(self._q, facts_of(self._state, self._worth()))
        return {"text": self._text()}, info

    def _key(self) -> str:
        kind, query, page, asin, sub, options, visited = self._state
        chosen = ";".join(f"{name}={value}" for name, value in sorted(options))
        seen = ",".join(visited) if self._rich else ""
        if query and len(query) > LONG_QUERY:
            query = hashlib.blake2b(query.encode("utf-8", "replace"), digest_size=16).hexdigest()
        return f"{kind}|{query or ''}|{page}|{asin or ''}|{sub or ''}|{chosen}|{seen}"

    def _text(self) -> str:
        kind, form, state = self._state.kind, self.settings.observation, self._state
        if self._compact:
            return compact.observation(self._shop, self._goal, state, self._score)
        if kind in (pages.HOME, pages.DONE) or self._rich:
            if kind == pages.HOME:
                nodes = pages.home_nodes(self._goal.text)
            elif kind == pages.DONE:
                nodes = pages.done_nodes(state, self._score)
            else:
                nodes = pages.head_nodes(self._goal.text) + self._shop.nodes(*self._page())
            text = pages.rich(nodes, state) if self._rich else pages.plain(nodes)
            return pages.without_instruction(text, self._instruction) if form == "stripped" else text
        tail = self._view()[0]
        if form == "stripped":
            return pages.SEPARATOR.join(f"'{part}'" for part in tail.split(pages.SEPARATOR))
        return pages.SEPARATOR.join(("Instruction:", self._instruction, tail))


def make(preset: str = "tiny", *, max_steps: int | None = None, data: str | None = None, **settings) -> Callable[[], WebShopEnv]:
    """Returns a function without arguments that makes environments of a preset; `settings` replace fields of Settings.

    Args:
      preset: name of the preset.
      max_steps: turns after which an episode is truncated; None keeps the preset's value.
      data: folder with the benchmark's files; None keeps the preset's value, the embedded catalogue.

    Raises ValueError for an unknown preset or setting, and lists the known ones.
    """
    if max_steps is not None:
        settings["max_steps"] = max_steps
    if data is not None:
        settings["data"] = str(data)
    return functools.partial(WebShopEnv, preset_settings(preset, **settings))
