"""The stages of a run and their outputs: what a later run, or a later stage, can take instead of making it again.

    sft -> explore -> estimator -> train -> evaluate

A finished stage leaves its output in the workdir: `stages/sft` and `stages/estimator` (parameters), `exploration/` (recorded
episodes). Each carries the config keys that decide it. It is taken only where they agree; the error names the first that does not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stepreward import processes
from stepreward.checkpoint import Checkpoints
from stepreward.config import leaves
from stepreward.errors import UserError

STAGES = ("sft", "explore", "estimator", "train", "evaluate")

# Prefixes of the keys that decide a stage's output, beside those of the stages before it.
_KEYS = {
    "sft": ("seed", "environment.", "model.preset", "model.pieces", "model.path", "model.compute_dtype", "model.param_dtype",
            "model.moment_dtype", "lora.sft", "sft.", "rollout.context", "rollout.history", "rollout.max_steps", "rollout.long_observation"),
    "explore": ("exploration.", "rollout.invalid_penalty", "rollout.temperature", "rollout.top_k", "rollout.top_p",
                "rollout.max_answer_tokens"),
    "estimator": ("estimator.", "credit.outcome"),
    "train": ("",),
    "evaluate": ("",),
}
# They say how to go about it, not what comes out.
_NOT_DECIDING = (
    "sft.log_every", "estimator.refresh_every", "environment.pool", "environment.timeout_s", "environment.reset_timeout_s",
    "environment.ray_address",
)  # fmt: skip


def covers(stage: str, key: str) -> bool:
    """Whether a config key plays a part in a stage's output."""
    if key.startswith(_NOT_DECIDING) and stage not in ("train", "evaluate"):
        return False
    before = STAGES[: STAGES.index(stage) + 1]
    return any(key.startswith(prefix) for s in before for prefix in _KEYS[s])


def fingerprint(config, stage: str, **more: Any) -> dict[str, Any]:
    """The config keys that decide a stage's output, and what else is given; plain JSON values."""
    config = getattr(config, "untracked", config)
    found = {k: v for k, v in leaves(config).items() if covers(stage, k) or (config.lora.sft and k.startswith("lora."))}
    if config.sft.stop_loss:
        found["sft.log_every"] = config.sft.log_every  # the loss is looked at so often
    return json.loads(json.dumps(found | more))


def check(found: dict[str, Any], expected: dict[str, Any], what: str, *, borrowed: bool = False) -> None:
    """Raises a UserError that names the first key in which a finished stage differs from what this run asks for.

    What is `borrowed` from another run may come from another seed, so that several runs can start from one policy.
    """
    for key in sorted((set(found) | set(expected)) - ({"seed"} if borrowed else set())):
        if found.get(key) != expected.get(key):
            raise UserError(
                f"{what} was made with {key} = {found.get(key, '(absent)')!r}, this run has {expected.get(key, '(absent)')!r}: "
                "give the same value, or make that stage again in a workdir of its own."
            )


class StageOutput:
    """The parameters that a stage leaves in `workdir/stages/NAME`, or in the workdir of the run that they are borrowed from."""

    def __init__(self, workdir: str | Path, stage: str, borrowed_from: str | Path = ""):
        self.stage, self.borrowed = stage, bool(borrowed_from)
        self.folder = Path(borrowed_from or workdir) / "stages" / stage

    @property
    def exists(self) -> bool:
        return processes.on_writer((self.folder / "facts.json").is_file)

    def save(self, params, facts: dict[str, Any], metrics: dict[str, float]) -> None:
        """Writes parameters, then `facts.json`, whose presence says that the stage is finished."""
        # What a run left that was killed before it had noted that it was done.
        processes.on_writer(lambda: shutil.rmtree(self.folder, ignore_errors=True))
        checkpoints = Checkpoints(self.folder, keep=1)
        checkpoints.save(0, {"params": params}, {})
        checkpoints.close()
        text = json.dumps({"facts": facts, "metrics": metrics}, indent=2) + "\n"
        processes.on_writer(lambda: self._note(text))

    def read(self, template, facts: dict[str, Any]) -> tuple[Any, dict[str, float]]:
        """The parameters in the structure of `template`, and the stage's metrics.

        Raises:
          UserError: the stage is not finished, was made with another config, or holds arrays of other shapes.
        """
        where = f"the {self.stage} stage in {str(self.folder.parent.parent)!r}"
        if not self.exists:
            raise UserError(f"{where} is not finished: run it there with --stage={self.stage} first.")
        found = processes.on_writer(lambda: json.loads((self.folder / "facts.json").read_text(encoding="utf-8")))
        check(found["facts"], facts, where, borrowed=self.borrowed)
        checkpoints = Checkpoints(self.folder, read_only=True)
        try:
            _, tree, _ = checkpoints.restore({"params": template})
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
        finally:
            checkpoints.close()
        return tree["params"], found["metrics"]

    def _note(self, text: str) -> None:
        temporary = self.folder / ".facts.json"
        temporary.write_text(text, encoding="utf-8")
        temporary.rename(self.folder / "facts.json")


def begun(workdir: Path) -> set[str]:
    """The stages that a workdir has begun."""
    path = Path(workdir) / "stages" / "begun.json"
    return set(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else set()


def mark_begun(workdir: Path, stages: Iterable[str]) -> None:
    """Notes that stages have begun: from now on the workdir's config may not change in what decides them."""
    found = begun(workdir)
    if set(stages) <= found:
        return
    path = Path(workdir) / "stages" / "begun.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(".begun.json")
    temporary.write_text(json.dumps(sorted(found | set(stages))) + "\n", encoding="utf-8")
    temporary.rename(path)
