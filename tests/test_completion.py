"""Completion of the command line: the words, and bash itself with the printed script."""

import shutil
import subprocess
import sys

import pytest

from stepreward import completion
from stepreward.cli import JOBS
from stepreward.completion import SHELLS, script, words
from stepreward.errors import UserError

CASES = [
    ("stepreward tr", ["train"]),
    ("stepreward completion ", list(SHELLS)),
    ("stepreward train --config=istar_vi", ["istar_virtualhome", "istar_visual_sokoban"]),
    ("stepreward train --st", ["--stage="]),
    ("stepreward train --stage=ex", ["explore"]),
    ("stepreward train --config=istar_sokoban --config.tr", ["--config.tracker=", "--config.train."]),
    ("stepreward train --config=istar_sokoban --config.checkpoint.k", ["--config.checkpoint.keep="]),
    ("stepreward export --pri", ["--private"]),
    ("stepreward nothing ", []),
]


@pytest.mark.parametrize("line, expected", CASES)
def test_words(line, expected):
    found = words(line.split(" ")[1:], tuple(JOBS))
    assert [word.partition("=")[2] or word if "=" in line.split()[-1] else word for word in found] == sorted(expected)


def test_every_job_completes_its_flags():
    for job in JOBS:
        found = words([job, ""], tuple(JOBS))
        assert found and (job == "completion" or "--help" in found)
    assert "--workdir=" in words(["evaluate", ""], tuple(JOBS)) and "--quiet" in words(["train", ""], tuple(JOBS))


def test_a_config_that_cannot_be_read_completes_nothing():
    assert words(["train", "--config=nothing", "--config.a"], tuple(JOBS)) == []


def test_another_shell_is_an_error():
    with pytest.raises(UserError, match="bash, zsh, fish"):
        script("csh")


@pytest.fixture
def on_path(tmp_path, root):
    """A folder with the command `stepreward` of this checkout."""
    command = tmp_path / "stepreward"
    command.write_text(f'#!/bin/sh\ncd "{root}" && exec "{sys.executable}" -m stepreward.cli "$@"\n')
    command.chmod(0o755)
    return tmp_path


BREAKS = """
complete_line() {  # as readline calls the function: the line is cut into words at blanks, = and :
    COMP_LINE="$1" COMP_POINT=${#1} COMP_WORDS=() COMP_CWORD=0 COMPREPLY=()
    local rest="$1" word=""
    while [ -n "$rest" ]; do
        case "${rest:0:1}" in
            " ") [ -n "$word" ] && COMP_WORDS+=("$word"); word="" ;;
            "="|":") [ -n "$word" ] && COMP_WORDS+=("$word"); COMP_WORDS+=("${rest:0:1}"); word="" ;;
            *) word+="${rest:0:1}" ;;
        esac
        rest="${rest:1}"
    done
    [ -n "$word" ] || [ "${1: -1}" = " " ] && COMP_WORDS+=("$word")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    compopt() { :; }
    _stepreward
    printf '%s\\n' "${COMPREPLY[@]}"
}
"""


@pytest.mark.parametrize("line, expected", [case for case in CASES if case[0].split()[-1] not in ("--pri", "completion")])
def test_bash_completes(line, expected, on_path):
    run = f'PATH="{on_path}:$PATH"; {script("bash")}\n{BREAKS}\ncomplete_line "{line}"'
    done = subprocess.run(["bash", "-c", run], capture_output=True, text=True, timeout=120)
    assert done.stderr == "" and sorted(filter(None, done.stdout.split("\n"))) == sorted(expected)


@pytest.mark.parametrize("shell, check", [("zsh", ["zsh", "-n"]), ("fish", ["fish", "--no-execute"])])
def test_the_script_is_read_by_its_shell(shell, check, tmp_path):
    if shutil.which(check[0]) is None:
        pytest.skip(f"{shell} is not installed here")
    (tmp_path / "script").write_text(script(shell))
    assert subprocess.run([*check, str(tmp_path / "script")]).returncode == 0


def test_the_job_prints_the_script(monkeypatch, capsys):
    from stepreward.launch import completion as job

    monkeypatch.setattr(sys, "argv", ["completion", "bash"])
    assert job.main() == 0 and capsys.readouterr().out == completion.BASH
