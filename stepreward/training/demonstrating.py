"""Demonstrations of the environment's own expert: played, kept in the workdir, and laid out as a rollout would show them."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from stepreward.data.demonstrations import Demonstration, check_metadata, read_demonstrations, write_demonstrations
from stepreward.envs.protocol import EXPERT, IMAGE, prompt_view
from stepreward.rollout.environments import Call, EnvironmentFailure, Pool
from stepreward.rollout.episode import Episode, Step, Task
from stepreward.rollout.fitting import prompt_writer, room_of_a_turn, shorten

_log = logging.getLogger(__name__)
_AT_ONCE = 32  # environments that play demonstrations side by side


def load_demonstrations(c, pool: Pool, folder: Path, task_seed) -> list[Demonstration]:
    """The expert's episodes: read from `folder`, or made there; none where a published model starts without imitation.

    Args:
      task_seed: (seed, stream, index) -> the seed of a task.

    Raises:
      ValueError: what lies there was made with another config, or there is no expert.
    """
    if c.model.path and not c.sft.updates:  # a tokenizer is there too, so nothing asks for them
        return []
    environment = c.environment.to_dict()
    about = {name: environment[name] for name in ("preset", "data", "options")} | {
        "environment": environment["name"], "max_steps": c.rollout.max_steps, "episodes": c.sft.episodes, "seed": c.seed,
    }  # fmt: skip
    if c.stages.sft:  # those of the run that the supervised policy comes from, which may have another seed
        del about["seed"]
    if folder.exists():
        records, found = read_demonstrations(folder)
        check_metadata(found, about)
        return records
    records = make_demonstrations(pool, c.sft.episodes, c.seed, task_seed)
    write_demonstrations(folder, records, about)
    return records


def make_demonstrations(pool: Pool, episodes: int, seed: int, task_seed) -> list[Demonstration]:
    """Plays the environments' own expert on `episodes` training tasks; ties among best actions are drawn at random.

    Episodes that the expert does not win, and those whose environment fails, are left out.

    Raises:
      ValueError: the environment has no expert, or it won nothing; or every environment fails from the start.
    """
    if EXPERT not in pool.capabilities():
        raise ValueError("this environment has no expert to imitate: set sft.updates=0, or give it an expert() method.")
    records: list[Demonstration] = []
    failure = None
    for first in range(0, episodes, _AT_ONCE):
        indices = range(first, min(first + _AT_ONCE, episodes))
        plays = [_Play(i - first, task_seed(seed, "demonstrations", i), [seed, 1, i]) for i in indices]
        train = {"split": "train"}
        going = _round(pool, plays, lambda p: Call(p.slot, "reset", (), {"seed": p.task, "options": train}), _Play.enter)
        going = _round(pool, going, lambda p: Call(p.slot, "expert", (np.random.default_rng(p.entropy),)), _Play.plan)
        while going := [play for play in going if play.todo]:
            going = _round(pool, going, lambda p: Call(p.slot, "step", (p.todo[0],)), _Play.move)
        records += [play.record() for play in plays if play.failure is None and play.info["won"]]
        failure = next((play.failure for play in plays if play.failure is not None), failure)
        if not first and all(play.failure is not None for play in plays):  # nor will the others succeed
            raise ValueError(f"the environment failed on all of the first {len(plays)} tasks: {failure}")
    if not records:
        why = f"; one environment failed: {failure}" if failure else ""
        raise ValueError(f"the expert won none of {episodes} tasks, so there is nothing to imitate{why}: set sft.updates=0.")
    if len(records) < 0.9 * episodes:
        _log.warning("the expert won %d of %d tasks; the others are no demonstrations", len(records), episodes)
    return records


class _Play:
    """One task in the expert's hands."""

    def __init__(self, slot: int, task: int, entropy: list[int]):
        self.slot, self.task, self.entropy = slot, task, entropy
        self.views: list[dict] = []
        self.actions: list[str] = []
        self.todo: list[str] = []
        self.total, self.info, self.failure = 0.0, {}, None

    def enter(self, result) -> None:
        observation, self.info = result
        view = prompt_view(observation, self.info)
        self.views.append({name: value for name, value in view.items() if name != IMAGE})

    def plan(self, actions) -> None:
        self.todo = list(actions or [])

    def move(self, result) -> None:
        observation, reward, terminated, truncated, info = result
        self.actions.append(self.todo.pop(0))
        self.total += float(reward)
        self.enter((observation, info))
        if terminated or truncated:
            self.todo = []

    def record(self) -> Demonstration:
        rest = [{name: value for name, value in view.items() if name != "text"} for view in self.views]
        texts = [view["text"] for view in self.views]
        won = bool(self.info["won"])
        return Demonstration(str(self.task), "train", texts, self.actions, won, self.total, rest if any(rest) else [])


