"""Frozen policies: the policy of another run or of a model folder, which computes log-probabilities and is never trained."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ml_collections import ConfigDict

from stepreward import checkpoint
from stepreward.checkpoint import Checkpoints
from stepreward.config import load_config
from stepreward.errors import UserError
from stepreward.models import decoder
from stepreward.models.tokenizer import Codec
from stepreward.rollout.template_chat import load_codec
from stepreward.training import backbones
from stepreward.training.backbones import Backbone

TRAINED, START = "frozen_pair.trained", "frozen_pair.start"
SIGNALS = frozenset({"log_prob_trained", "log_prob_start"})  # what a pair of them computes


class FrozenPolicy:
    """A policy on disk.

    Args:
      path: the workdir of a run; or the folder of a Hugging Face model, or the model's name in the hub's local cache.
      key: the config key that names it, for errors.
      supervised: of a workdir, take the supervised policy instead of that of the latest checkpoint.

    Attributes:
      folder: the workdir or model folder.
      is_run: whether it is a workdir.

    Raises:
      UserError: there is no such workdir or model, or the run has not come so far.
    """

    def __init__(self, path: str, key: str, supervised: bool = False):
        self._path, self._key, self._supervised = path, key, supervised
        self.is_run = (Path(path) / "config.json").is_file() and any((Path(path) / name).exists() for name in ("stages", "metrics.jsonl"))
        if self.is_run:
            self.folder, self._config = Path(path), load_config(Path(path) / "config.json")
            self._facts()
            return
        try:
            self.folder = backbones.find_model(path, download=False)
        except FileNotFoundError:
            raise UserError(f"{self._what} is neither the workdir of a run nor the folder of a model.") from None

    @property
    def _what(self) -> str:
        return f"{self._key}={self._path!r}"

    @property
    def _sft(self) -> Path:
        return Path(self._config.stages.sft or self.folder) / "stages" / "sft"

    def _facts(self) -> Any:
        """What was saved with the policy: numbers and times that no other run has.

        Raises:
          UserError: the run has no such policy.
        """
        try:
            if self._supervised:
                return json.loads((self._sft / "facts.json").read_text(encoding="utf-8"))
            return checkpoint.saved_counters(self.folder, self._config.checkpoint.folder)
        except (FileNotFoundError, ValueError) as error:
            missing = "no finished supervised policy (stages/sft)" if self._supervised else "no checkpoint"
            raise UserError(f"{self._what}: this run has {missing} yet; finish it, or name another one ({error}).") from error

    def digest(self) -> str:
        """Digest of a run's policy, 16 hex digits: it changes when the run is continued, and not when its folder is moved."""
        return hashlib.sha256(json.dumps(self._facts(), sort_keys=True).encode()).hexdigest()[:16]

    def check_words(self, codec: Codec) -> None:
        """Raises a UserError if the policy has another tokenizer than `codec`, the run's."""
        try:
            folder = self.folder
            if self.is_run:
                path = self._config.model.path
                folder = backbones.find_model(path, self._config.model.download) or self.folder / "tokenizer"
            theirs = load_codec(folder).vocabulary
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"{self._what}: its tokenizer cannot be read ({error}).") from error
        if theirs != codec.vocabulary:
            raise UserError(
                f"{self._what} has another tokenizer ({len(theirs)} tokens) than this run ({len(codec.vocabulary)} tokens): name a policy "
                "whose tokens are those of model.path, or a run that trained in the same environment (with the same seed, or with the "
                "tokenizer of this run through stages.sft)."
            )

    def read(self, c, parts) -> tuple[Backbone, Any]:
        """Reads the policy onto the run's devices.

        Args:
          c: the run's config.
          parts: the run's parts.

        Returns:
          The backbone, and the parameters of the decoder.

        Raises:
          UserError: the files are missing or damaged, or do not have the shapes that their config names.
        """
        try:
            return self._read(getattr(c, "untracked", c), parts)
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"{self._what} cannot be read: {error}") from error

    def _read(self, c, parts) -> tuple[Backbone, Any]:
        theirs = ConfigDict((self._config if self.is_run else c).to_dict())
        if not self.is_run:
            theirs.model.preset, theirs.model.path, theirs.lora.rank = backbones.CHECKPOINT, str(self.folder), 0
        theirs.model.attention, theirs.train.pack_rows = c.model.attention, c.train.pack_rows  # rows are laid out as this run does it
        config = backbones.model_config(theirs, parts.mesh, parts.model_config.vocab_size)
        # Of a run, only the weights under a warm start's adapters are the initial ones; all others are in its files.
        shapes_only = self.is_run and not (theirs.lora.rank and theirs.lora.sft)
        made = SimpleNamespace(model_config=config, graphdef=decoder.graph(config), mesh=parts.mesh, abstract=shapes_only)
        model, params = backbones.initial_model(theirs, made)
        if not self.is_run:
            return model, params
        adds = theirs.lora.rank and model.base is None  # adapters that begin with reinforcement learning, on the supervised weights
        if self._supervised or adds:
            params = _restore(Checkpoints(self._sft, read_only=True), {"params": params})["params"]
        if self._supervised:
            return model, params
        checkpoints = Checkpoints(self.folder, read_only=True, folder=theirs.checkpoint.folder)
        names = checkpoints.names()
        if adds and any("_lora_" in name for name in names):
            model, params = backbones.adapted(theirs, model, params)
        headed = any(name.startswith("policy/params/decoder/") for name in names)  # a critic shared the backbone
        tree = _restore(checkpoints, {"policy": {"params": {"decoder": params} if headed else params}})["policy"]["params"]
        return model, tree["decoder"] if headed else tree


def _restore(checkpoints: Checkpoints, template) -> Any:
    try:
        return checkpoints.restore(template)[1]
    finally:
        checkpoints.close()


def pair(c) -> tuple[FrozenPolicy, FrozenPolicy]:
    """Returns the trained policy and the one that its training started from, as `frozen_pair.trained` and `frozen_pair.start` name them.

    Raises:
      UserError: a key is missing, or its value cannot be used.
    """
    trained, start = c.frozen_pair.trained, c.frozen_pair.start
    if not trained:
        raise UserError(
            f"credit.method={c.credit.method!r} compares two frozen policies: set {TRAINED} to the workdir of a finished run or to a model "
            f"folder, and {START} to the policy that its training started from (empty: that run's supervised policy)."
        )
    first = FrozenPolicy(trained, TRAINED)
    if start:
        return first, FrozenPolicy(start, START)
    if not first.is_run:
        raise UserError(
            f"{TRAINED}={trained!r} is a model folder, which holds no earlier policy: set {START} to a workdir or model folder."
        )
    return first, FrozenPolicy(trained, TRAINED, supervised=True)
