"""What an episode in play asks of its environment, and what the results mean.

    referee.start(game)                      # or `act`, after the policy has answered
    while game.phase:
        found = …                            # the results of referee.calls(game), or an EnvironmentFailure
        referee.take(game, found)            # then the game is done, has a prompt, or has further calls to make

The referee calls nothing itself, so that games may go on in rounds (`run`) or each at its own time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from stepreward.envs.protocol import AUTOMATON_STATE, EVENTS, REFERENCE, TURN_REWARD, VIEWED, Prompt, prompt_view
from stepreward.rollout.chat import Dialogue
from stepreward.rollout.environment_host import EnvironmentFailure
from stepreward.rollout.environments import Call, Pool
from stepreward.rollout.episode import ENVIRONMENT_LIMIT, STEP_LIMIT, TERMINATED, Snapshot, Step
from stepreward.rollout.game import Game, view_of
from stepreward.rollout.losses import advice
from stepreward.rollout.prompting import PromptWriter
from stepreward.text import cleaned

START, REPLAY, ACT = "start", "replay", "act"  # phases of a game that waits for its environment
_KEPT = ("won", "score", "executed", "state_key", REFERENCE, AUTOMATON_STATE, *VIEWED)  # of info, what a snapshot keeps


@dataclasses.dataclass(frozen=True)
class Referee:
    """Takes games through their calls. All attributes are those of `play.Collector`; `writer` writes its prompts."""

    prompt: Prompt
    chat: Dialogue
    writer: PromptWriter
    context: str
    max_steps: int
    invalid_penalty: float

    def start(self, game: Game) -> None:
        """Takes the game to its start; then it has its first prompt."""
        game.phase = START

    def act(self, game: Game) -> None:
        """Sends the action of `game.step` to the environment; then the game has its next prompt, or is done."""
        game.phase = ACT

    def run(self, pool: Pool, games: Sequence[Game]) -> None:
        """Makes all calls of these games, a round at a time. The environments work at the same time if the pool can do that."""
        while waiting := [game for game in games if game.phase]:
            calls = [self.calls(game) for game in waiting]
            found = iter(pool.call_all([some for some in calls if some]))
            for game, some in zip(waiting, calls):
                self.take(game, next(found) if some else [])

    def calls(self, game: Game) -> list[Call]:
        """The calls that the game waits for, all of one round trip; none if its environment is where it has to be."""
        if game.phase == ACT:
            first = [Call(game.slot, "step", (game.step.action,))]
        elif game.phase == REPLAY:
            first = [Call(game.slot, "step", (game.episode.steps[game.replayed].action,))]
        elif game.in_place:
            first = []
        elif game.snapshot is not None:
            first = [Call(game.slot, "restore", (game.snapshot.state,))]
        else:
            task = game.episode.task
            first = [Call(game.slot, "reset", (), {"seed": task.seed, "options": {"split": task.split}})]
        return first + [Call(game.slot, name) for name in self._asks(game)]

    def take(self, game: Game, results: list | EnvironmentFailure) -> None:
        """Enters the results of the game's calls, or the failure of one of them, which ends the episode."""
        phase, asks, game.phase = game.phase, self._asks(game), ""
        if phase == REPLAY:
            game.to_replay -= 1
            game.replayed += 1
        if isinstance(results, EnvironmentFailure):
            game.fail(str(results))
            return
        if phase == START and game.in_place:
            game.saved = game.snapshot.state
        for name, result in zip(asks, results[len(results) - len(asks) :], strict=True):
            if name == "distance":
                game.distance = game.episode.final_distance = float(result)
            else:
                game.saved = result
        if phase == ACT:
            self._acted(game, *results[0])
            return
        if phase == REPLAY:
            self._replayed(game, *results[0])
        elif game.snapshot is None:
            self._enter(game, *results[0])
            self._check_state(game)
        else:
            self._enter(game, game.snapshot.observation, game.snapshot.info)
        if not game.done:
            if game.to_replay:
                game.phase = REPLAY
            else:
                self._open(game)

    def answered(self, game: Game, tokens, log_prob, entropy) -> Step:
        """Makes the step of an answer; the environment adds its reward later."""
        output = self.chat.text(tokens)
        action = cleaned(self.prompt.parse(output))
        shown = (game.prompt_tokens, tokens, log_prob, entropy, game.view["text"], output, action)
        return Step(
            *shown,
            reward=0.0,
            executed=False,
            state_key=game.state_key,
            distance=game.distance,
            images=game.images,
            cut=game.cut,
            stopped=game.stopped,
            snapshot=game.snapshot,
            answer_log_prob=game.answer_log_prob,
            automaton_state=game.automaton_state,
        )

    def _asks(self, game: Game) -> list[str]:
        """The methods that are called in the game's new state; none in a state that a replay only passes through."""
        passing = game.to_replay > (game.phase == REPLAY)
        return [] if passing else [name for name in game.asks if name != "snapshot" or not (game.phase == START and game.in_place)]

    def _acted(self, game: Game, observation, reward, terminated, truncated, info) -> None:
        step, episode, before = game.step, game.episode, game.view
        penalty = self.invalid_penalty if step.action is None else 0.0
        step.reward, step.executed = float(reward) - penalty, bool(info["executed"])
        step.events, step.turn_reward = tuple(info.get(EVENTS, ())), float(info.get(TURN_REWARD, 0.0))
        episode.steps.append(step)
        self._enter(game, observation, info)
        episode.success = game.won
        game.tokens = np.concatenate([game.tokens, step.action_tokens])
        game.history.append((before, step.output))
        if terminated or truncated:
            self._end(game, terminated)
        elif len(episode.steps) == self.max_steps:
            game.cut_short(STEP_LIMIT)
        else:
            too_long = self.writer.write(game, closes_answer=not game.stopped)
            if too_long is not None and not game.done:
                game.cut_short(too_long)
            elif not game.done and len(episode.steps) == game.pause_at:
                game.pause()  # after the prompt was written, so that the next turn can be played

    def _replayed(self, game: Game, observation, _, terminated, truncated, info) -> None:
        """Enters the state after an action of the prefix that was taken again."""
        before = game.view
        self._enter(game, observation, info)
        game.history.append((before, game.episode.steps[game.replayed - 1].output))
        self._check_state(game)
        if game.done or not (terminated or truncated):
            return
        if game.to_replay:
            game.fail(f"the replay was over after {game.replayed} of {game.episode.prefix} actions")
        else:
            game.episode.success = game.won
            self._end(game, terminated)

    def _check_state(self, game: Game) -> None:
        """Fails a game whose environment is not in the state that the prefix or the start names."""
        steps = game.episode.steps
        expected = steps[game.replayed].state_key if game.to_replay else game.start_key
        if expected is not None and game.state_key != expected:
            game.fail(f"the replay led to another state after {game.replayed} of {game.episode.prefix} actions")

    def _open(self, game: Game) -> None:
        """Appends the first new prompt to the conversation of the prefix, or ends the game if nothing can be played."""
        episode = game.episode
        if episode.prefix:
            game.stopped = episode.steps[-1].stopped
            episode.success = game.won
            if self.context == "episode":
                game.tokens = np.concatenate([part for step in episode.steps for part in (step.prompt_tokens, step.action_tokens)])
                game.said = len(game.tokens)
            if not game.history:  # restored
                game.history = [(view_of(step), step.output) for step in episode.steps]
        if len(episode.steps) >= self.max_steps:
            game.cut_short(STEP_LIMIT)
            return
        too_long = self.writer.write(game, closes_answer=not game.stopped)
        if too_long is None or game.done:
            return
        if episode.steps:
            game.cut_short(too_long)
        else:
            game.fail(f"the first prompt has {game.wanted} tokens: {advice(episode.needs)}")

    def _enter(self, game: Game, observation, info) -> None:
        game.observation, game.view, game.state_key = observation, prompt_view(observation, info), info["state_key"]
        game.won = bool(info["won"])
        game.episode.score = float(info.get("score", info["won"]))
        game.episode.final_observation = observation["text"]
        game.episode.reference = info.get(REFERENCE)
        game.automaton_state = game.episode.final_automaton_state = int(info.get(AUTOMATON_STATE, -1))
        game.snapshot = None
        if "snapshot" in game.asks:
            game.snapshot = Snapshot(game.saved, observation, {name: info[name] for name in _KEPT if name in info})

    def _end(self, game: Game, terminated: bool) -> None:
        """Ends an episode that its environment ended."""
        if terminated:
            game.end(TERMINATED)
        else:
            game.cut_short(STEP_LIMIT if len(game.episode.steps) == self.max_steps else ENVIRONMENT_LIMIT)
