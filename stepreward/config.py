"""Configs: files `configs/NAME.py` with a function `get_config(preset="tiny")`, and the command line that selects one.

    python launch/train.py --config=configs/istar_sokoban.py:paper --config.policy.learning_rate=1e-6

A config is an `ml_collections.ConfigDict` of plain values: int, float, bool, str, tuple, None, and groups of them. An override is
read as the type of the value that it replaces. A key that the config does not have is an error, except below `OPEN_GROUPS`, and
`TrackedConfig` records which keys a run never read. We have our own parser because that of `ml_collections` shows a traceback for a
wrong value or a missing file.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import json
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from stepreward import configs
from stepreward.errors import UserError
from stepreward.secrecy import public
from stepreward.text import cleaned

_OVERRIDE = "--config."
# The environment or credit method that the config names checks their keys.
OPEN_GROUPS = ("environment.options", "credit.options", "credit.schedules", "preference.options", "mixture.environments")
EXPORTED = "stepreward.json"  # the file with the config of a run, in a model folder that the run exported
# Folders and addresses of one machine, which an exported folder does not tell.
_LOCAL = (
    "model.path", "prm.path", "frozen_pair.trained", "frozen_pair.start", "mixture.transfer", "checkpoint.folder", "environment.ray_address",
    "judge.url", "expert.url", "stages.sft", "stages.exploration", "stages.estimator", "stages.preference",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Option:
    """A command-line flag besides `--config`; a flag of type bool is a switch without a value."""

    name: str
    help: str
    default: Any = None
    type: Callable[[str], Any] = str
    choices: tuple[Any, ...] | None = None


WORKDIR = Option("workdir", "folder of the run; the same command on the same folder resumes (default: runs/<config>)")
QUIET = Option("quiet", "print only the last line", default=False, type=bool)


# --- The command line ---


def parse_command_line(
    argv: Sequence[str], *, extra: Iterable[Option] = (WORKDIR, QUIET), description: str | None = None
) -> tuple[ConfigDict, argparse.Namespace]:
    """Parses `--config`, its overrides and the other flags of a job.

    The config is `--config=FILE.py[:PRESET]`, or `--config=NAME[:PRESET]` for an installed experiment; an override is
    `--config.KEY=VALUE`. `--help` prints the flags, and with `--config` every key of that config, and exits with 0.

    Args:
      argv: the arguments without the program's name: `sys.argv[1:]`.
      extra: the other flags of this job; by default `--workdir` and `--quiet`.
      description: the text above the flags in `--help`, such as the script's docstring.

    Returns:
      The locked config, and a namespace with an attribute for each option (dashes become underscores) and `config`, the text given
      to `--config`. The default of `workdir` is `runs/NAME`, or `runs/NAME_PRESET` if the preset is not the file's own default.

    Raises:
      UserError: if a flag, key, value, preset or config file is wrong; the message is one line that names it.
    """
    extra = tuple(extra)
    overrides, rest = _split_overrides(argv)
    parser = _Parser(description=description, extra=extra)
    options = parser.parse_args(rest)
    if options.help and options.config is None:
        parser.print_help()
        sys.exit(0)
    if options.config is None:
        raise UserError("no config given: add --config=FILE.py, for example --config=configs/istar_sokoban.py")
    config = load_config_file(options.config)
    for key, text in overrides:
        override(config, key, text)
    clean_config(config)
    if options.help:
        lines = [f"  --config.{k}={v!r}" for k, v in leaves(config).items()]
        lines += [f"  --config.{group}.NAME=VALUE" for group in OPEN_GROUPS if config.get(group.split(".")[0])]
        parser.epilog = "\n".join(["keys of this config:", *lines])
        parser.print_help()
        sys.exit(0)
    del options.help
    if "workdir" in vars(options) and options.workdir is None:
        options.workdir = str(Path("runs") / config_name(options.config))
    return config, options


def parse_arguments(
    argv: Sequence[str],
    *,
    options: Iterable[Option],
    description: str | None = None,
    required: Sequence[str] = (),
    positional: Option | None = None,
    several: bool = False,
) -> argparse.Namespace:
    """Parses the flags of a job that takes no config; `--help` prints them and exits with 0.

    Args:
      argv: the arguments without the program's name.
      options: the flags.
      description: the text above the flags in `--help`.
      required: names of flags that must be given.
      positional: an argument without dashes, which may be left out.
      several: whether there may be any number of it; they are a list then.

    Raises:
      UserError: if a flag or value is wrong or missing; the message is one line that names it.
    """
    parser = _Parser(description=description, extra=tuple(options), with_config=False)
    if positional is not None:
        count, name = "*" if several else "?", positional.name
        parser.add_argument(name, nargs=count, metavar=name.upper(), default=positional.default, help=positional.help)
    parsed = parser.parse_args(argv)
    if parsed.help:
        parser.print_help()
        sys.exit(0)
    for name in required:
        if getattr(parsed, name.replace("-", "_")) is None:
            raise UserError(f"--{name} is missing; --help lists the flags")
    return parsed


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets the dotted `key` of a config to `text`, parsed as the type of the value that it replaces.

    A key whose value is None accepts any literal; only such a key accepts `None`. Below `OPEN_GROUPS` a missing key is added; its
    value, or that of the whole group, is a Python literal such as `{'left': 0}`, or else the text itself.

    Raises:
      UserError: if the config has no such key, the key is a group, or the text cannot be parsed as the type of its value.
    """
    for name in OPEN_GROUPS:
        if key == name or key.startswith(f"{name}."):
            return _set_open(config, key, text, name)
    *groups, name = key.split(".")
    group = config
    for part in groups:
        group = group[part] if isinstance(group, ConfigDict) and part in group else None
    if not isinstance(group, ConfigDict) or name not in group:
        raise UserError(f"the config has no key {key!r}{_suggest(key, leaves(config))}")
    if isinstance(group[name], ConfigDict):
        inner = ", ".join(f"{key}.{k}" for k in group[name])
        raise UserError(f"config key {key!r} is a group; set one of its keys: {inner or '(it has none)'}")
    group[name] = _parse_value(key, text, group[name], group.get_type(name))
    if key != "mesh.fit" and config.get("mesh", {}).get("fit"):  # the run must not choose a key that is set here
        config.mesh.fit = tuple(entry for entry in config.mesh.fit if entry[0] != key)


