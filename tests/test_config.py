"""Config files, the command line, saved configs, and the record of the keys that were read."""

import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict, config_dict

from stepreward.config import (
    Option,
    TrackedConfig,
    check_preset,
    config_difference,
    leaves,
    load_config,
    parse_command_line,
    save_config,
    unread_keys,
)
from stepreward.errors import UserError

ROOT = Path(__file__).resolve().parent.parent

CONFIG = """
from ml_collections import ConfigDict, config_dict
from stepreward.config import check_preset

def get_config(preset="tiny"):
    check_preset(preset, ("tiny", "paper"))
    return ConfigDict(dict(
        iterations=3 if preset == "tiny" else 300,
        name="x",
        quick=False,
        optimizer=dict(learning_rate=1e-3, clip=None, betas=(0.9, 0.95), sizes=(6, 7), parts=("a", "b")),
        width=config_dict.placeholder(int),
    ))
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "example.py"
    path.write_text(CONFIG)
    return str(path)


def parse(config_file, *arguments):
    return parse_command_line([f"--config={config_file}", *arguments])


def test_defaults(config_file):
    config, options = parse(config_file)
    assert config.iterations == 3 and config.is_locked
    assert vars(options) == {"config": config_file, "workdir": "runs/example", "quiet": False}


def test_preset_and_the_name_of_its_workdir(config_file):
    config, options = parse(config_file + ":paper", "--quiet")
    assert config.iterations == 300 and options.workdir == "runs/example_paper" and options.quiet
    assert parse(config_file + ":tiny")[1].workdir == "runs/example"
    assert parse(config_file + ":paper", "--workdir=elsewhere")[1].workdir == "elsewhere"


@pytest.mark.parametrize(
    "argument, key, value",
    [
        ("--config.iterations=5", "iterations", 5),
        ("--config.optimizer.learning_rate=1", "optimizer.learning_rate", 1.0),
        ("--config.optimizer.learning_rate=1e-6", "optimizer.learning_rate", 1e-6),
        ("--config.quick", "quick", True),
        ("--config.quick=True", "quick", True),
        ("--config.quick=0", "quick", False),
        ("--config.name=None", "name", "None"),
        ("--config.name=a=b", "name", "a=b"),
        ("--config.optimizer.clip=1.5", "optimizer.clip", 1.5),
        ("--config.optimizer.clip=None", "optimizer.clip", None),
        ("--config.optimizer.betas=0.5,1", "optimizer.betas", (0.5, 1.0)),
        ("--config.optimizer.betas=(0.5, 0.6, 0.7)", "optimizer.betas", (0.5, 0.6, 0.7)),
        ("--config.optimizer.sizes=9", "optimizer.sizes", (9,)),
        ("--config.optimizer.parts=c,d", "optimizer.parts", ("c", "d")),
        ("--config.width=7", "width", 7),
    ],
)
def test_an_override_takes_the_type_of_its_key(config_file, argument, key, value):
    found = leaves(parse(config_file, argument)[0])[key]
    assert found == value and type(found) is type(value)


def test_the_value_may_be_an_argument_of_its_own(config_file):
    assert parse(config_file, "--config.iterations", "-1", "--quiet")[0].iterations == -1


@pytest.mark.parametrize(
    "argument, words",
    [
        ("--config.iteratons=3", "'iteratons'; did you mean 'iterations'"),
        ("--config.optimizer.learning_rat=3", "did you mean 'optimizer.learning_rate'"),
        ("--config.learning_rate=3", "did you mean 'optimizer.learning_rate'"),
        ("--config.optimizer.clip.x=3", "no key 'optimizer.clip.x'"),
        ("--config.=3", "no key ''"),
        ("--config.optimizer=3", "'optimizer' is a group; set one of its keys: optimizer.betas"),
        ("--config.iterations=3.5", "'iterations' is of type int; got '3.5'"),
        ("--config.iterations", "'iterations' is of type int; got 'true'"),
        ("--config.iterations=None", "'iterations' is of type int; got 'None'"),
        ("--config.optimizer.learning_rate=fast", "of type float; got 'fast'"),
        ("--config.quick=maybe", "of type bool (true or false); got 'maybe'"),
        ("--config.optimizer.sizes=a,b", "of type tuple of int, such as 6,7; got 'a,b'"),
        ("--config.width=x", "'width' is of type int; got 'x'"),
        ("--wrkdir=x", "unknown argument '--wrkdir=x'; did you mean '--workdir'"),
        ("stray", "unknown argument 'stray'"),
        ("--workdir", "--workdir: expected one argument"),
    ],
)
def test_a_wrong_argument_is_named(config_file, argument, words):
    with pytest.raises(UserError) as caught:
        parse(config_file, argument)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("def get_config(preset='tiny'):\n    return missing\n", "line 2: NameError: name 'missing'"),
        ("import no_such_module_here\n", "line 1: ModuleNotFoundError"),
        ("def get_config(:\n", "line 1: SyntaxError"),
        ("x = 1\n", "defines no function get_config"),
        ("def get_config(preset='tiny'):\n    return {}\n", "returned dict, not a ConfigDict"),
    ],
)
def test_a_config_file_that_fails_is_named(tmp_path, text, words):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        parse(path)
    assert str(path) in str(caught.value) and words in str(caught.value)


def test_an_unknown_preset_lists_the_presets(config_file):
    with pytest.raises(UserError, match="unknown preset 'papr'; this file offers: tiny, paper"):
        parse(config_file + ":papr")
    with pytest.raises(ValueError, match="offers: a, b"):
        check_preset("c", ("a", "b"))


def test_a_missing_config_file_is_named(config_file):
    with pytest.raises(UserError, match="no config given"):
        parse_command_line([])
    with pytest.raises(UserError) as caught:
        parse(config_file.replace("example", "exmaple"))
    assert "exmaple.py'; did you mean" in str(caught.value) and config_file in str(caught.value)


def test_other_options(config_file):
    seeds = Option("num-seeds", "how many", default=1, type=int)
    split = Option("split", "which", default="train", choices=("train", "held_out"))
    arguments = [f"--config={config_file}", "--num-seeds=4"]
    _, options = parse_command_line(arguments, extra=(seeds, split))
    assert vars(options) == {"config": config_file, "num_seeds": 4, "split": "train"}
    for wrong in ("--num-seeds=x", "--split=test"):
        with pytest.raises(UserError, match=wrong.split("=")[0]):
            parse_command_line([*arguments, wrong], extra=(seeds, split))


def test_help_lists_flags_and_keys(config_file, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_command_line(["--help", f"--config={config_file}"], description="What the job does.")
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    for words in ("What the job does.", "--workdir", "--config.optimizer.learning_rate=0.001"):
        assert words in shown


SCRIPT = """
import sys
from stepreward.config import parse_command_line
from stepreward.errors import UserError, launcher

