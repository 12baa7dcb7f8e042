"""Finds agents: the small ones that the package ships, exported folders, and workdirs of runs. Nothing here imports jax.

An agent's folder is what `stepreward export` writes: a Hugging Face model folder, and `stepreward.json` with the config of the run. If the
process reward model of the run is kept too, it is in the subfolder `prm`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ml_collections import ConfigDict

from stepreward.config import EXPORTED, as_config
from stepreward.errors import UserError, did_you_mean
from stepreward.metrics import Success

SHIPPED = Path(__file__).resolve().parent / "shipped"
PRM = "prm"  # the subfolder of the process reward model


class Place(NamedTuple):
    """Where an agent is.

    Attributes:
      kind: "folder" for an exported folder or a shipped agent, "run" for a workdir.
      name: what the agent is called in messages.
      path: the folder.
    """

    kind: Literal["folder", "run"]
    name: str
    path: Path


def shipped() -> dict[str, Path]:
    """The agents that come with the package, by name, with their folders."""
    return {path.parent.name: path.parent for path in sorted(SHIPPED.glob(f"*/{EXPORTED}"))}


def find(source: str | Path) -> Place:
    """Finds an agent by the name of a shipped one, or by the path of a folder; a folder comes first.

    Raises:
      UserError: there is no such agent, or the folder holds none.
    """
    path, known = Path(source), shipped()
    if path.is_dir() and str(source):
        if (path / EXPORTED).is_file():
            return Place("folder", path.resolve().name, path)
        if (path / "config.json").is_file() and not _is_model(path):
            return Place("run", path.resolve().name, path)
        if str(source) not in known:
            raise UserError(f"{str(source)!r} holds no agent: {_why_not(path)}")
    if str(source) in known:
        return Place("folder", str(source), known[str(source)])
    near = did_you_mean(str(source), known)
    raise UserError(
        f"no agent {str(source)!r}{near}: give the workdir of a run, a folder that `stepreward export` wrote, or the name of an agent "
        f"that comes with the package ({', '.join(known) or 'there are none'})"
    )


def read_facts(folder: str | Path) -> dict[str, Any]:
    """Reads `stepreward.json` of an agent's folder.

    Returns:
      The file's content; `config` is a dict of the run's config, `stated` the measured success if somebody measured it.

    Raises:
      UserError: the file is not the JSON of an agent.
    """
    path = Path(folder) / EXPORTED
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        raise UserError(f"{str(path)!r} is not the file of an agent: it has no `config`")
    return found


def stated_words(stated: dict[str, Any]) -> str:
    """The stated success of an agent as text: "80.1 % (78.3 to 81.8, 1,640 of 2,048 held-out tasks)"."""
    return Success.of(int(stated["won"]), int(stated["episodes"])).words(" held-out tasks")


def config_of(facts: dict[str, Any]) -> ConfigDict:
    """The config of the run that made an agent, unlocked."""
    return as_config(facts["config"])


def _is_model(path: Path) -> bool:
    """Whether a folder is a Hugging Face model folder, whose config.json is that of the model."""
    return any(path.glob("*.safetensors"))


def _why_not(path: Path) -> str:
    if _is_model(path):
        return f"it is a model folder without {EXPORTED}, the config of its run; export the run again, or serve the folder as a model"
    return "it is neither the workdir of a run (config.json) nor a folder that `stepreward export` wrote"
