"""Every command in the documentation works: it runs, or its arguments are accepted, or the text marks what it needs."""

import argparse
import importlib.util
import math
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from documented_commands import in_markdown, in_repository

from stepreward import cli, config, credit, preference
from stepreward.config import installed_configs, leaves, load_config_file
from stepreward.configs.common.base import base_config
from stepreward.errors import UserError
from stepreward.tpu import slices
from stepreward.training import fitting

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = in_repository(ROOT)
NAMES = [f"{c.where} {c.text[:60]}" for c in COMMANDS]
CHECKED = ("python", "python3", "pip", "stepreward", "bash", "sh")  # as far as their arguments at least, marked or not
JOBS = {name: ROOT / "launch" / f"{name.replace('-', '_')}.py" for name in cli.JOBS}


class Parsed(Exception):
    """A command line was taken: everything behind it is what the command does."""


@pytest.fixture
def check(monkeypatch):
    """`check(words)`: checks a command as far as its arguments, with the parsers of the scripts themselves."""

    def stops(real):
        def parse(*arguments, **settings):
            raise Parsed(real(*arguments, **settings))

        return parse

    def check(words):
        program, *rest = words
        {"python": python, "python3": python, "pip": pip, "stepreward": stepreward, "bash": shell, "sh": shell}[program](rest)

    def python(words):
        if words[0] == "-m":
            assert importlib.util.find_spec(words[1]), f"there is no module {words[1]}"
        elif "…" in words[0]:
            assert (ROOT / words[0].split("…")[0]).is_dir()
        else:
            script(ROOT / words[0], words[1:])

    def stepreward(words):
        assert words[0] in JOBS
        script(JOBS[words[0]], words[1:])

    def script(path, words):
        assert path.is_file(), f"there is no {path.relative_to(ROOT)}"
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [str(path), *words])
        monkeypatch.syspath_prepend(str(path.parent))
        if any("=…" in word for word in words):
            words = [word for word in words if "=…" not in word]
            flags = [word.split("=")[0] for word in sys.argv[1:] if "=…" in word]
            assert all(
                flag in path.read_text(encoding="utf-8")
                or f'Option("{flag[2:]}"' in path.read_text(encoding="utf-8")
                or flag in ("--config", "--workdir")
                for flag in flags
            )
            return
        if path.parent == ROOT / "launch" and path.name == "train.py" and not words:
            return  # "the same command", with its arguments above
        spec = importlib.util.spec_from_file_location(f"documented_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        try:
            spec.loader.exec_module(module)
        except ModuleNotFoundError as error:
            if error.name.split(".")[0] in ("stepreward", "configs", "launch", "envs"):
                raise
            pytest.skip(f"needs {error.name}")
        for name in ("parse_command_line", "parse_arguments"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, stops(getattr(config, name)))
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stops(argparse.ArgumentParser.parse_args))
        # A placeholder's folder is not there, and neither is the user's own module: only the arguments are looked at.
        with pytest.raises((Parsed, SystemExit)) as end:
            module.main()
        assert end.type is Parsed or end.value.code in (0, None)
        if end.type is Parsed and isinstance(end.value.args[0], tuple):  # a config, and the job's options
            fits(*end.value.args[0])

    def fits(c, options):
        """A stage is one that the run begins with; a preset fits the slice that it is compiled for."""
        if getattr(options, "stage", None):
            assert options.stage == "sft", "the stages before it are to be run first: show the first one"
        if getattr(options, "topology", None):
            _, chip, shape = slices.parse(options.topology)
            count = math.prod(shape)
            found, _ = fitting.fit(c, fitting.Devices(count, chip.hbm, options.topology)) if c.mesh.fit else (c, "")
            assert found.train.chunk_rows % count == found.rollout.max_rows % count == 0

    def pip(words):
        from packaging.requirements import Requirement

        if words[0] != "install":
            return
        extras = re.findall(r'^        "([\w-]+)": ', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
        for word in words[1:]:
            own = re.fullmatch(r"(?:\.|stepreward|source)(?:\[([\w,-]+)\]|\{extra\})?", word)
            if own:
                assert set((own[1] or "").split(",")) <= {*extras, ""}, f"setup.py has no extra {own[1]}"
            elif not word.startswith("-"):
                Requirement(word)

    def shell(words):
        assert subprocess.run(["bash", "-n", str(ROOT / words[0])]).returncode == 0

    return check


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_the_command_is_taken_or_marked(command, check):
    if command.program in CHECKED:
        check(command.words)
    else:
        assert command.needs, "no test checks this command: mark what it needs, see tests/documented_commands.py"


def test_commands_are_found_where_they_stand():
    assert len(COMMANDS) > 150
    text = "\n".join(
        ["Say `python -m pytest` or `launch/x.py --a=1`.", "", "<!-- needs: a machine -->", "```", "A=1 python x.py [--b=c|d] \\", "  --e  # why",
         "text && python y.py", "```", "", "    pip install z    # now", "", "<!-- needs: more -->", "Some `curl -N", "x` and `curl y`.", "", "`curl z z`",
         "```python", "pip install no", "```"]
    )  # fmt: skip
    found = [(c.where, c.words, c.needs) for c in in_markdown(text, "t")]
    assert found == [
        ("t:1", ("python", "-m", "pytest"), ""), ("t:1", ("python", "launch/x.py", "--a=1"), ""),
        ("t:5", ("python", "x.py", "--b=c", "--e"), "a machine"), ("t:7", ("python", "y.py"), "a machine"),
        ("t:10", ("pip", "install", "z"), ""), ("t:13", ("curl", "-N", "x"), "more"), ("t:14", ("curl", "y"), "more"),
        ("t:16", ("curl", "z", "z"), ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words, why",
    [
        (["python", "launch/train.py", "--config=configs/istar_sokoban.py", "--config.policy.learning_rat=1"], "learning_rate"),
        (["python", "launch/train.py", "--config=configs/istar_sokoban.py:huge"], "huge"),
        (["python", "launch/evaluate.py", "--workdirs=runs/a"], "--workdir"),
        (["stepreward", "train", "--config=istar_socoban"], "istar_sokoban"),
        (["python", "benchmarks/pool.py", "--quik"], "2"),
    ],
)
def test_an_untrue_command_is_noticed(check, words, why):
    with pytest.raises((UserError, AssertionError, SystemExit)) as error:
        check(words)
    assert why in str(error.value)


@pytest.mark.parametrize("words", [["python", "launch/gone.py"], ["pip", "install", "-e", ".[gone]"], ["stepreward", "gone"],
                                   ["python", "-m", "stepreward.gone"]])  # fmt: skip
def test_what_is_not_there_is_noticed(check, words):
    with pytest.raises(AssertionError):
        check(words)


# --- Keys, files and extras that the text names ---

TEXTS = [
    path
    for folder in (".", "docs", "docs/api", "docs/environments", "docs/guides", "launch/cloud")
    for path in sorted((ROOT / folder).glob("*.md"))
]
SOURCES = [*TEXTS, *(path for folder in ("configs", "launch", "stepreward", "experiments", "benchmarks", "envs")
                     for path in sorted((ROOT / folder).rglob("*.py")))]  # fmt: skip
KNOWN = leaves(base_config())
GROUPS = {key.split(".")[0] for key in KNOWN if "." in key}


def is_key(key):
    """Whether it is a key of a config, or a group of keys; an environment's options are its own, a method's the fields of its class."""
    if key.startswith("credit.schedules."):
        return any(key.removeprefix("credit.schedules.") in credit.make(name).schedulable() for name in credit.names())
    if key.startswith("mixture.environments."):  # of an environment: the keys of the group `environment`, and its own
        of_entry = key.split(".", 3)[3:]
        return not of_entry or of_entry[0] in ("share", "outcome", "max_steps", "history") or is_key(f"environment.{of_entry[0]}")
    if key.startswith("credit.options."):
        return key.removeprefix("credit.options.") in {field.name for name in credit.names() for field in fields(credit.make(name))}
    if key.startswith("preference.options."):
        return key.removeprefix("preference.options.") in {f.name for name in preference.names() for f in fields(preference.make(name))}
    return (
        key in KNOWN
        or key in ("credit.options", "credit.schedules", "mixture.environments")
        or any(known.startswith(f"{key}.") for known in KNOWN)
        or key.startswith("environment.options")
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_override_that_is_named_exists(path):
    named = set(re.findall(r"--config\.([a-z]\w*(?:\.\w+)+)(?![\w.]*\{)", path.read_text(encoding="utf-8")))
    assert [key for key in sorted(named) if not is_key(key)] == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_key_in_inline_code_exists(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(rf"`((?:{'|'.join(sorted(GROUPS))})(?:\.[a-z_]\w*)+)(?:=[^`]*)?`", text))
    files = {key for key in named if key.rsplit(".", 1)[1] in ("py", "md", "json", "jsonl", "xz")}
    assert [key for key in sorted(named - files) if not is_key(key)] == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_file_and_extra_that_is_named_is_there(path):
    text = path.read_text(encoding="utf-8")
    folders = "launch|configs|stepreward|envs|docs|tests|benchmarks|experiments|notebooks"
    for name in set(re.findall(rf"(?<![\w/.])((?:{folders})/[\w./-]*\w\.(?:py|md|sh|yaml|ipynb|png))\b", text)):
        assert (ROOT / name).is_file(), f"names {name}"
    for link in re.findall(r"\]\((?!https?:)([\w./-]+)(?:#[\w-]+)?\)", text):
        assert (path.parent / link).exists(), f"links to {link}"
    extras = re.findall(r'^        "([\w-]+)": ', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
    for names in re.findall(r"(?:'\.|stepreward)\[([\w,-]+)\]", text):
        assert set(names.split(",")) <= set(extras), f"names the extras {names}"


def test_every_installed_experiment_is_named_by_its_file():
    for name, path in installed_configs().items():
        assert leaves(load_config_file(name)) == leaves(load_config_file(f"configs/{path.name}" if Path.cwd() == ROOT else str(path)))


# --- Commands that are run ---

# Of docs/commands.md, in this order, on one workdir; what is changed so that they take seconds.
RUN = (
    "python launch/train.py --config=configs/istar_sokoban.py --workdir=runs/a",
    "python launch/train.py --config=configs/istar_sokoban.py --help",
    "python launch/evaluate.py --workdir=runs/a",
    "python launch/export.py --workdir=runs/istar_sokoban_qwen2.5-1.5b",
    "python launch/train.py --config=configs/spa_sokoban.py --workdir=runs/b --stage=sft",
    "python launch/train.py --config=configs/spa_sokoban.py --workdir=runs/c",
)


def micro(words, folder):
    """The same command at micro size, with its files in a folder of the test."""
    changes = {"runs/istar_sokoban_qwen2.5-1.5b": "runs/a", "env_steps=100000": "env_steps=100"}
    for word in words:
        for old, new in changes.items():
            word = word.replace(old, new)
        word = re.sub(r"(--config=configs/\w+\.py)$", r"\1:micro", word)
        yield re.sub(r"=((?:runs|models)/.*)", rf"={folder}/\1", word)


@pytest.fixture(scope="module")
def page_runs(tmp_path_factory):
    """`run(command)`: runs a command of docs/commands.md, in this process; what it returned, and its words."""
    folder = tmp_path_factory.mktemp("page")
    shown = [c for c in COMMANDS if c.where.startswith("docs/commands.md")]

    def run(start, *more):
        (command, *_) = [c for c in shown if " ".join(c.words).startswith(start)]
        words = [*micro(command.words, folder), *more]
        spec = importlib.util.spec_from_file_location(f"run_{Path(words[1]).stem}", ROOT / words[1])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            patch.setattr(sys, "argv", words[1:])
            try:
                return folder, module.main()
            except SystemExit as end:
                return folder, end.code

    return run


def test_the_page_s_run_is_trained_evaluated_and_exported(page_runs, capsys):
    folder, code = page_runs(RUN[0])
    assert code == 0 and (folder / "runs/a/report.html").is_file()
    assert page_runs(RUN[1])[1] == 0 and "--config.policy.learning_rate" in capsys.readouterr().out
    assert not page_runs(RUN[2], "--episodes=8")[1] and "95 % interval" in capsys.readouterr().out
    assert page_runs(RUN[3])[1] == 0 and (folder / "models/mine/config.json").is_file()


def test_the_page_s_stages_are_run_one_by_one_and_taken_by_another_arm(page_runs):
    small = ("--config.sft.updates=2", "--config.train.env_steps=40", "--config.eval.final_episodes=4", "--config.eval.episodes=4")
    assert page_runs(RUN[4], *small)[1] == 0
    folder, code = page_runs(RUN[4], *small, "--stage=explore")  # the next one
    assert code == 0 and (folder / "runs/b/exploration").is_dir() and not (folder / "runs/b/stages/estimator").exists()
    assert page_runs(RUN[5], *small)[1] == 0 and (folder / "runs/c/report.html").is_file()


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the libtpu wheel, no TPU")
def test_the_page_s_published_model_is_planned_for_its_slice():
    (command,) = [c for c in COMMANDS if c.where.startswith("docs/commands.md") and "compile_tpu" in c.text]
    done = subprocess.run([sys.executable, *command.words[1:], "--list"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "fitted to 16 devices (v5e:4x4, 15.75 GiB each)" in done.stdout and "policy/update" in done.stdout
    smaller = shlex.join(command.words[1:]).replace("4x4", "1x1")
    done = subprocess.run([sys.executable, *shlex.split(smaller)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "qwen2.5-1.5b would fit here" in done.stderr