def main():
    kind = sys.argv[1]
    if kind == "user": raise UserError("first\\n  second")
    if kind == "missing": open("nowhere.txt")
    if kind == "check": parse_command_line(["--config=nowhere.py"])
    if kind == "own":
        from stepreward.config import check_preset
        check_preset("x", ["a"])
    if kind == "fault": int("x")
    if kind == "interrupt": raise KeyboardInterrupt
    if kind == "code": return 3

launcher(main)
"""


@pytest.mark.parametrize(
    "kind, code, shown",
    [
        ("user", 2, "error: first second\n"),
        ("missing", 2, "error: no such file: 'nowhere.txt'\n"),
        ("check", 2, "error: no config file 'nowhere.py'\n"),
        ("own", 2, "error: unknown preset 'x'; this file offers: a\n"),
        ("interrupt", 130, "interrupted\n"),
        ("code", 3, ""),
        ("fine", 0, ""),
    ],
)
def test_launcher_ends_with_one_line(kind, code, shown):
    done = subprocess.run([sys.executable, "-c", SCRIPT, kind], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", shown)


def test_launcher_keeps_the_traceback_of_a_fault():
    done = subprocess.run([sys.executable, "-c", SCRIPT, "fault"], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "invalid literal" in done.stderr


@pytest.fixture
def open_config(tmp_path):
    path = tmp_path / "open.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict({'environment': {'name': 'x', 'options': {'held_out': 'seen'}}, 'other': {}})\n"
    )
    return str(path)


@pytest.mark.parametrize(
    "arguments, options",
    [
        (["options.steps=5"], {"held_out": "seen", "steps": 5}),
        (["options.held_out=3"], {"held_out": "3"}),
        (["options.actions={'go left': 0, 'b': None}"], {"held_out": "seen", "actions": {"go left": 0, "b": None}}),
        (["options.kwargs.mode=ansi", "options.kwargs.fast"], {"held_out": "seen", "kwargs": {"mode": "ansi", "fast": True}}),
        (["options={'held_out': 'unseen', 'types': ['a', 'b']}"], {"held_out": "unseen", "types": ("a", "b")}),
        (["options.kwargs={'a': 1}", "options.kwargs={'b': 2}"], {"held_out": "seen", "kwargs": {"b": 2}}),
        (["options.rate=1e-3", "options.rate=2"], {"held_out": "seen", "rate": 2.0}),
    ],
)
def test_an_open_group_takes_keys_that_it_does_not_hold(open_config, tmp_path, arguments, options):
    config, _ = parse(open_config, *(f"--config.environment.{argument}" for argument in arguments))
    assert config.environment.options.to_dict() == options and config.is_locked
    save_config(config, tmp_path / "config.json")
    loaded = load_config(tmp_path / "config.json")
    assert loaded.environment.options.to_dict() == options and config_difference(loaded, config) == []
    assert TrackedConfig(config).environment.options.to_dict() == options


@pytest.mark.parametrize(
    "argument, words",
    [
        ("environment.options=5", "write environment.options.NAME=VALUE"),
        ("environment.options.=5", "has an empty name"),
        ("environment.options.a..b=5", "has an empty name"),
        ("environment.options.a={1: 2}", "has the name 1: a name must be a non-empty string without dots"),
        ("environment.options.a={'b.c': 2}", "has the name 'b.c'"),
        ("environment.options.a=({'b': 2},)", "give numbers, strings"),
        ("environment.options.a=1j", "give numbers, strings"),
        ("environment.optins.a=1", "no key 'environment.optins.a'"),
        ("other.a=1", "no key 'other.a'"),
    ],
)
def test_what_an_open_group_cannot_hold_is_named(open_config, argument, words):
    with pytest.raises(UserError) as caught:
        parse(open_config, f"--config.{argument}")
    assert words in str(caught.value)


def test_help_names_the_open_group(open_config, capsys):
    with pytest.raises(SystemExit):
        parse(open_config, "--help")
    assert "--config.environment.options.NAME=VALUE" in capsys.readouterr().out


def test_save_and_load(config_file, tmp_path):
    config, _ = parse(config_file)
    path = tmp_path / "run" / "config.json"
    save_config(config, path)
    assert [p.name for p in path.parent.iterdir()] == ["config.json"]
    loaded = load_config(path)
    assert loaded.is_locked and leaves(loaded) == leaves(config) and config_difference(loaded, config) == []


def test_config_difference_names_each_key():
    old = ConfigDict({"a": 1, "g": {"x": (1, 2), "gone": 0}})
    new = ConfigDict({"a": 1.0, "g": {"x": [1, 2], "fresh": "s"}})
    assert config_difference(old, new) == ["a: 1 -> 1.0", "g.gone: 0 -> (absent)", "g.fresh: (absent) -> 's'"]


def test_save_and_load_refuse_what_is_not_a_config(tmp_path):
    with pytest.raises(ValueError, match="'g.f' holds a function"):
        save_config(ConfigDict({"g": {"f": lambda: 0}}), tmp_path / "config.json")
    with pytest.raises(FileNotFoundError, match="no saved config"):
        load_config(tmp_path / "config.json")
    for text in ("{", "[1]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="is not"):
            load_config(tmp_path / "config.json")


def tracked():
    return TrackedConfig(ConfigDict({"a": 1, "b": {"c": 2, "d": {"e": (3,), "f": 4}}, "g": {"h": 5}}))


def test_tracked_config_records_reads_by_attribute_and_item():
    config = tracked()
    assert unread_keys(config) == ["a", "b.c", "b.d.e", "b.d.f", "g.h"]
    assert config.a == 1 and config["b"].d["e"] == (3,)
    assert unread_keys(config) == ["b.c", "b.d.f", "g.h"]
    assert unread_keys(config.b) == ["b.c", "b.d.f"]
    assert dict(**config.g) == {"h": 5} and config.b.to_dict() == {"c": 2, "d": {"e": (3,), "f": 4}}
    assert unread_keys(config) == []


def test_looking_without_reading_records_nothing(tmp_path):
    config = tracked()
    assert "a" in config and len(config) == 3 and list(config.b) == ["c", "d"] and config.untracked.a == 1
    save_config(config, tmp_path / "config.json")
    repr(config)
    assert len(unread_keys(config)) == 5


def test_tracked_config_names_a_missing_key():
    with pytest.raises(AttributeError, match=r"no key 'b.dd'; did you mean 'd'"):
        tracked().b.dd
    with pytest.raises(KeyError):
        tracked()["z"]
    assert tracked().get("z", 9) == 9 and not hasattr(tracked(), "z")


def test_tracked_config_resolves_references():
    width = config_dict.FieldReference(4)
    config = TrackedConfig(ConfigDict({"width": width, "model": {"hidden": width * 2}}))
    assert config.model.hidden == 8 and unread_keys(config) == ["width"]
