"""The outputs of finished stages in the workdir, which a later run can reuse.

`stages/sft` and `stages/estimator` contain parameters, and `exploration/` recorded episodes. Each output is saved with a fingerprint of
everything that affects it (see `decisions.py`). It is reused only if the fingerprint is the same; the error names the first difference.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stepreward import processes
from stepreward.checkpoint import Checkpoints
from stepreward.errors import UserError
from stepreward.metrics import write_atomically

FIT = "demonstrations"  # the entry in the warm start's facts that `check_fit` compares


def check(found: dict[str, Any], expected: dict[str, Any], what: str, *, borrowed: bool = False, ignored: Iterable[str] = ()) -> None:
    """Raises a UserError if the fingerprint of a stage's output differs from what this run expects.

    Args:
      found: the saved fingerprint.
      expected: the fingerprint of this run.
      what: the name of the output in the error.
      borrowed: whether the output is another run's; its seed may differ, so that several runs can start from one policy.
      ignored: keys that are not compared.
    """
    for key in sorted((set(found) | set(expected)) - ({"seed"} if borrowed else set()) - set(ignored)):
        if found.get(key) != expected.get(key):
            older = "" if key in found else " (an earlier version, which did not record this key, may have made it)"
            raise UserError(
                f"{what} was made with {key} = {found.get(key, '(absent)')!r}, but this run has {expected.get(key, '(absent)')!r}{older}: "
                "set the same value, or run that stage again in a new workdir."
            )


def check_fit(fit: dict[str, int], config, what: str) -> None:
    """Raises a UserError if this run's limits in tokens would leave out or cut other demonstrations than a warm start's did.

    Args:
      fit: the result of `demonstrating.fit` for the warm start; empty if it had no demonstrations.
      config: this run's config.
      what: the name of the warm start in the error.
    """
    limits = config.rollout
    for key, number in fit.items():
        if key == "left out":
            continue
        limit = limits.max_row_tokens - limits.max_answer_tokens if key == "conversation" else limits[key]
        name = "rollout.max_row_tokens - rollout.max_answer_tokens" if key == "conversation" else f"rollout.{key}"
        if fit["left out"] and limit != number:
            raise UserError(
                f"{what} left out or cut {fit['left out']} demonstrations to fit {name} = {number}, but this run has {limit}: "
                "set the same value, or run that stage again in a new workdir."
            )
        if limit < number:
            raise UserError(
                f"{what} was trained on demonstrations that need {name} of at least {number}, but this run has {limit}: raise it, or "
                "run that stage again in a new workdir."
            )


class StageOutput:
    """The parameters that a stage saved in `stages/NAME` of its workdir, or of the workdir `borrowed_from`."""

    def __init__(self, workdir: str | Path, stage: str, borrowed_from: str | Path = ""):
        self.stage, self.borrowed = stage, bool(borrowed_from)
        self.folder = Path(borrowed_from or workdir) / "stages" / stage

    @property
    def exists(self) -> bool:
        return processes.on_writer(self._facts.is_file)

    def save(self, params, facts: dict[str, Any], metrics: dict[str, float]) -> None:
        """Writes parameters, and then `facts.json`, which marks the stage as finished."""
        processes.on_writer(self._clear)
        checkpoints = Checkpoints(self.folder, keep=1)
        checkpoints.save(0, {"params": params}, {})
        checkpoints.close()
        text = json.dumps({"facts": facts, "metrics": metrics}, indent=2) + "\n"
        processes.on_writer(lambda: write_atomically(self._facts, text))

    def read(self, template, facts: dict[str, Any], ignored: Iterable[str] = ()) -> tuple[Any, dict[str, float]]:
        """Returns the parameters in the structure of `template`, and the stage's metrics.

        Args:
          facts: the fingerprint that this run expects.
          ignored: keys of the fingerprint that are not compared.

        Raises:
          UserError: the stage is not finished, was made with another config, or its arrays have other shapes.
        """
        where = self.where
        if not self.exists:
            raise UserError(f"{where} is not finished: first run it there with --stage={self.stage}.")
        found = processes.on_writer(lambda: json.loads(self._facts.read_text(encoding="utf-8")))
        check(found["facts"], facts, where, borrowed=self.borrowed, ignored=(*ignored, FIT))
        checkpoints = Checkpoints(self.folder, read_only=True)
        try:
            _, tree, _ = checkpoints.restore({"params": template})
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
        finally:
            checkpoints.close()
        return tree["params"], found["metrics"]

    @property
    def where(self) -> str:
        """The name of the output in errors."""
        return f"the {self.stage} stage in {str(self.folder.parent.parent)!r}"

    def fit(self) -> dict[str, int]:
        """Returns the saved summary of the warm start's demonstrations, which `check_fit` takes."""
        return processes.on_writer(lambda: json.loads(self._facts.read_text(encoding="utf-8"))["facts"].get(FIT, {}))

    @property
    def _facts(self) -> Path:
        return self.folder / "facts.json"

    def _clear(self) -> None:
        """Removes the output of a run that was killed before its next checkpoint; the mark that it is finished goes first."""
        self._facts.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
