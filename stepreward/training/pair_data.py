"""Pairs on disk: the episodes of a round as recordings, in parts, and the pairs beside them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from stepreward import processes
from stepreward.data.recordings import begin_recording, write_part
from stepreward.errors import UserError
from stepreward.metrics import write_atomically
from stepreward.preference import Collected, Pairs
from stepreward.preference.base import joined
from stepreward.rollout.episode import Episode
from stepreward.rollout.recording import to_recording
from stepreward.training.exploration import read_episodes, tokenizer_fingerprint

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
        arrays = io.BytesIO()
        np.savez(arrays, episodes=len(found.episodes), **found.pairs._asdict())
        write_atomically(self.folder / f"pairs-{part:05d}.npz", arrays.getvalue())
        write_part(self.folder, part, [to_recording(episode) for episode in found.episodes])

    def read(self) -> tuple[list[Episode], Pairs]:
        """Reads the episodes and the pairs of all parts.

        Raises:
          UserError: they are missing, unfinished or damaged, or were made with another config or tokenizer.
        """
        where, prefix = f"the recorded pairs in {str(self.folder)!r}", f"the pairs of round {self._metadata['round'] + 1}: "
        ignored = _FREE if self.borrowed else ()
        episodes = read_episodes(self.folder, self._metadata, where, borrowed=self.borrowed, ignored=ignored, prefix=prefix)
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
