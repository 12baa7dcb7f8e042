"""Plays demonstrations with the environment's expert, keeps them in the workdir, and converts them to episodes as in a rollout."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np

from stepreward.data.demonstrations import Demonstration, check_metadata, read_demonstrations, write_demonstrations
from stepreward.envs.events import Events
from stepreward.envs.protocol import EXPERT, IMAGE, prompt_view
from stepreward.errors import naming
from stepreward.rollout.environments import Call, EnvironmentFailure, Pool
from stepreward.rollout.episode import Episode, Step, Task
from stepreward.rollout.fitting import prompt_writer, room_of_a_turn, shorten
from stepreward.text import clean
from stepreward.training import identity, streams

_log = logging.getLogger(__name__)
_AT_ONCE = 32  # environments that run at the same time
_WITHOUT = (
    "start without imitation: from a published model (--config.sft.updates=0 --config.model.path=FOLDER with its model.preset) or from "
    "random weights (--config.sft.updates=0)"
)
NO_EXPERT = f"the environment has no expert to imitate: give it the capability 'expert' and an expert() method, or {_WITHOUT}."


def load_demonstrations(c, pool: Pool, folder: Path, wanted_by: str = "") -> list[Demonstration]:
    """Returns the expert's episodes, read from `folder` or played and written there.

    A published model that starts without imitation needs none, and the list is empty unless something else wants them. If a model starts
    from random weights without imitation and the environment has no expert, the records are those of `look_around`: they only serve to
    train the tokenizer.

    Args:
      wanted_by: what needs the demonstrations besides the warm start, for the error; "" if nothing does.

    Raises:
      ValueError: the demonstrations in `folder` were made with another config; or the environment has no expert.
    """
    if wanted_by and EXPERT not in pool.capabilities():
        raise ValueError(
            f"{wanted_by} learns from demonstrations, and the environment {pool.name()} has no expert: give it the capability 'expert' and "
            "an expert() method, see docs/environments.md, or choose another method."
        )
    if c.model.path and not c.sft.updates and not wanted_by:  # the model has its own tokenizer, so nothing uses them
        return []
    environment = c.environment.to_dict()
    about = {name: environment[name] for name in ("preset", "data", "options")} | {
        "environment": environment["name"],
        "max_steps": c.rollout.max_steps,
        "episodes": c.sft.episodes,
        "seed": c.seed,
    }
    about |= {name: value for name, value in identity.of_environment(c).items() if name.endswith("content")}
    if c.stages.sft:  # borrowed with the supervised policy, from a run that may have another seed
        del about["seed"]
    if folder.exists():
        records, found = read_demonstrations(folder)
        check_metadata(found, about)
        return records
    if not c.sft.updates and EXPERT not in pool.capabilities():
        records = look_around(pool, c.sft.episodes, c.rollout.max_steps, c.seed)
    else:
        records = make_demonstrations(pool, c.sft.episodes, c.seed)
    write_demonstrations(folder, records, about)
    return read_demonstrations(folder)[0]  # as a resumed run reads them: JSON may change types


def make_demonstrations(pool: Pool, episodes: int, seed: int) -> list[Demonstration]:
    """Plays the environment's expert on `episodes` training tasks; ties between best actions are broken at random.

    Episodes that the expert does not win, and those whose environment fails, are left out, counted and logged.

    Raises:
      ValueError: the environment has no expert, the expert won no task, or the environment failed on all of the first tasks.
    """
    if EXPERT not in pool.capabilities():
        raise ValueError(NO_EXPERT)
    records: list[Demonstration] = []
    failed, failure = 0, None
    for first, plays in _plays(episodes, seed):
        going = _reset(pool, plays)
        going = _round(pool, going, lambda p: Call(p.slot, "expert", (np.random.default_rng(p.entropy),)), _Play.plan)
        while going := [play for play in going if play.todo]:
            going = _round(pool, going, lambda p: Call(p.slot, "step", (p.todo[0],)), _Play.move)
        records += [play.record() for play in plays if play.failure is None and play.info["won"]]
        failed += sum(play.failure is not None for play in plays)
        failure = failure or next((play.failure for play in plays if play.failure is not None), None)
        _check_any(plays, first, failure)
    if not records:
        why = f" ({failed} environments failed, first with: {failure})" if failed else ""
        raise ValueError(f"the expert won none of {episodes} tasks{why}, so there is nothing to imitate: {_WITHOUT}.")
    if failed:
        _log.warning("%d of %d demonstrations were left out, because their environments failed: %s", failed, episodes, failure)
    if len(records) < 0.9 * (episodes - failed):
        _log.warning(
            "the expert won only %d of %d tasks; the other episodes are not used as demonstrations", len(records), episodes - failed
        )
    return records


def look_around(pool: Pool, episodes: int, max_steps: int, seed: int) -> list[Demonstration]:
    """Records observations of `episodes` training tasks in an environment without an expert, to train a tokenizer on.

    If the environment lists admissible actions, random ones are played and recorded for at most `max_steps` turns. Otherwise only the
    first observation of each task is recorded.

    Raises:
      ValueError: the environment failed on all of the first tasks.
    """
    records: list[Demonstration] = []
    failed, failure = 0, None
    for first, plays in _plays(episodes, seed):
        draws = {play.slot: np.random.default_rng(play.entropy) for play in plays}
        going = _reset(pool, plays)
        for _ in range(max_steps):
            going = [play for play in going if not play.over and play.info.get("admissible")]
            for play in going:
                play.todo = [play.info["admissible"][draws[play.slot].integers(len(play.info["admissible"]))]]
            going = _round(pool, going, lambda p: Call(p.slot, "step", (p.todo[0],)), _Play.move)
        records += [play.record() for play in plays if play.failure is None]
        failed += sum(play.failure is not None for play in plays)
        failure = failure or next((play.failure for play in plays if play.failure is not None), None)
        _check_any(plays, first, failure)
    if failed:
        _log.warning("%d of %d environments failed while observations for the tokenizer were recorded: %s", failed, episodes, failure)
    return records


def _plays(episodes: int, seed: int):
    """Yields the tasks in rounds of at most `_AT_ONCE`: the index of the round's first task, and its plays."""
    for first in range(0, episodes, _AT_ONCE):
        indices = range(first, min(first + _AT_ONCE, episodes))
        yield first, [_Play(i - first, streams.task(seed, "demonstrations", i), streams.host(seed, "demonstrations", i)) for i in indices]