def _set_open(config: ConfigDict, key: str, text: str, open_group: str) -> None:
    """Sets a key below `open_group`; if `key` is a group, sets the keys in the dictionary `text`."""
    group = config
    for part in open_group.split("."):
        if part not in group:
            raise UserError(f"the config has no key {key!r}{_suggest(key, leaves(config))}")
        group = group[part]
    *inner, name = [part for part in key[len(open_group) :].split(".") if part] or [""]
    if key.endswith(".") or ".." in key:
        raise UserError(f"config key {key!r} has an empty name: write {open_group}.NAME=VALUE")
    with config.unlocked():
        for part in inner:
            if part not in group or not isinstance(group[part], ConfigDict):
                group[part] = ConfigDict()
            group = group[part]
        old = group[name] if name and name in group else None
        if old is not None and not isinstance(old, ConfigDict):
            value = _parse_value(key, text, old, group.get_type(name))
        else:
            value = _plain(key, _literal(text))
        if not name and not isinstance(value, dict):
            raise UserError(f"config key {key!r} is a group: write {key}.NAME=VALUE, or {key}=\"{{'NAME': VALUE}}\"; got {text!r}")
        for one, item in value.items() if not name else ((name, value),):
            if one in group:  # the old value may have another type
                del group[one]
            group[one] = ConfigDict(item) if isinstance(item, dict) else item


def _plain(key: str, value: Any) -> Any:
    """Returns the value if a config can hold it; raises UserError if not."""
    if isinstance(value, dict):
        wrong = [name for name in value if not isinstance(name, str) or not name or "." in name]
        if wrong:
            raise UserError(f"config key {key!r} has the name {wrong[0]!r}: a name must be a non-empty string without dots")
        return {name: _plain(f"{key}.{name}", item) for name, item in value.items()}
    if not _is_plain(_as_tuple(value)):
        raise UserError(
            f"config key {key!r} cannot be {value!r}: give numbers, strings, True, False, None, or tuples or dictionaries of them"
        )
    return _as_tuple(value)


