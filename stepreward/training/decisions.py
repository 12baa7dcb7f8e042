"""The dependencies of each stage's output: config keys, and the content of the files that a run reads.

    sft -> explore -> estimator -> preference -> train -> evaluate

The output of a finished stage may be reused only if everything that affects it is the same. A key *decides* a stage if it affects the
stage's output.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stepreward.config import leaves
from stepreward.errors import UserError
from stepreward.training import identity
from stepreward.training.outputs import StageOutput, check_fit
from stepreward.training.stages import STAGES as _STAGES

STAGES: tuple[str, ...] = tuple(dict.fromkeys(stage.command for stage in _STAGES))  # in the order in which they run
COMMANDS: dict[str, str] = {stage.name: stage.command for stage in _STAGES}

# The first stage whose output each config key decides; it decides those of all later stages too. A key that ends in a dot stands for a
# group with arbitrary keys. A test asserts that every key of the base config is in exactly one row.
DECIDED_FROM: dict[str, tuple[str, ...]] = {
    command: keys for command in STAGES if (keys := sum((s.decides for s in _STAGES if s.command == command), ()))
}
# Keys that may change at any time: they do not affect the output, or only how long a run is and how often it is evaluated and saved.
FREE = (
    "environment.pool", "environment.timeout_s", "environment.reset_timeout_s", "environment.ray_address", "model.download",
    "judge.url", "judge.key_variable", "judge.timeout_s", "judge.retries", "judge.parallel",
    "expert.url", "expert.key_variable", "expert.timeout_s", "expert.retries", "expert.parallel",
    "train.check_batches", "train.env_steps", "eval.every", "eval.prm_as_policy_every", "eval.record", "checkpoint.every",
    "checkpoint.keep", "tracker",
)  # fmt: skip
# Keys that name a folder or file, whose content is compared (`identity.py`) instead of its path.
PATHS = ("model.path", "prm.path", "environment.data", "frozen_pair.trained", "frozen_pair.start", "mixture.transfer")
# Keys that name another workdir, and the stage that reads its output: once that stage has begun, the key may not change.
BORROWED_FOR: dict[str, str] = {key: stage.command for stage in _STAGES for key in stage.borrows}


def position(stage: str) -> int:
    """The place of a stage in their order."""
    return STAGES.index(stage)


def first_stage(key: str) -> str | None:
    """The first stage whose output a config key decides; None for a key that decides none or is unknown."""
    for stage, keys in DECIDED_FROM.items():
        if key in keys or any(key.startswith(group) for group in keys if group.endswith(".")):
            return stage
    return None


def covers(stage: str, key: str) -> bool:
    """Whether a config key affects a stage's output. From the last stage that decides keys on, every key counts."""
    first, last = first_stage(key), list(DECIDED_FROM)[-1]
    return position(stage) >= position(last) or (first is not None and position(first) <= position(stage))


def fingerprint(config, stage: str, **more: Any) -> dict[str, Any]:
    """Returns the config keys that decide a stage's output, with their values, and `more`; plain JSON values."""
    config = getattr(config, "untracked", config)
    found = {k: v for k, v in leaves(config).items() if covers(stage, k) or (config.lora.sft and k.startswith("lora."))}
    if config.sft.stop_loss:
        found["sft.log_every"] = config.sft.log_every  # the loss is compared with stop_loss this often
    return json.loads(json.dumps(found | more))


def check_turn(stage: str, following: str | None, has: set[str], config) -> None:
    """Raises a UserError if a stage cannot be run now.

    Args:
      stage: the stage that the user asks for.
      following: the next stage of the run; None when the run is finished.
      has: the stages of the run.
      config: the run's config.
    """
    if stage == following:
        return
    if stage not in has:
        *_, reason = [s.absent(config) for s in _STAGES if s.command == stage]
        raise UserError(f"this run has no stage {stage}: {reason}.")
    if following and position(stage) > position(following):
        raise UserError(f"stage {stage} comes after {following}, which is not finished here: run --stage={following} first.")
    raise UserError(f"stage {stage} is finished in this workdir; the next one is {following or 'none: the run is finished'}.")


def digest(config) -> str:
    """Returns a digest of the config (16 hex digits), without paths and keys that may change at any time."""
    found = {k: v for k, v in leaves(getattr(config, "untracked", config)).items() if k not in (*FREE, *PATHS)}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


# --- Inputs outside the config ---


def deciding(found: dict[str, Any], stage: str) -> dict[str, Any]:
    """Returns those results of `identity.of` that decide a stage's output."""
    first = lambda name: position(identity.DECIDED_FROM.get(name, STAGES[0]))
    decides = lambda name: covers(stage, name) if name in PATHS else first(name) <= position(stage)
    return {name: value for name, value in found.items() if decides(name)}


def check_inputs(found: dict[str, Any], expected: dict[str, Any], begun: Iterable[str], where: str) -> None:
    """Raises a UserError if an input outside the config has changed since a stage that it decides began."""
    last = max((position(stage) for stage in begun), default=-1)
    for name, stage in identity.DECIDED_FROM.items():
        if position(stage) <= last and found.get(name) != expected.get(name):
            raise UserError(
                f"{name}: {where} was made with {found.get(name, '(none)')}, but this run has "
                f"{expected.get(name, '(none)')}: the content has changed since. Put it back, or give another --workdir."
            )


def read_start(c, workdir: Path, template, inputs: dict | None = None):
    """Reads the supervised policy's parameters from this workdir or the one that `stages.sft` names.

    Args:
      c: the config.
      workdir: the run's folder.
      template: a tree of arrays or shapes with the structure of the result.
      inputs: the result of `identity.of`; None computes it without the texts of prompts.

    Raises:
      UserError: the output is missing, or was made with other settings.
    """
    output = StageOutput(workdir, "sft", c.stages.sft)
    ignored = ("prompt words",) if inputs is None else ()
    facts = fingerprint(c, "sft", **deciding(identity.of(c) if inputs is None else inputs, "sft"))
    params = output.read(template, facts, ignored)[0]
    check_fit(output.fit(), c, output.where)
    return params


def reached(stage: str) -> tuple[str, ...]:
    """Returns the stages that have begun in a run whose next tick belongs to `stage`, a name in metrics.jsonl; "done" gives all."""
    return STAGES[: position(COMMANDS[stage]) + 1] if stage in COMMANDS else STAGES
