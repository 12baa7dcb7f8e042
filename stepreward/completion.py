"""Completion of the command line in bash, zsh and fish: jobs, their flags, the shipped experiments and every config key.

    stepreward completion bash     # prints a script; source it from ~/.bashrc

A script asks `stepreward completion words WORD…` for the words that may follow. The answer imports neither jax nor a model, so it comes at once. It is our
own because argcomplete and shtab complete the flags of an argparse parser, and `--config.KEY=` is none: its keys are those of the experiment in `--config`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from stepreward.errors import UserError

SHELLS = ("bash", "zsh", "fish")

BASH = """_stepreward() {
    COMPREPLY=()
    local line words=("${COMP_LINE:0:COMP_POINT}") cut
    read -ra words <<< "${COMP_LINE:0:COMP_POINT}"
    [[ "${COMP_LINE:0:COMP_POINT}" == *" " ]] && words+=("")
    # bash has cut the current word at = and :, and replaces only what follows the last of them
    cut="${words[-1]%"${COMP_WORDS[COMP_CWORD]}"}"
    [[ "${COMP_WORDS[COMP_CWORD]}" == [=:] ]] && cut="${words[-1]}"
    while IFS= read -r line; do
        COMPREPLY+=("${line#"$cut"}")
    done < <(stepreward completion words "${words[@]:1}" 2>/dev/null)
    [[ "${COMPREPLY[*]}" == *[=.] ]] && compopt -o nospace
    return 0
}
complete -o default -F _stepreward stepreward
"""

ZSH = """#compdef stepreward
_stepreward() {
    local -a found
    found=("${(@f)$(stepreward completion words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    compadd -Q -S '' -- ${found}
    [[ -n "${found}" ]] || _files
}
compdef _stepreward stepreward
"""

FISH = """function __stepreward_words
    set -l words (commandline -opc) (commandline -ct)
    stepreward completion words $words[2..-1] 2>/dev/null
end
complete -c stepreward -f -a '(__stepreward_words)'
"""

SCRIPTS = dict(zip(SHELLS, (BASH, ZSH, FISH)))


def script(shell: str) -> str:
    """Returns the completion script of a shell. Raises a UserError for another shell."""
    if shell not in SCRIPTS:
        raise UserError(f"there is no completion for {shell!r}; the shells are {', '.join(SHELLS)}.")
    return SCRIPTS[shell]


def words(before: Sequence[str], jobs: Sequence[str]) -> list[str]:
    """Returns the words that may stand where the last of `before` is being written, sorted.

    Args:
      before: the words after the program's name; the last one is unfinished, and may be "".
      jobs: the jobs of the command line.
    """
    *done, current = before or ("",)
    if not done:
        found = [*jobs, "--help", "--version"]
    elif done[0] == "completion":
        found = list(SHELLS)
    elif done[0] not in jobs:
        found = []
    else:
        found = _flags(done[0], done, current)
    return sorted(word for word in found if word.startswith(current))


def _flags(job: str, done: Sequence[str], current: str) -> list[str]:
    from stepreward.config import installed_configs

    if current.startswith("--config="):
        return [f"--config={name}" for name in installed_configs()]
    options = _options(job)
    for option in options:
        if option.choices and current.startswith(f"--{option.name}="):
            return [f"--{option.name}={choice}" for choice in option.choices]
    found = [f"--{option.name}" + ("" if option.type is bool else "=") for option in options if f"--{option.name}" not in done]
    config = next((word.removeprefix("--config=") for word in done if word.startswith("--config=")), None)
    if config is None:
        return [*found, "--config=", "--help"] if _takes_config(job) else [*found, "--help"]
    if current.startswith("--config."):
        return _next_keys(config, current)
    return [*found, "--config.", "--help"]


def _next_keys(config: str, current: str) -> list[str]:
    """The keys of a config that begin as `current` does, up to the next dot, so that a group is chosen before its keys."""
    from stepreward.config import leaves, load_config_file

    try:
        keys = leaves(load_config_file(config))
    except (UserError, ValueError):
        return []
    depth = current.count(".")
    found = {tuple(key.split(".")[:depth]) for key in keys}
    return ["--config." + ".".join(parts) + ("=" if ".".join(parts) in keys else ".") for parts in found]


def _options(job: str) -> tuple:
    """The flags of a job, besides `--config`."""
    return tuple(getattr(_module(job), "OPTIONS", ()))


def _takes_config(job: str) -> bool:
    return hasattr(_module(job), "parse_command_line")


def _module(job: str):
    return importlib.import_module(f"stepreward.launch.{job.replace('-', '_')}")
