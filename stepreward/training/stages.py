"""The stages of a run and their outputs: what a later run, or a later stage, can take instead of making it again.

    sft -> explore -> estimator -> train -> evaluate

A finished stage leaves its output in the workdir: `stages/sft` and `stages/estimator` (parameters), `exploration/` (recorded
episodes). Each carries the config keys that decide it. It is taken only where they agree; the error names the first that does not.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stepreward import processes
from stepreward.checkpoint import Checkpoints
from stepreward.config import leaves
from stepreward.errors import UserError
from stepreward.metrics import write_atomically

STAGES = ("sft", "explore", "estimator", "train", "evaluate")

# The first stage whose output each config key decides; it decides those of all later stages too. A key that ends in a dot stands for a
# group whose keys are not known here. A test asserts that every key of `base_config` is in exactly one row.
DECIDED_FROM = {
    "sft": (
        "seed", "environment.name", "environment.preset", "environment.prompt", "environment.data", "environment.options.",
        "model.preset", "model.path", "model.pieces", "model.system", "model.thinking", "model.compute_dtype", "model.param_dtype",
        "model.moment_dtype", "lora.sft", "rollout.context", "rollout.history", "rollout.max_steps",
        "rollout.long_observation", "rollout.max_image_tokens",
        "sft.episodes", "sft.updates", "sft.stop_loss", "sft.rows", "sft.learning_rate", "sft.warmup_updates", "sft.max_grad_norm",
    ),
    "explore": (
        "exploration.tasks", "exploration.rollouts", "exploration.part_tasks",
        "rollout.invalid_penalty", "rollout.temperature", "rollout.top_k", "rollout.top_p",
        "rollout.max_answer_tokens", "rollout.max_prompt_tokens", "rollout.max_row_tokens",
    ),
    "estimator": (
        "estimator.head", "estimator.learning_rate", "estimator.warmup_updates", "estimator.decay_updates", "estimator.weight_decay",
        "estimator.max_grad_norm", "estimator.minibatch_episodes", "estimator.epochs", "estimator.patience", "estimator.held_out",
        "credit.outcome", "credit.outcome_scale",
    ),
    "train": (
        # These change an earlier stage's output by rounding errors alone, so that a finished one can be taken on another machine.
        "model.remat", "model.attention", "mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.fit", "train.chunk_rows", "train.pack_rows",
        "rollout.max_rows",
        # What is borrowed carries a fingerprint of its own.
        "stages.sft", "stages.exploration", "stages.estimator",
        # `fingerprint` says in which cases these decide an earlier stage.
        "lora.rank", "lora.alpha", "lora.targets", "lora.dropout", "lora.share_base", "sft.log_every",
        "rollout.groups", "rollout.group_size", "estimator.refresh_every", "credit.method", "credit.variant", "credit.options.",
        "prm.preset", "prm.path", "prm.learning_rate", "prm.warmup_updates", "prm.weight_decay", "prm.max_grad_norm",
        "prm.minibatch_groups", "prm.epochs", "prm.resync", "prm.replay", "prm.warmup_batches",
        "critic.backbone", "critic.head", "critic.clip", "critic.coef", "critic.learning_rate", "critic.warmup_updates",
        "critic.weight_decay", "critic.max_grad_norm", "critic.minibatch_rows", "critic.epochs",
        "policy.learning_rate", "policy.warmup_updates", "policy.weight_decay", "policy.max_grad_norm", "policy.minibatch_rows",
        "policy.epochs", "policy.stop_kl", "policy.old_log_prob", "policy.advantage_norm", "policy.ratio", "policy.clip_low",
        "policy.clip_high", "policy.dual_clip", "policy.aggregation", "policy.constant", "policy.entropy_coef", "policy.kl_coef",
        "policy.kl", "policy.kl_reward_coef", "policy.kl_reward_target", "policy.kl_reward_horizon",
        "train.mode", "eval.episodes", "eval.final_episodes", "eval.final_temperature", "checkpoint.folder",
    ),
}  # fmt: skip
# Keys that may change at any time: they decide no output, or only how far a run goes and how often it looks.
FREE = (
    "environment.pool", "environment.timeout_s", "environment.reset_timeout_s", "environment.ray_address", "model.download",
    "train.check_batches", "train.env_steps", "eval.every", "eval.prm_as_policy_every", "eval.record", "checkpoint.every",
    "checkpoint.keep",
)  # fmt: skip
# Keys that name a folder or file: what it holds is compared (`identity.py`), not where it is.
PATHS = ("model.path", "prm.path", "environment.data")
FIT = "demonstrations"  # what `check_fit` compares, among the facts of the warm start
# Once this stage has begun, the run has read what it borrows.
BORROWED_FOR = {"stages.sft": "sft", "stages.exploration": "estimator", "stages.estimator": "train"}


def first_stage(key: str) -> str | None:
    """The first stage whose output a config key decides; None for a key that decides none, or is not known."""
    for stage, keys in DECIDED_FROM.items():
        if key in keys or any(key.startswith(group) for group in keys if group.endswith(".")):
            return stage
    return None


def covers(stage: str, key: str) -> bool:
    """Whether a config key plays a part in a stage's output; in the last two stages' every key counts."""
    first = first_stage(key)
    return stage in ("train", "evaluate") or (first is not None and STAGES.index(first) <= STAGES.index(stage))


def fingerprint(config, stage: str, **more: Any) -> dict[str, Any]:
    """The config keys that decide a stage's output, and what else is given; plain JSON values."""
    config = getattr(config, "untracked", config)
    found = {k: v for k, v in leaves(config).items() if covers(stage, k) or (config.lora.sft and k.startswith("lora."))}
    if config.sft.stop_loss:
        found["sft.log_every"] = config.sft.log_every  # the loss is looked at so often
    return json.loads(json.dumps(found | more))


def check_turn(stage: str, following: str | None, has: set[str], config) -> None:
    """Raises a UserError when a stage cannot be run alone now.

    Args:
      stage: the one that is asked for.
      following: the next one of the run; None when it is finished.
      has: the stages of the run.
      config: of the run.
    """
    if stage == following:
        return
    if stage not in has:
        reason = "eval.final_episodes=0" if stage == "evaluate" else f"credit.method={config.credit.method} does not need it"
        raise UserError(f"this run has no stage {stage}: {reason}.")
    if following and STAGES.index(stage) > STAGES.index(following):
        raise UserError(f"stage {stage} comes after {following}, which is not finished here: run --stage={following} first.")
    raise UserError(f"stage {stage} is finished in this workdir; the next one is {following or 'none: the run is finished'}.")


def digest(config) -> str:
    """Sixteen hex digits that tell one config from another, but for keys that may change at any time and for paths."""
    found = {k: v for k, v in leaves(getattr(config, "untracked", config)).items() if k not in (*FREE, *PATHS)}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


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
    write_atomically(path, json.dumps(sorted(found | set(stages))) + "\n")