def _round(pool, plays: list[_Play], call, then) -> list[_Play]:
    """One call for each play; returns those whose call went well."""
    for play, result in zip(plays, pool.call_all([call(play) for play in plays])):
        if isinstance(result, EnvironmentFailure):
            play.failure = str(result)
        else:
            then(play, result)
    return [play for play in plays if play.failure is None]


def demonstration_episodes(records: list[Demonstration], parts) -> list[Episode]:
    """Demonstrations as episodes whose steps show exactly what a rollout would show; those that do not fit are left out.

    Args:
      parts: `setup.Parts` of the run.

    Raises:
      ValueError: fewer than half of them fit rollout.max_prompt_tokens, max_answer_tokens and max_row_tokens.
    """
    episodes, too_long = [], {}
    for index, record in enumerate(records):
        episode = _episode(record, index, parts)
        if isinstance(episode, Episode):
            episodes.append(episode)
        else:
            key, tokens = episode
            too_long[key] = max(tokens, too_long.get(key, 0))
    longest = ", ".join(f"{key} must be at least {tokens}" for key, tokens in sorted(too_long.items()))
    if 2 * len(episodes) < len(records):
        raise ValueError(f"{len(records) - len(episodes)} of {len(records)} demonstrations do not fit: for all of them {longest}.")
    if too_long:
        left_out = len(records) - len(episodes)
        _log.warning("%d of %d demonstrations are too long and are left out: for all of them %s", left_out, len(records), longest)
    cut = sum(any(step.cut for step in episode.steps) for episode in episodes)
    if cut:
        _log.warning("%d of %d demonstrations show observations that were cut to fit rollout.max_prompt_tokens", cut, len(episodes))
    return episodes


def _episode(record: Demonstration, index: int, parts) -> Episode | tuple[str, int]:
    """The demonstration as an episode, or the config key that it exceeds and by how many tokens it would fit."""
    collector, chat, prompt = parts.collector, parts.chat, parts.prompt
    engine, reader, by_step = collector.engine, collector.reader, collector.context == "step"
    episode = Episode(Task(int(record.task), record.split, index), success=record.success)
    history: list = []
    pictures = _pictures(record, parts.factory) if reader is not None else []
    conversation = 0
    for turn_index, action in enumerate(record.actions):
        view = record.view(turn_index)
        images = reader.read(pictures[turn_index]) if reader is not None else None
        seen = None if images is None else reader.tokens(images)
        window = history[-collector.history :] if collector.history else []
        write = prompt_writer(prompt, chat, by_step=by_step, first=not history, image_tokens=seen)
        turn, cut = write(view, window), 0
        if collector.long_observation == "cut":
            room = room_of_a_turn(engine, by_step=by_step, later=bool(history))
            if len(turn) > room and (found := shorten(write, view, window, room)) is not None:
                turn, cut = found.tokens, found.cut
        answer = chat.answer(prompt.answer(action))
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
        said = prompt.answer(action)
        episode.steps.append(Step(turn, answer, zeros, zeros, text, said, action, 0.0, True, text, images=images, cut=cut))
        history.append((view, prompt.answer(action)))
    return episode


def _pictures(record: Demonstration, factory) -> list[np.ndarray]:
    """What a demonstration's steps looked like: its task, played again."""
    environment = factory()
    observation, _ = environment.reset(seed=int(record.task), options={"split": record.split})
    pictures = [observation[IMAGE]]
    for action in record.actions:
        observation = environment.step(action)[0]
        pictures.append(observation[IMAGE])
    environment.close()
    return pictures
