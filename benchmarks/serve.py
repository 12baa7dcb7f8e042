"""Measures the server's requests per second: eight concurrent clients, compared with the same requests one after another.

    python benchmarks/serve.py [--model=llama-tiny] [--clients=8] [--tokens=64] [--prompt=200] [--json=serve.json]

The weights are random, and the answers greedy. Requests go through a loopback socket. Both arms run alternately in one process and
should get equal answers.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import sys
import tempfile
from pathlib import Path

import jax
from measure import MODELS, in_turn, machine, model_config, ratio, show_ratio, spread, summary, timed, write_json

from stepreward.config import Option, parse_arguments
from stepreward.errors import UserError, launcher
from stepreward.models import decoder
from stepreward.models.tokenizer import train_symbol_tokenizer
from stepreward.rollout.chat import Chat
from stepreward.serve import Served, running
from stepreward.serve.conversation import Conversations
from stepreward.serve.engine import make_engine
from stepreward.serve.server import Settings

OPTIONS = (
    Option("model", f"shape of the model, one of: {', '.join(MODELS)}", default="llama-tiny"),
    Option("dtype", "dtype of weights and computation", default="float32", choices=("float32", "bfloat16")),
    Option("clients", "number of concurrent requests", default=8, type=int),
    Option("tokens", "number of tokens in each answer", default=64, type=int),
    Option("prompt", "number of characters in each prompt, one token each", default=200, type=int),
    Option("repeats", "timed runs of each arm", default=5, type=int),
    Option("json", "file to write the figures to"),
    Option("quick", "small and fast, as a smoke test", default=False, type=bool),
)


def main() -> int:
    options = parse_arguments(sys.argv[1:], description=__doc__, options=OPTIONS)
    if options.quick:
        options.repeats, options.tokens, options.clients = 1, 4, 2
    for name in ("clients", "tokens", "prompt", "repeats"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)} must be at least 1.")
    with running(_served(options), Settings(port=0, max_rows=options.clients)) as address:
        host = address.removeprefix("http://")
        bodies = [_body(index, options) for index in range(options.clients)]
        answers = {}

        def together():
            with concurrent.futures.ThreadPoolExecutor(options.clients) as pool:
                answers["together"] = list(pool.map(lambda body: _ask(host, body), bodies))

        def alone():
            answers["alone"] = [_ask(host, body) for body in bodies]

        arms = {"together": lambda: timed(together), "alone": lambda: timed(alone)}
        # The requests arrive in random order, and each combination of sizes compiles once, so several warm-ups are needed.
        times = in_turn(arms, options.repeats, warm_up=1 if options.quick else 4)
    results = {name: summary(found) for name, found in times.items()}
    for r in results.values():
        r["requests_per_s"] = options.clients / r["seconds"]
    ratios = {"alone / together": ratio(times["alone"], times["together"])}
    same = sum(one == other for one, other in zip(answers["together"], answers["alone"]))
    print(f"{options.model} {options.dtype}, {options.prompt} + {options.tokens} tokens, {options.clients} requests, {machine()}")
    for name, r in results.items():
        print(f"{name:>10} {r['requests_per_s']:8.2f} requests/s, {r['seconds']:.3f} s {spread(r)}, {r['cpu_seconds']:.2f} CPU s")
    print(show_ratio("alone / together", ratios["alone / together"]))
    print(f"{same} of {options.clients} answers equal")
    write_json(options.json, {**machine(), "options": vars(options), "results": results, "ratios": ratios, "equal": same})
    return 0


def _served(options) -> Served:
    with tempfile.TemporaryDirectory() as folder:
        chat = Chat(train_symbol_tokenizer(["abcdefgh .#_"], [], Path(folder) / "words"))
    config = model_config(options.model, options.dtype, vocab=chat.codec.vocab_size)
    graphdef, params = decoder.build(config, jax.random.key(0))
    length = options.prompt + options.tokens + 8
    engine = make_engine(graphdef, config, (), chat.codec.pad_id, length)  # no stop token, so all answers have the same length
    return Served("random", engine, engine.prepare(params), Conversations(lambda *_: chat), chat.text, options.tokens)


def _body(index: int, options) -> str:
    text = "".join("abcdefgh"[(index + place * (index + 3)) % 8] for place in range(options.prompt))
    return json.dumps({"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": options.tokens})


def _ask(host: str, body: str) -> str:
    connection = http.client.HTTPConnection(host, timeout=600)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    if response.status != 200:
        raise RuntimeError(answer)
    return answer["choices"][0]["message"]["content"]


if __name__ == "__main__":
    launcher(main)