def _reset(pool: Pool, plays: list[_Play]) -> list[_Play]:
    train = {"split": "train"}
    return _round(pool, plays, lambda p: Call(p.slot, "reset", (), {"seed": p.task, "options": train}), _Play.enter)


def _check_any(plays: list[_Play], first: int, failure: str | None) -> None:
    if not first and all(play.failure is not None for play in plays):  # later tasks would most likely fail too
        raise ValueError(f"the environment failed on all of the first {len(plays)} tasks: {failure}")


class _Play:
    """One task that is being played: its views, its actions so far and those still to play (`todo`)."""

    def __init__(self, slot: int, task: int, entropy: list[int]):
        self.slot, self.task, self.entropy = slot, task, entropy
        self.views: list[dict] = []
        self.actions: list[str] = []
        self.events: list[tuple[str, ...]] = []
        self.todo: list[str] = []
        self.total, self.info, self.failure, self.over = 0.0, {}, None, False

    def enter(self, result) -> None:
        observation, self.info = result
        if not self.views:
            self._told = Events(self.info["state_key"])
        view = prompt_view(observation, self.info)
        self.views.append({name: value for name, value in view.items() if name != IMAGE})

    def plan(self, actions) -> None:
        self.todo = list(actions or [])

    def move(self, result) -> None:
        observation, reward, terminated, truncated, info = result
        self.actions.append(self.todo.pop(0))
        self.events.append(self._told.after(info["state_key"], info["executed"]))
        self.total += float(reward)
        self.enter((observation, info))
        self.over = terminated or truncated
        if self.over:
            self.todo = []

    def record(self) -> Demonstration:
        rest = [{name: value for name, value in view.items() if name != "text"} for view in self.views]
        texts = [view["text"] for view in self.views]
        won = bool(self.info["won"])
        return Demonstration(str(self.task), "train", texts, self.actions, won, self.total, rest if any(rest) else [], self.events)


