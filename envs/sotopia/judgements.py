"""Judgements on disk, stored by content, and finished conversations that still need one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stepreward.envs import entries
from stepreward.envs.sotopia.judge import DIMENSIONS

AGENTS = ("agent_1", "agent_2")
Scores = dict[str, dict[str, int]]  # agent_1, agent_2 → dimension → score


def check(scores: Any) -> Scores:
    """Returns `scores`; raises ValueError unless it has all dimensions of both agents, within their ranges."""
    if not isinstance(scores, dict) or set(scores) != set(AGENTS):
        raise ValueError("the scores must be a mapping with agent_1 and agent_2")
    for agent in AGENTS:
        if not isinstance(scores[agent], dict) or set(scores[agent]) != set(DIMENSIONS):
            raise ValueError(f"{agent}: the scores must have the dimensions {', '.join(DIMENSIONS)}")
        for name, (low, high) in DIMENSIONS.items():
            value = scores[agent][name]
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{agent}: {name} must be a number in {low} … {high}")
    return scores


class Judgements:
    """A folder with judgements/KEY.json, {"key", "scores"}, and judge_later/KEY.json, {"key", "history", "names", "judge"}.

    Files are written atomically. A damaged or malformed file counts as absent and is overwritten.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def get(self, key: str) -> Scores | None:
        """Returns the scores of a key; None when there are none, or when the file is damaged."""
        entry = entries.read(self._path("judgements", key))
        if not isinstance(entry, dict) or entry.get("key") != key:
            return None
        try:
            return check(entry.get("scores"))
        except ValueError:
            return None

    def put(self, key: str, scores: Scores) -> None:
        """Stores scores, and removes the key's pending conversation."""
        entries.write(self._path("judgements", key), {"key": key, "scores": check(scores)})
        self.drop(key)

    def later(self, key: str, history: str, names: tuple[str, str], judge: tuple[str, str]) -> Path:
        """Stores a conversation that could not be judged; `judge` is (address, model). Returns the file's path."""
        path = self._path("judge_later", key)
        entries.write(path, {"key": key, "history": history, "names": list(names), "judge": list(judge)})
        return path

    def drop(self, key: str) -> None:
        """Removes the key's pending conversation."""
        self._path("judge_later", key).unlink(missing_ok=True)

    def pending(self) -> list[dict[str, Any]]:
        """Returns the conversations that need a judgement, sorted by file name; skips damaged files."""
        found = [entries.read(path) for path in sorted((self.folder / "judge_later").glob("*.json"))]
        return [entry for entry in found if isinstance(entry, dict) and {"key", "history", "names", "judge"} <= set(entry)]

    def _path(self, kind: str, key: str) -> Path:
        return self.folder / kind / f"{key}.json"
