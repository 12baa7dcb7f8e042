"""Exploration: episodes of the supervised policy on training tasks, which are recorded in parts and read back."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from stepreward import processes
from stepreward.data.recordings import begin_recording, read_recordings, write_part
from stepreward.errors import UserError
from stepreward.rollout.episode import Episode, Task
from stepreward.rollout.recording import from_recording, to_recording
from stepreward.training import outputs, streams
from stepreward.training.mixture import Mixture
from stepreward.training.tasks import training_tasks

SCORED = "signal answer_log_prob"  # in the fingerprint of episodes whose reference answers were scored


def tokenizer_fingerprint(folder: Path) -> str:
    """Returns a digest of a tokenizer's files, 16 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def read_episodes(
    folder: Path, expected: dict, where: str, *, borrowed: bool, ignored: Iterable[str] = (), prefix: str = ""
) -> list[Episode]:
    """Reads recorded episodes, in every process.

    Args:
      folder: the recordings.
      expected: the fingerprint that this run expects of them.
      where, borrowed, ignored: see `outputs.check`. A key of `ignored` that ends in a dot stands for a group of keys.
      prefix: what an error about the folder begins with.

    Raises:
      UserError: they are missing, unfinished or damaged, or were made with another config or tokenizer.
    """
    try:
        recordings, metadata = processes.together(lambda: read_recordings(folder))
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{prefix}{error}") from error
    groups = tuple(key for key in ignored if key.endswith("."))
    ignored = [key for key in {*metadata, *expected} if key in ignored or key.startswith(groups)]
    outputs.check(metadata, expected, where, borrowed=borrowed, ignored=ignored)
    return [from_recording(recording) for recording in recordings]


class Exploration:
    """The recorded episodes of a run: `exploration.tasks` tasks, each played `exploration.rollouts` times.

    Args:
      c: the config.
      workdir: the run's folder.
      facts: the fingerprint of everything that affects the episodes, except the tokenizer; see `decisions.fingerprint`.

    Attributes:
      folder: the folder of the recordings, in the run's workdir or in the one that `stages.exploration` names.
      borrowed: whether the recordings are another run's.
      parts: the number of parts.
      metadata: the fingerprint including the tokenizer, which is saved with the recordings.
    """

    def __init__(self, c, workdir: Path, facts: dict):
        self.c, self.borrowed, self._mixture = c, bool(c.stages.exploration), Mixture.of(c)
        self.folder = Path(c.stages.exploration or workdir) / "exploration"
        self.parts = -(-c.exploration.tasks // c.exploration.part_tasks)
        tokenizer = tokenizer_fingerprint(workdir / "tokenizer")
        self.metadata = facts | {"tokenizer": tokenizer}

    def finished_parts(self) -> int:
        """Returns the number of recorded parts; creates the folder if there is none.

        Raises:
          ValueError: the folder was recorded with another config or tokenizer; the message names the difference.
        """
        if self.borrowed:
            return self.parts  # `read` checks it
        return processes.on_writer(lambda: begin_recording(self.folder, self.metadata, self.parts))

    def tasks(self, part: int) -> list[Task]:
        """Returns the tasks of one part."""
        x = self.c.exploration
        first = part * x.part_tasks
        groups = min(x.part_tasks, x.tasks - first)
        names = None if self._mixture is None else self._mixture.environments(first, groups)
        return training_tasks(self.c.seed, "explore", part, groups, x.rollouts, first, names)

    def record(self, part: int, episodes: list[Episode]) -> None:
        """Writes one part atomically."""
        processes.on_writer(lambda: write_part(self.folder, part, [to_recording(e) for e in episodes]))

    def read(self) -> list[Episode]:
        """Reads all recorded episodes.

        Raises:
          UserError: the recordings are missing, unfinished or damaged, or were made with another config or tokenizer.
        """
        ignored = () if SCORED in self.metadata else (SCORED,)  # values that this run does not read
        where = f"the exploration in {str(self.folder)!r}"
        return self._named(read_episodes(self.folder, self.metadata, where, borrowed=self.borrowed, ignored=ignored))

    def _named(self, episodes: list[Episode]) -> list[Episode]:
        """Adds what recordings do not store: the environment of each episode, and that a judge scored it."""
        if self._mixture is None:
            return episodes
        names = self._mixture.environments(0, self.c.exploration.tasks)
        judged = {entry.name for entry in self._mixture.entries if entry.judged}
        for episode in episodes:
            episode.task = dataclasses.replace(episode.task, environment=names[episode.task.group])
            if episode.task.environment in judged and episode.counts:
                episode.judged = episode.score
        return episodes


def by_task(episodes: list[Episode]) -> dict[int, list[Episode]]:
    """Groups episodes by task."""
    found: dict[int, list[Episode]] = {}
    for episode in episodes:
        found.setdefault(episode.task.group, []).append(episode)
    return found


def offline_groups(tasks: list[int], groups: int, iteration: int, seed: int) -> list[int] | None:
    """Returns the tasks of one iteration of an offline run, the next `groups` of a shuffled pass; None after the last iteration."""
    order = np.random.default_rng(streams.host(seed, "offline")).permutation(tasks)
    first = iteration * groups
    return order[first : first + groups].tolist() if first < len(order) else None