def _round(pool, plays: list[_Play], call, then) -> list[_Play]:
    """Makes one call for each play; returns the plays that have not failed."""
    for play, result in zip(plays, pool.call_all([call(play) for play in plays])):
        if isinstance(result, EnvironmentFailure):
            play.failure = str(result)
        else:
            then(play, result)
    return [play for play in plays if play.failure is None]


def all_episodes(parts) -> list[Episode]:
    """Converts the demonstrations of all environments of a run; see `demonstration_episodes`, whose errors name the environment."""
    episodes: list[Episode] = []
    for name, each in parts.each.items():
        with naming(name):
            found = demonstration_episodes(each.demonstrations, each) if each.demonstrations or not name else []
        for episode in found:
            episodes.append(dataclasses.replace(episode, task=dataclasses.replace(episode.task, group=len(episodes), environment=name)))
    return episodes


def asked(c, parts) -> int:
    """Returns the number of demonstrations that the config asks of the environments that have an expert."""
    if parts.mixture is None:
        return c.sft.episodes
    return sum(entry.view.sft.episodes for entry in parts.mixture.entries if parts.parts_of[entry.name].demonstrations)


def demonstration_episodes(records: list[Demonstration], parts) -> list[Episode]:
    """Converts demonstrations to episodes whose prompts are exactly those of a rollout; demonstrations that do not fit are left out.

    Args:
      parts: the run's `setup.Parts`.

    Raises:
      ValueError: more than half of them exceed rollout.max_prompt_tokens, max_answer_tokens or max_row_tokens, or lack pictures.
    """
    episodes, too_long = [], {}
    failed, failure = 0, None
    for index, (record, pictures) in enumerate(_with_pictures(records, parts.collector)):
        episode = pictures if isinstance(pictures, EnvironmentFailure) else _episode(record, pictures, index, parts)
        if isinstance(episode, Episode):
            episodes.append(episode)
        elif isinstance(episode, EnvironmentFailure):
            failed, failure = failed + 1, failure or episode
        else:
            key, tokens = episode
            too_long[key] = max(tokens, too_long.get(key, 0))
    if failed:
        _log.warning("%d of %d demonstrations were left out, because their pictures cannot be shown: %s", failed, len(records), failure)
    longest = [f"{key} must be at least {tokens}" for key, tokens in sorted(too_long.items())]
    if 2 * len(episodes) < len(records):
        lost, total = len(records) - len(episodes), len(records)
        why = [f"to fit all of them, {', '.join(longest)}"] if longest else []
        why += [f"{failed} lack pictures ({failure})"] if failed else []
        raise ValueError(f"{lost} of {total} demonstrations cannot be used: {'; '.join(why)}.")
    if too_long:
        lost, why = len(records) - len(episodes) - failed, ", ".join(longest)
        _log.warning("%d of %d demonstrations were left out, because they are too long; to fit all of them, %s", lost, len(records), why)
    cut = sum(any(step.cut for step in episode.steps) for episode in episodes)
    if cut:
        _log.warning("%d of %d demonstrations have observations that were cut to fit rollout.max_prompt_tokens", cut, len(episodes))
    return episodes