class _Parser(argparse.ArgumentParser):
    """argparse, with errors that are one line and name the nearest flag."""

    def __init__(self, *, description: str | None, extra: tuple[Option, ...], with_config: bool = True):
        super().__init__(
            description=description,
            usage="%(prog)s --config=FILE.py[:PRESET] [--config.KEY=VALUE ...] [options]" if with_config else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        if with_config:
            self.add_argument("--config", metavar="FILE.py[:PRESET]", help="the experiment and its preset")
            self.add_argument("--config.KEY", metavar="VALUE", default=argparse.SUPPRESS, help="change one key; with --help, lists them")
        for option in extra:
            if option.type is bool:
                self.add_argument(f"--{option.name}", action="store_true", default=option.default, help=option.help)
            else:
                shape = {"choices": option.choices} if option.choices else {"metavar": option.name.upper()}
                self.add_argument(f"--{option.name}", type=option.type, default=option.default, help=option.help, **shape)
        self.add_argument("--help", "-h", action="store_true", help="show this text")

    def parse_args(self, args):
        options, unknown = self.parse_known_intermixed_args(args)  # flags may stand between the arguments without dashes
        if unknown:
            flags = [name for action in self._actions for name in action.option_strings]
            raise UserError(f"unknown argument {unknown[0]!r}{_suggest(unknown[0].split('=')[0], flags)}")
        return options

    def error(self, message):
        raise UserError(message)


def _split_overrides(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Separates overrides (`--config.key=value`, `--config.key value`, or a bare `--config.key` for true) from other arguments."""
    overrides, rest, index = [], [], 0
    while index < len(argv):
        argument = argv[index]
        index += 1
        if not argument.startswith(_OVERRIDE):
            rest.append(argument)
            continue
        key, equals, text = argument[len(_OVERRIDE) :].partition("=")
        if not equals and index < len(argv) and not argv[index].startswith("--"):
            text, equals = argv[index], "="
            index += 1
        overrides.append((key, text if equals else "true"))
    return overrides, rest


def _suggest(name: str, known: Iterable[str]) -> str:
    """Returns '; did you mean ...?' with the nearest known names, or a hint how to list them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:  # the last part may be right and its group wrong or missing
        last = name.rsplit(".", 1)[-1]
        near = [k for k in known if k.rsplit(".", 1)[-1] == last][:3]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else "; --help with --config lists them"


def _parse_value(key: str, text: str, old: Any, kind: type) -> Any:
    """Parses `text` as `kind`, the type of the value `old`; a key whose value is None also accepts `None`."""
    if text == "None" and old is None:
        return None
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
        if kind in (tuple, list):
            return kind(_parse_tuple(text, old))
        return _literal(text)
    except (KeyError, ValueError):
        expected = "bool (true or false)" if kind is bool else getattr(kind, "__name__", str(kind))
        if kind in (tuple, list) and old:
            expected += f" of {type(old[0]).__name__}, such as {','.join(map(str, old))}"
        raise UserError(f"config key {key!r} is of type {expected}; got {text!r}") from None


def _parse_tuple(text: str, old: Sequence[Any] | None) -> list[Any]:
    """Parses `1,2`, `(1, 2)`, `[1, 2]` or `a,b`; the items take the type of the old items."""
    value = _literal(text)
    if isinstance(value, str):
        value = [_literal(part.strip()) for part in value.strip("()[]").split(",") if part.strip()]
    items = list(value) if isinstance(value, (tuple, list)) else [value]
    kinds = {type(item) for item in old or ()}
    if len(kinds) != 1:
        return items
    (kind,) = kinds
    if kind is float:
        items = [float(item) if type(item) is int else item for item in items]
    if kind is str:
        items = [str(item) for item in items]
    if any(type(item) is not kind for item in items):
        raise ValueError(text)
    return items


def _literal(text: str) -> Any:
    """Returns the value of the text if it is a Python literal, or else the text itself; `true` and `false` are bool."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


# --- Config files ---


def load_config_file(spec: str) -> ConfigDict:
    """Runs the config file `FILE.py[:PRESET]` and returns what its `get_config` returns, locked.

    Raises:
      UserError: if the file does not exist, is not a config, raises an error, or does not offer the preset.
    """
    path, preset = _split_spec(spec)
    get_config = _get_config_function(path)
    try:
        config = get_config() if preset is None else get_config(preset)
    except ValueError as error:  # raised by the file itself, usually for a preset that it does not offer
        raise UserError(f"config {path}: {error}") from None
    except Exception as error:
        raise UserError(_file_error(path, error)) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"config {path}: get_config() returned {type(config).__name__}, not a ConfigDict")
    if config.get("mesh", {}).get("fit"):  # store the values too: the run must not choose a key that Python code changes later
        values = leaves(config)
        # In a file that builds on another one, some keys have their values already.
        config.mesh.fit = tuple((key, values[key]) if isinstance(key, str) else key for key in config.mesh.fit)
    return config.lock()


def check_preset(preset: str, offered: Iterable[str]) -> None:
    """Raises ValueError with the list of presets if a config file does not offer `preset`."""
    offered = list(offered)
    if preset not in offered:
        raise ValueError(f"unknown preset {preset!r}; this file offers: {', '.join(offered)}")


def config_name(spec: str) -> str:
    """Returns the default name of a run of `FILE.py[:PRESET]`: the file's stem, and the preset if it is not the default."""
    path, preset = _split_spec(spec)
    if preset is not None:
        parameters = list(inspect.signature(_get_config_function(path)).parameters.values())
        if parameters and parameters[0].default == preset:
            preset = None
    return path.stem if preset is None else f"{path.stem}_{preset}"


def installed_configs() -> dict[str, Path]:
    """The experiments that come with the package, by name, with their files."""
    return {path.stem: path for path in sorted(Path(configs.__path__[0]).glob("[!_]*.py"))}


def _split_spec(spec: str) -> tuple[Path, str | None]:
    """The file and the preset of `FILE.py[:PRESET]`, or of `NAME[:PRESET]`: an experiment that comes with the package."""
    name, colon, preset = spec.partition(":")
    path = Path(name)
    if path.parent == Path() and not path.is_file():
        path = installed_configs().get(path.name.removesuffix(".py"), path)
    return path, preset if colon else None


def _get_config_function(path: Path) -> Callable[..., Any]:
    if not path.is_file():
        there = {p.stem: p for p in path.parent.glob("[!_]*.py")} if path.parent.is_dir() else {}
        installed = {name: name for name in installed_configs()} if path.stem not in there else {}
        near = difflib.get_close_matches(path.stem, [*there, *installed], n=1)
        hint = f"; did you mean {str((installed | there)[near[0]])!r}?" if near else ""
        if not near and not path.suffix:
            hint = f"; the installed experiments are {', '.join(installed)}"
        raise UserError(f"no config file {str(path)!r}{hint}")
    module = types.ModuleType("config")
    module.__file__ = str(path)
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except Exception as error:
        raise UserError(_file_error(path, error)) from error
    function = getattr(module, "get_config", None)
    if not callable(function):
        raise UserError(f"config {path} defines no function get_config(preset)")
    return function


def _file_error(path: Path, error: Exception) -> str:
    """A one-line message with the config file, the line in it, and the error."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"config {path}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f", line {lines[-1]}" if lines else ""
    return f"config {path}{where}: {type(error).__name__}: {' '.join(str(error).split())}"


# --- Saved configs ---


def leaves(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns the values of a config by dotted key, in the config's order, with lists as tuples."""
    found: dict[str, Any] = {}
    for name in config:
        value, key = config[name], f"{prefix}{name}"
        if isinstance(value, (ConfigDict, Mapping)):
            found.update(leaves(value, f"{key}."))
        else:
            found[key] = _as_tuple(value)
    return found


def clean_config(config: ConfigDict | TrackedConfig) -> None:
    """Cleans the text of every value in place (`text.clean`), because a shell can pass lone surrogates, which no file can store.

    The keys of a `TrackedConfig` do not count as read by this.
    """
    config = config.untracked if isinstance(config, TrackedConfig) else config
    for key, value in leaves(config).items():
        if cleaned(value) != value:
            *groups, name = key.split(".")
            group = config
            for part in groups:
                group = group[part]
            group[name] = cleaned(value)


def save_config(config: ConfigDict | TrackedConfig, path: str | os.PathLike) -> None:
    """Writes a config as JSON, completely or not at all; its keys do not count as read by this.

    Raises:
      ValueError: if a value is not an int, float, bool, str, tuple, list or None; the message names the key.
    """
    config = config.untracked if isinstance(config, TrackedConfig) else config
    for key, value in leaves(config).items():
        if not _is_plain(value):
            raise ValueError(f"config key {key!r} holds a {type(value).__name__}; a config may hold only plain values")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def load_config(path: str | os.PathLike) -> ConfigDict:
    """Reads a config that `save_config` wrote, and locks it; lists come back as tuples.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is not a saved config.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no saved config {str(path)!r}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"saved config {str(path)!r} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"saved config {str(path)!r} is not a JSON object")
    return as_config(found).lock()


def shareable(config: ConfigDict) -> dict[str, Any]:
    """Returns a config as nested dicts, without secrets, and without the folders and addresses of this machine that playing does not need."""
    values = config.to_dict()
    for key in _LOCAL:
        group, name = key.split(".")
        if isinstance(values.get(group), dict) and name in values[group]:
            values[group][name] = ""
    return public(values, plain=frozenset({"state_key"}))


def as_config(values: Mapping[str, Any]) -> ConfigDict:
    """Returns an unlocked config with nested values as JSON holds them; lists become tuples."""
    return ConfigDict(_as_tuple(dict(values)))


def config_difference(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Returns a line for each key whose value differs, such as `optimizer.learning_rate: 1e-06 -> 3e-06`."""
    a, b = ({k: repr(v) for k, v in leaves(c).items()} for c in (old, new))
    keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
    return [f"{key}: {a.get(key, '(absent)')} -> {b.get(key, '(absent)')}" for key in keys]


def _as_tuple(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _as_tuple(v) for k, v in value.items()}
    return tuple(_as_tuple(item) for item in value) if isinstance(value, (list, tuple)) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return value is None or type(value) in (int, float, bool, str)


# --- Which keys a run reads ---


class TrackedConfig(Mapping):
    """A read-only view of a config that records which values are read, by attribute or by item.

    Groups are views that share the record. `in`, `len` and iterating over names do not count as reading; `items`, `values`, `get`,
    `**group` and `to_dict` count as reading the values that they return.
    """

    def __init__(self, config: ConfigDict, _prefix: str = "", _read: set[str] | None = None):
        self._config, self._prefix = config, _prefix
        self._read: set[str] = set() if _read is None else _read

    @property
    def untracked(self) -> ConfigDict:
        """The config itself; reads of it are not recorded."""
        return self._config

    def of(self, config: ConfigDict) -> TrackedConfig:
        """A view of another config with the same keys, or some of them, whose reads are recorded in the same record."""
        return TrackedConfig(config, self._prefix, self._read)

    def __getitem__(self, name: str) -> Any:
        value, key = self._config[name], f"{self._prefix}{name}"
        if isinstance(value, ConfigDict):
            return TrackedConfig(value, f"{key}.", self._read)
        self._read.add(key)
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._config:
            raise AttributeError(f"the config has no key {self._prefix + name!r}{_suggest(name, self._config)}")
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def __len__(self) -> int:
        return len(self._config)

    def __contains__(self, name: object) -> bool:
        return name in self._config

    def __repr__(self) -> str:
        return f"TrackedConfig({self._config.to_dict()!r})"

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as nested dicts, and records all of them as read."""
        return {k: v.to_dict() if isinstance(v, TrackedConfig) else v for k, v in self.items()}


def unread_keys(tracked: TrackedConfig) -> list[str]:
    """Returns the dotted keys of a tracked config that nothing has read so far, in the config's order."""
    return [tracked._prefix + key for key in leaves(tracked.untracked) if tracked._prefix + key not in tracked._read]
