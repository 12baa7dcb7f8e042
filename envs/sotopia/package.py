"""The benchmark's own package: the policy plays one agent; models behind endpoints play the other and the judge."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from stepreward.envs.endpoint import Endpoint, EndpointError
from stepreward.envs.entries import key_of
from stepreward.envs.protocol import TASKS, Observation
from stepreward.envs.sotopia import backend, data
from stepreward.envs.sotopia.env import seed_and_split
from stepreward.envs.sotopia.judge import DIMENSIONS, WON_ABOVE
from stepreward.envs.sotopia.judgements import AGENTS, Judgements, Scores, check
from stepreward.envs.sotopia.presets import PackageSettings
from stepreward.envs.sotopia.prompts import LEAVE, prompts

FINANCIAL = "financial_and_material_benefits"  # the package's name of the dimension
_KINDS = re.compile(r"\[(action|non-verbal communication)\]\s*(.+)", re.DOTALL | re.IGNORECASE)
_reached: set[str] = set()
# Characters that files or terminals reject. Pools replace them in what the policy reads, so the judge must see them replaced, too.
_NO_TEXT = re.compile("[\0\ufdd0\ud800-\udfff]")
_LEFT = re.compile(r"leave|(?:i )?(?:leave|left) the conversation[.!]?", re.IGNORECASE)


class PackageEnv:
    """One episode of the package; implements `stepreward.envs.protocol.Environment`.

    * Observation: {"text": the partner's last words or action, "talk": all (speaker, words) so far, "you": the policy's name,
      "turn": the policy's turn from 1, "turns": max_steps}.
    * Actions: an utterance, `left the conversation`, `[action] …` or `[non-verbal communication] …`. None says nothing; the
      package ends a conversation after too many silent turns.
    * Reward: the judge's goal score, 0 … 10, in the last turn; settings.invalid_reward for a silent turn; else 0.
    * `terminated` when somebody leaves or the conversation is stale, `truncated` at the turn limit; both are judged.
    * info: won (goal > 6), score (goal / 10), executed (the policy said or did something), state_key, task (scene, character and
      private goal), and in the last turn dimensions and partner_dimensions, the seven scores of both characters.
    * capabilities: tasks. There is no replay and no snapshot, because a model's answers do not depend on the actions alone.

    `step`, and `reset` if the partner begins, raise EndpointError when an endpoint still fails after its retries; the episode is
    then over. If the judge fails, the finished conversation is kept in settings.cache/judge_later (see `judge_pending`), or, without
    a cache, in the notes of the error.
    """

    capabilities = frozenset({TASKS})

    def __init__(self, settings: PackageSettings):
        check_settings(settings)
        self.settings = settings
        pairings = data.load(settings.data)
        self._pairings = {name: data.split(pairings, name, settings.subset, settings.split_seed) for name in ("train", "held_out")}
        self._package = backend.package(settings.storage)
        self._judge = judge_endpoint(settings)
        address = (settings.partner_url, settings.partner_model)
        self._partner_endpoint = _endpoint(settings, "partner", *address, settings.temperature)
        for endpoint in (self._partner_endpoint, self._judge):
            _reach(endpoint)
        self._judgements = None if settings.cache is None else Judgements(settings.cache)
        self._over = True

    def num_tasks(self, split: str) -> int:
        """Returns the number of pairings in a split, times two if the policy plays both seats in turn."""
        if split not in self._pairings:
            raise ValueError(f"unknown split {split!r}; the splits are {', '.join(self._pairings)}")
        return len(self._pairings[split]) * (2 if self.settings.seat is None else 1)

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts task `seed` mod num_tasks(split); the partner speaks first if it has the first seat.

        Raises ValueError for an unknown option or split, or a negative seed; EndpointError as `step` does.
        """
        seed, split = seed_and_split(seed, options)
        tasks = self.num_tasks(split)
        if seed < 0:
            raise ValueError(f"seed={seed!r}: give a whole number, at least 0")
        turn, index = divmod(seed % tasks, len(self._pairings[split]))
        self._over = True
        self._begin(self._pairings[split][index], turn if self.settings.seat is None else self.settings.seat)
        if self._seat == 1:
            self._advance(None)
        self._over = False
        return self._observe(), self._info(executed=True)

    def step(self, action: str | None) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Acts, and lets the partner answer. Raises RuntimeError when no episode is running, EndpointError when an endpoint fails."""
        if self._over:
            raise RuntimeError("the episode is over or has not begun: call reset()")
        self._over = True  # until the endpoints have answered
        self._steps += 1
        act = self._act(action)
        ended = self._advance(act) or self._advance(None)
        info = self._info(executed=act.action_type != "none")
        reward = 0.0 if info["executed"] else self.settings.invalid_reward
        truncated = ended and self._env.turn_number >= 2 * self.settings.max_steps and not self._left
        if ended:
            scores = self._judged()
            own, other = scores[AGENTS[self._seat]], scores[AGENTS[1 - self._seat]]
            info.update(dimensions=own, partner_dimensions=other, won=own["goal"] > WON_ABOVE, score=own["goal"] / 10)
            reward += own["goal"]
        self._over = ended
        return self._observe(), float(reward), ended and not truncated, truncated, info

    def close(self) -> None:
        """Does nothing: the environment holds no resources."""

    def _begin(self, pairing: data.Pairing, seat: int) -> None:
        package = self._package
        profiles = [package.database.AgentProfile(**agent) for agent in pairing.agents]
        scenario = package.database.EnvironmentProfile(**pairing.scenario)
        limit = package.evaluators.RuleBasedTerminatedEvaluator(max_turn_number=2 * self.settings.max_steps)
        self._env = package.Env(
            env_profile=scenario, action_order="round-robin", evaluators=[limit], terminal_evaluators=[_unscored(package)]
        )
        policy = package.agents.BaseAgent(agent_profile=profiles[seat])
        if self.settings.partner_prompt is None:
            model = f"custom/{self.settings.partner_model}@{self.settings.partner_url}"
            self._partner = package.agents.LLMAgent(agent_profile=profiles[1 - seat], model_name=model)
        else:
            self._partner = package.agents.BaseAgent(agent_profile=profiles[1 - seat])
        self._seat, self._steps, self._left = seat, 0, False
        both = [policy, self._partner] if seat == 0 else [self._partner, policy]
        self._names = (both[0].agent_name, both[1].agent_name)
        self._observations = self._env.reset(agents=package.agents.Agents({agent.agent_name: agent for agent in both}))
        for agent, goal in zip(both, self._env.background.agent_goals):
            agent.goal = goal
        self._own, self._other = policy.agent_name, self._partner.agent_name
        self._told = {name: self._observations[name].last_turn for name in self._names}

    def _act(self, action: str | None):
        """Converts the policy's text to an action of the package."""
        AgentAction = self._package.messages.AgentAction
        said = action.strip() if isinstance(action, str) else ""
        if not said:
            return AgentAction(action_type="none", argument="")
        if _LEFT.fullmatch(said) or said.lower().endswith(LEAVE):
            return AgentAction(action_type="leave", argument="")
        kind = _KINDS.fullmatch(said)
        if kind:
            return AgentAction(action_type=kind[1].lower(), argument=kind[2])
        return AgentAction(action_type="speak", argument=said)

    def _advance(self, act) -> bool:
        """Plays one turn: the policy's with `act`, the partner's with None. Returns whether the conversation has ended."""
        return backend.run(self._turn(act))

    async def _turn(self, act) -> bool:
        silent = self._package.messages.AgentAction(action_type="none", argument="")
        partner = await (self._partner_acts() if act is None else self._partner_hears())
        partner.argument = _NO_TEXT.sub("\N{REPLACEMENT CHARACTER}", partner.argument)
        acts = {self._own: act or silent, self._other: partner}
        self._observations, _, ended, _, _ = await self._env.astep({name: acts[name] for name in self._names})
        self._left = self._left or any(one.action_type == "leave" for one in acts.values())
        return any(ended.values())

    async def _partner_hears(self):
        """The partner's part in the policy's turn: it receives the observation and does nothing."""
        if self.settings.partner_prompt is None:
            return await self._partner.aact(self._observations[self._other])
        return self._package.messages.AgentAction(action_type="none", argument="")

    async def _partner_acts(self):
        if self.settings.partner_prompt is not None:
            prompt = prompts(self.settings.partner_prompt)
            view = {**self._view(self._other, 1 + self._env.turn_number // 2), "task": self._task(self._other)}
            messages = [{"role": "user", "content": prompt.window(view, ())}]
            text = await backend.complete(self._partner_endpoint, messages, str)  # a blank answer is silence, as for the policy
            return self._act(prompt.parse(text))
        parser = self._package.Parser(pydantic_object=self._package.messages.AgentAction)
        observation = self._observations[self._other]
        return await backend.asked(
            self._partner_endpoint, lambda text: _parsed(parser, text).model_dump_json(), lambda: self._partner.aact(observation)
        )

    def _judged(self) -> Scores:
        history = _history(self._env.inbox)
        key = key_of(history, self._judge.url, self._judge.model, self._package.version)
        kept = None if self._judgements is None else self._judgements.get(key)
        if kept is not None:
            return kept
        try:
            scores = backend.run(ask_judge(self._package, self._judge, history, self._names))
        except EndpointError as error:
            if self._judgements is None:
                error.add_note(f"the conversation that was not judged, kept only here because settings.cache is unset:\n{history}")
            else:
                path = self._judgements.later(key, history, self._names, (self._judge.url, self._judge.model))
                error.add_note(f"the conversation is kept in {path}; call stepreward.envs.sotopia.package.judge_pending to judge it later")
            raise
        if self._judgements is not None:
            self._judgements.put(key, scores)
        return scores

    def _talk(self) -> tuple[tuple[str, str], ...]:
        talk = []
        for who, message in self._env.inbox:
            if who != "Environment" and message.action_type != "none":
                talk.append((who, message.argument if message.action_type == "speak" else message.to_natural_language()))
        return tuple(talk)

    def _view(self, name: str, turn: int) -> Observation:
        """Returns what the character `name` sees in its turn number `turn`."""
        talk = self._talk()
        last = next((words for who, words in reversed(talk) if who != name), "Nobody has spoken yet.")
        turns = self.settings.max_steps
        return {"text": last, "talk": talk, "you": name, "turn": min(turn, turns), "turns": turns}

    def _observe(self) -> Observation:
        return self._view(self._own, self._steps + 1)

    def _task(self, name: str) -> str:
        return f"You are {name}. {self._told[name].strip()}"

    def _info(self, executed: bool) -> dict[str, Any]:
        key = hashlib.sha256(json.dumps(self._talk()).encode()).hexdigest()[:16]
        return {"won": False, "score": 0.0, "executed": executed, "state_key": key, "task": self._task(self._own)}


def check_settings(settings: PackageSettings) -> None:
    """Checks the settings, the data and the package without contacting a server.

    Raises ValueError when data or partner_url is unset or the package is not installed, and the errors of `data.load`.
    """
    needed = {"data": f"the folder with {', '.join(data.FILES)}", "partner_url": "the address of an OpenAI-compatible server"}
    missing = [name for name in needed if getattr(settings, name) is None]
    if missing:
        told = ", ".join(f"{name} is {needed[name]}" for name in missing)
        raise ValueError(f"SOTOPIA's preset 'sotopia' needs {' and '.join(missing)}: {told}; the presets tiny, istar and spa need neither")
    data.load(settings.data)
    backend.check()


async def ask_judge(package: SimpleNamespace, endpoint: Endpoint, history: str, names: tuple[str, str]) -> Scores:
    """Runs the package's evaluator on a conversation; returns seven scores for each agent.

    Raises EndpointError when the judge fails, or when its answers never judge both agents.
    """
    model = package.evaluators.EvaluationForAgents[package.database.SotopiaDimensions]
    parser = package.Parser(pydantic_object=model)
    evaluator = package.evaluators.EpisodeLLMEvaluator(f"custom/{endpoint.model}@{endpoint.url}", model)
    silent = package.messages.AgentAction(action_type="none", argument="")

    def accept(text: str) -> str:
        found = _parsed(parser, text)
        if set(found.evaluations) != set(AGENTS):
            raise ValueError("the judge must score both agents")
        found.evaluations = {agent: found.evaluations[agent] for agent in AGENTS}  # the package relies on their order
        return found.model_dump_json()

    acts = [(name, silent) for name in names]  # the evaluator only counts the agents in these
    responses = await backend.asked(endpoint, accept, lambda: evaluator.__acall__(turn_number=-1, messages=acts, history=history))
    rates = package.evaluators.unweighted_aggregate_evaluate(responses)
    try:
        return check({agent: _scores(rate) for agent, rate in zip(AGENTS, (rates.p1_rate, rates.p2_rate))})
    except ValueError as error:
        raise EndpointError(endpoint.role, endpoint.url, endpoint.model, f"the package found no scores in it ({error})") from None


def judge_pending(settings: PackageSettings) -> dict[str, Scores]:
    """Judges the pending conversations in settings.cache with the judge of `settings`; returns the scores by key.

    Each judgement is stored under the judge that gave it. Raises ValueError without a cache, and EndpointError at the first
    failure; earlier judgements are kept.
    """
    if settings.cache is None:
        raise ValueError("cache=None: set it to the folder that contains judge_later")
    package, endpoint, kept = backend.package(settings.storage), judge_endpoint(settings), Judgements(settings.cache)
    scores = {}
    for talk in kept.pending():
        scores[talk["key"]] = backend.run(ask_judge(package, endpoint, talk["history"], tuple(talk["names"])))
        kept.put(key_of(talk["history"], endpoint.url, endpoint.model, package.version), scores[talk["key"]])
        kept.drop(talk["key"])
    return scores


def judge_endpoint(settings: PackageSettings) -> Endpoint:
    """Returns the judge's endpoint, at temperature 0. Its address and model default to the partner's."""
    url, model = settings.judge_url or settings.partner_url, settings.judge_model or settings.partner_model
    if url is None:
        raise ValueError("judge_url=None: set it to the address of an OpenAI-compatible server")
    return _endpoint(settings, "judge", url, model, 0.0)


def _reach(endpoint: Endpoint) -> None:
    """Raises ValueError unless a server responds at the endpoint's address. A process asks each address once."""
    if endpoint.url in _reached:
        return
    try:
        endpoint.reach()
    except EndpointError as error:
        raise ValueError(f"{error}. Start a server at {endpoint.role}_url, or set it to the address of a running one") from None
    _reached.add(endpoint.url)


def _endpoint(settings: PackageSettings, role: str, url: str, model: str, temperature: float) -> Endpoint:
    limits = (settings.timeout_s, settings.retries, settings.backoff_s)
    return Endpoint(role, url, model, settings.key_variable, temperature, *limits)


def _scores(rate) -> dict[str, int]:
    if not isinstance(rate, tuple):
        return {}
    found = {("financial" if name == FINANCIAL else name): value for name, value in rate[1].items()}
    return {name: int(found[name]) for name in DIMENSIONS if name in found}


def _parsed(parser, text: str):
    """Parses an answer with the package's parser; turns any of its errors into ValueError."""
    try:
        return parser.parse(text)
    except Exception:
        raise ValueError("the answer does not have the requested format") from None


def _history(inbox) -> str:
    """Writes the conversation as the package shows it to its judge: both characters' backgrounds and goals, and their acts.

    It omits turns without an act. The package itself would omit every line that contains "did nothing", even a spoken one.
    """
    lines = []
    for who, message in inbox:
        told = message.to_natural_language()
        if told.strip() != "did nothing":
            lines.append(told if who == "Environment" else f"{who} {told}")
    return "\n".join(lines)


def _unscored(package: SimpleNamespace):
    """Returns a terminal evaluator without output: `astep` needs one, but `PackageEnv` itself calls the judge."""

    class Unscored(package.evaluators.Evaluator):
        prompt = ""

        def __call__(self, turn_number, messages):
            return []

        async def __acall__(self, turn_number, messages):
            return []

    return Unscored()