def fit(episodes: list[Episode], records: int, parts) -> dict[str, int]:
    """Summarises which demonstrations a warm start trains on, for `outputs.check_fit`.

    Args:
      episodes: the demonstrations that are trained on.
      records: the number of all demonstrations.
      parts: the run's `setup.Parts`.

    Returns:
      "left out", the number of demonstrations that are missing or cut; and for each limit a number of tokens. That number is the limit
      itself if any are missing or cut, otherwise the longest prompt, answer or conversation that is trained on.
    """
    engine, by_step = parts.collector.engine, parts.collector.context == "step"
    left_over = 0 if by_step else 2  # see `setup.make_engine`
    lost = records - len(episodes) + sum(any(step.cut for step in episode.steps) for episode in episodes)
    if lost:
        answer = engine.sampling.max_answer_tokens
        limits = {
            "max_prompt_tokens": engine.buckets[-1] - left_over,
            "max_answer_tokens": answer,
            "conversation": engine.max_length - answer,
        }
        return {"left out": lost} | limits
    longest = dict.fromkeys(("max_prompt_tokens", "max_answer_tokens", "conversation"), 0)
    for episode in episodes:
        conversation = 0
        for step in episode.steps:
            conversation = len(step.prompt_tokens) + (0 if by_step else conversation)
            found = (len(step.prompt_tokens) - left_over, len(step.action_tokens), conversation)
            longest = {name: max(old, new) for (name, old), new in zip(longest.items(), found)}
            conversation += len(step.action_tokens)
    return {"left out": 0} | longest


def _episode(record: Demonstration, pictures, index: int, parts) -> Episode | tuple[str, int] | EnvironmentFailure:
    """Converts a demonstration to an episode.

    Args:
      pictures: the image before each action; None for a model that reads only text.

    Returns:
      The episode; or (config key, tokens) if that key must be at least `tokens`; or the failure, if pictures cannot be shown.
    """
    collector, chat, prompt = parts.collector, parts.chat, parts.prompt
    engine, reader, by_step = collector.engine, collector.reader, collector.context == "step"
    episode = Episode(Task(int(record.task), record.split, index), success=record.success)
    history: list = []
    conversation = 0
    for turn_index, action in enumerate(record.actions):
        view, said = record.view(turn_index), clean(record.answer(prompt, turn_index))
        try:
            images = None if pictures is None else reader.read(pictures[turn_index])
        except ValueError as error:
            return EnvironmentFailure(str(error))
        seen = None if images is None else reader.tokens(images)
        window = history[-collector.history :] if collector.history else []
        write = prompt_writer(prompt, chat, by_step=by_step, first=not history, image_tokens=seen)
        turn, cut = write(view, window), 0
        if collector.long_observation == "cut":
            room = room_of_a_turn(engine, by_step=by_step, later=bool(history))
            if len(turn) > room and (found := shorten(write, view, window, room)) is not None:
                turn, cut = found.tokens, found.cut
        answer = chat.answer(said)
        conversation = len(turn) + (0 if by_step else conversation)
        if len(turn) > engine.buckets[-1]:
            return "rollout.max_prompt_tokens", len(turn)
        if len(answer) > engine.sampling.max_answer_tokens:
            return "rollout.max_answer_tokens", len(answer)
        if not engine.holds(conversation):
            return "rollout.max_row_tokens", conversation + engine.sampling.max_answer_tokens
        conversation += len(answer)
        zeros = np.zeros(len(answer), np.float32)
        text = view["text"]
        episode.steps.append(Step(turn, answer, zeros, zeros, text, said, action, 0.0, True, text, images=images, cut=cut))
        history.append((view, said))
    return episode


def _with_pictures(records: list[Demonstration], collector):
    """Yields every record with the images of its steps: None for a text model, an EnvironmentFailure if they cannot be replayed."""
    if collector.reader is None:
        yield from ((record, None) for record in records)
        return
    for first in range(0, len(records), _AT_ONCE):
        some = records[first : first + _AT_ONCE]
        yield from zip(some, _pictures(some, collector.pool), strict=True)


def _pictures(records: list[Demonstration], pool: Pool) -> list[list[np.ndarray] | EnvironmentFailure]:
    """Returns the images of some demonstrations' steps, from playing their tasks again at the same time."""
    rounds = []
    for slot, record in enumerate(records):
        reset = Call(slot, "reset", (), {"seed": int(record.task), "options": {"split": record.split}})
        rounds.append([reset, *(Call(slot, "step", (action,)) for action in record.actions)])
    found = pool.call_all(rounds)
    return [x if isinstance(x, EnvironmentFailure) else [result[0][IMAGE] for result in x] for x in found]
