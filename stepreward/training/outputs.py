"""What a finished stage leaves in the workdir, which a later run can take instead of making it again.

`stages/sft` and `stages/estimator` hold parameters, `exploration/` recorded episodes. Each carries the facts that decide it, see
`decisions.py`. It is taken only where they agree; the error names the first that does not.
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

FIT = "demonstrations"  # what `check_fit` compares, among the facts of the warm start


def check(found: dict[str, Any], expected: dict[str, Any], what: str, *, borrowed: bool = False, ignored: Iterable[str] = ()) -> None:
    """Raises a UserError that names the first key in which a finished stage differs from what this run asks for.

    What is `borrowed` from another run may come from another seed, so that several runs can start from one policy.
    """
    for key in sorted((set(found) | set(expected)) - ({"seed"} if borrowed else set()) - set(ignored)):
        if found.get(key) != expected.get(key):
            older = "" if key in found else "; an earlier version may have made it, which did not note this"
            raise UserError(
                f"{what} was made with {key} = {found.get(key, '(absent)')!r}, this run has {expected.get(key, '(absent)')!r}{older}: "
                "give the same value, or make that stage again in a workdir of its own."
            )


def check_fit(fit: dict[str, int], config, what: str) -> None:
    """Raises a UserError when a warm start was trained on other demonstrations than fit into this run's rows of tokens.

    Args:
      fit: as `demonstrating.fit` returned it; empty where there were none.
    """
    limits = config.rollout
    for key, number in fit.items():
        if key == "left out":
            continue
        limit = limits.max_row_tokens - limits.max_answer_tokens if key == "conversation" else limits[key]
        name = "rollout.max_row_tokens - rollout.max_answer_tokens" if key == "conversation" else f"rollout.{key}"
        if fit["left out"] and limit != number:
            raise UserError(
                f"{what} left out or cut {fit['left out']} demonstrations to fit {name} = {number}; this run has {limit}: "
                "give the same value, or make that stage again in a workdir of its own."
            )
        if limit < number:
            raise UserError(
                f"{what} was trained on demonstrations of up to {number} tokens where this run's {name} = {limit} leaves some out: give at "
                "least that, or make that stage again in a workdir of its own."
            )


class StageOutput:
    """The parameters that a stage leaves in `workdir/stages/NAME`, or in the workdir of the run that they are borrowed from."""

    def __init__(self, workdir: str | Path, stage: str, borrowed_from: str | Path = ""):
        self.stage, self.borrowed = stage, bool(borrowed_from)
        self.folder = Path(borrowed_from or workdir) / "stages" / stage

    @property
    def exists(self) -> bool:
        return processes.on_writer(self._facts.is_file)

    def save(self, params, facts: dict[str, Any], metrics: dict[str, float]) -> None:
        """Writes parameters, then `facts.json`, whose presence says that the stage is finished."""
        processes.on_writer(self._clear)
        checkpoints = Checkpoints(self.folder, keep=1)
        checkpoints.save(0, {"params": params}, {})
        checkpoints.close()
        text = json.dumps({"facts": facts, "metrics": metrics}, indent=2) + "\n"
        processes.on_writer(lambda: write_atomically(self._facts, text))

    def read(self, template, facts: dict[str, Any], ignored: Iterable[str] = ()) -> tuple[Any, dict[str, float]]:
        """The parameters in the structure of `template`, and the stage's metrics.

        Args:
          facts: the fingerprint that this run expects.
          ignored: keys of it that are not compared.

        Raises:
          UserError: the stage is not finished, was made with another config, or holds arrays of other shapes.
        """
        where = self.where
        if not self.exists:
            raise UserError(f"{where} is not finished: run it there with --stage={self.stage} first.")
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
        """The output, as errors name it."""
        return f"the {self.stage} stage in {str(self.folder.parent.parent)!r}"

    def fit(self) -> dict[str, int]:
        """Which demonstrations the warm start was trained on, see `check_fit`."""
        return processes.on_writer(lambda: json.loads(self._facts.read_text(encoding="utf-8"))["facts"].get(FIT, {}))

    @property
    def _facts(self) -> Path:
        return self.folder / "facts.json"

    def _clear(self) -> None:
        """Removes what is there, which a run left that was killed before its own checkpoint; the mark that it is finished first."""
        self._facts.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
