"""Serves a run's checkpoint, or a pretrained model, with the chat interface of OpenAI's clients.

    python launch/serve.py --workdir=runs/a [--which=policy] [--step=120] [--port=8000]
    python launch/serve.py --model=models/Qwen2.5-1.5B-Instruct [--dtype=bfloat16]

After SIGTERM or an interrupt, it answers the running requests and exits with code 143 or 130. See docs/serve.md.
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
    Option("model", "instead of --workdir: folder of a pretrained model, a GGUF file, or the model's name in the hub's local cache"),
    Option("step", "checkpoint to serve (default: the latest)", type=int),
    Option("which", "model of the run: the policy, the PRM or the initial policy", default="policy", choices=("policy", "prm", "initial")),
    Option("dtype", "dtype of a pretrained model's weights", default="bfloat16", choices=("bfloat16", "float32")),
    Option("host", "address to listen on; addresses other than loopback are reachable from outside", default="127.0.0.1"),
    Option("port", "port to listen on; 0 takes a free one", default=8000, type=int),
    Option("name", "the model's name for clients (default: the folder's name)"),
    Option("max-length", "tokens of a conversation, answer included (default: the run's max_row_tokens, or 4096)", type=int),
    Option("max-tokens", "tokens of the longest answer (default: the run's max_answer_tokens, or half of --max-length)", type=int),
    Option("max-rows", "answers decoded at once", default=8, type=int),
    Option("max-waiting", "requests that may wait; further ones get 503", default=64, type=int),
    Option("timeout", "seconds that a request may take, waiting included", default=600.0, type=float),
    Option("grace", "seconds to finish running requests after a signal to stop", default=30.0, type=float),
    Option("api-key-env", "environment variable with the key that clients must send"),
    Option("ignore-response-format", "answer requests for JSON with text", default=False, type=bool),
)


def main() -> int | None:
    options = parse_arguments(sys.argv[1:], description=__doc__, options=OPTIONS)
    if (options.workdir is None) == (options.model is None):
        raise UserError("give --workdir=RUN or --model=FOLDER, but only one of them; --help lists the flags")
    for name in ("max_length", "max_tokens", "max_rows", "max_waiting", "timeout", "grace"):
        value = getattr(options, name)
        if value is not None and not 1 <= value < math.inf:
            raise UserError(f"--{name.replace('_', '-')}={value}: give at least 1")
    api_key = None
    if options.api_key_env is not None:
        api_key = os.environ.get(options.api_key_env, "")
        if not api_key:
            raise UserError(f"--api-key-env={options.api_key_env}: that environment variable is not set")
    for package in ("uvicorn", "starlette"):  # checked before a model is loaded in vain
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
