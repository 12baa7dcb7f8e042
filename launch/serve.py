"""Serves a run's checkpoint, or a pretrained model, behind the chat interface of OpenAI's clients.

    python launch/serve.py --workdir=runs/a [--which=policy] [--step=120] [--port=8000]
    python launch/serve.py --model=models/Qwen2.5-1.5B-Instruct [--dtype=bfloat16]

Ends with 143 after SIGTERM and with 130 after an interrupt, once the requests that run are answered. See docs/serve.md.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys

from stepreward.config import Option, parse_arguments
from stepreward.envs.extras import install_command
from stepreward.errors import UserError, launcher

OPTIONS = (
    Option("workdir", "folder of a run"),
    Option("model", "instead: folder of a pretrained model, or its name in the hub's local cache"),
    Option("step", "checkpoint of the run (default: the latest)", type=int),
    Option("which", "whose parameters of the run", default="policy", choices=("policy", "prm", "initial")),
    Option("dtype", "of a pretrained model", default="bfloat16", choices=("bfloat16", "float32")),
    Option("host", "address to listen on; others than loopback are reachable from outside", default="127.0.0.1"),
    Option("port", "port to listen on; 0 takes a free one", default=8000, type=int),
    Option("name", "what clients call the model (default: the folder's name)"),
    Option("max-length", "tokens of a conversation with its answer (default: the run's rows, or 4096)", type=int),
    Option("max-tokens", "tokens of the longest answer (default: the run's, or half of --max-length)", type=int),
    Option("max-rows", "answers decoded at once", default=8, type=int),
    Option("max-waiting", "requests that may wait; more get 503", default=64, type=int),
    Option("timeout", "seconds that a request may take", default=600.0, type=float),
    Option("grace", "seconds to finish running requests when asked to stop", default=30.0, type=float),
    Option("api-key-env", "environment variable that holds the key which clients must send"),
    Option("ignore-response-format", "let requests for JSON pass as requests for text", default=False, type=bool),
)


def main() -> int | None:
    options = parse_arguments(sys.argv[1:], description=__doc__, options=OPTIONS)
    if (options.workdir is None) == (options.model is None):
        raise UserError("give --workdir=RUN or --model=FOLDER, one of them; --help lists the flags")
    for name in ("max_length", "max_tokens", "max_rows", "max_waiting", "timeout", "grace"):
        value = getattr(options, name)
        if value is not None and not 1 <= value < math.inf:
            raise UserError(f"--{name.replace('_', '-')}={value}: give at least 1")
    api_key = None
    if options.api_key_env is not None:
        api_key = os.environ.get(options.api_key_env, "")
        if not api_key:
            raise UserError(f"--api-key-env={options.api_key_env}: that environment variable is not set")
    for package in ("uvicorn", "starlette"):  # before a model is loaded for nothing
        if importlib.util.find_spec(package) is None:
            raise UserError(f"serving needs {package}: {install_command('serve')}")
    from stepreward.serve import load_folder, load_run, serve
    from stepreward.serve.server import Settings

    limits = dict(name=options.name, max_length=options.max_length, max_tokens=options.max_tokens)
    if options.model is not None:
        served = load_folder(options.model, dtype=options.dtype, **limits)
    else:
        served = load_run(options.workdir, options.step, options.which, **limits)
    serve(
        served,
        Settings(
            options.host,
            options.port,
            api_key,
            options.max_rows,
            options.max_waiting,
            options.timeout,
            options.grace,
            options.ignore_response_format,
        ),
    )


if __name__ == "__main__":
    launcher(main)
