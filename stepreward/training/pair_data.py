"""Pairs on disk: the episodes of a round as recordings, in parts, and the pairs beside them."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np

from stepreward import processes
from stepreward.data.recordings import begin_recording, read_recordings, write_part
from stepreward.errors import UserError
from stepreward.preference import Collected, Pairs
from stepreward.preference.base import joined
from stepreward.rollout.episode import Episode
from stepreward.rollout.recording import from_recording, to_recording
from stepreward.training import outputs
from stepreward.training.exploration import tokenizer_fingerprint

# Keys that do not matter to a run that borrows pairs: how the policy that played was trained, and how pairs are trained on.
_FREE = ("preference.", "sft.", "lora.", "exploration.", "estimator.", "credit.", "stages.", "seed", "round")


class PairData:
    """The recorded pairs of one round.

    Args:
      c: the config.
      workdir: the run's folder.
      facts: the fingerprint of everything that affects the episodes, except the tokenizer; see `decisions.fingerprint`.
      number: the round, from 0.

    Attributes:
      folder: the recordings, in the run's workdir or in the one that `stages.preference` names.
      borrowed: whether they are another run's.
      parts: the number of parts.
    """

    def __init__(self, c, workdir: Path, facts: dict, number: int):
        self.borrowed = bool(c.stages.preference)
        self.folder = Path(c.stages.preference or workdir) / "preference" / f"round-{number:02d}"
        self.parts = -(-c.preference.tasks // c.preference.part_tasks)
        self._metadata = facts | {"tokenizer": tokenizer_fingerprint(workdir / "tokenizer"), "round": number}

    def finished_parts(self) -> int:
        """Returns the number of recorded parts; creates the folder if there is none.

        Raises:
          ValueError: the folder was recorded with another config or tokenizer; the message names the difference.
        """
        return processes.on_writer(lambda: begin_recording(self.folder, self._metadata, self.parts))

    def record(self, part: int, found: Collected) -> None:
        """Writes one part: first its pairs, then its episodes, whose folder marks it as finished."""
        processes.on_writer(lambda: self._record(part, found))

    def _record(self, part: int, found: Collected) -> None:
        path = self._pairs(part)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with open(temporary, "wb") as file:
            np.savez(file, episodes=len(found.episodes), **found.pairs._asdict())
        temporary.rename(path)
        write_part(self.folder, part, [to_recording(episode) for episode in found.episodes])

    def read(self) -> tuple[list[Episode], Pairs]:
        """Reads the episodes and the pairs of all parts.

        Raises:
          UserError: they are missing, unfinished or damaged, or were made with another config or tokenizer.
        """
        try:
            recordings, metadata = processes.together(lambda: read_recordings(self.folder))
        except (ValueError, FileNotFoundError) as error:
            raise UserError(f"the pairs of round {self._metadata['round'] + 1}: {error}") from error
        where = f"the recorded pairs in {str(self.folder)!r}"
        keys = {*metadata, *self._metadata}
        ignored = [key for key in keys if key.startswith(_FREE)] if self.borrowed else ()
        outputs.check(metadata, self._metadata, where, borrowed=self.borrowed, ignored=ignored)
        episodes = [from_recording(recording) for recording in recordings]
        pairs = processes.together(lambda: self._read_pairs(len(episodes)))
        return episodes, pairs

    def _read_pairs(self, episodes: int) -> Pairs:
        parts, before = [], 0
        files = sorted(self.folder.glob("pairs-*.npz"))
        if not files:
            raise UserError(f"{str(self.folder)!r} has no pairs-*.npz beside its recordings: it is damaged; delete it and explore again.")
        for path in files:
            try:
                with np.load(path) as arrays:
                    found = Pairs(*(arrays[name] for name in Pairs._fields))
                    count = int(arrays["episodes"])
            except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
                raise UserError(f"{str(path)!r} is damaged ({error}): delete its folder and explore again.") from error
            parts.append(found.moved(before))
            before += count
        pairs = joined(parts)
        if before != episodes or (pairs.number and max(pairs.chosen[:, 0].max(), pairs.rejected[:, 0].max()) >= episodes):
            raise UserError(f"the pairs in {str(self.folder)!r} do not fit the episodes beside them: delete the folder and explore again.")
        return pairs

    def _pairs(self, part: int) -> Path:
        return self.folder / f"pairs-{part:05d}.npz"
