"""The serving command as a process: a run's checkpoint, a model folder, and both signals that end it."""

import dataclasses
import http.client
import json
import os
import signal
import subprocess
import sys

import jax
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from test_serve import HELLO, call, make_model, text_of

from stepreward.training.evaluate import load_checkpoint
from stepreward.training.train import Runner


@pytest.fixture
def start(root):
    """`start(*flags)`: the command, and the address that it printed."""
    begun = []

    def start(*flags, **variables):
        environment = {**os.environ, "PYTHONPATH": str(root), **variables}
        command = [sys.executable, str(root / "launch" / "serve.py"), "--port=0", *flags]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        begun.append(process)
        return process, process.stdout.readline().rsplit("http://")[-1].strip().removesuffix("/v1")

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def test_the_command_finishes_its_answers_when_asked_to_stop(start, tmp_path):
    folder = make_model(tmp_path)
    process, address = start(f"--model={folder}", "--dtype=float32", "--max-tokens=400")
    connection = http.client.HTTPConnection(address, timeout=120)
    body = {"messages": HELLO, "max_tokens": 400, "temperature": 0, "stream": True}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    response = connection.getresponse()
    assert response.readline().startswith(b"data: ")
    process.terminate()
    assert response.read().endswith(b"data: [DONE]\n\n")
    connection.close()
    assert process.wait(60) == 143 and process.stderr.read().endswith("terminated\n")


def test_a_run_is_served_as_it_was_trained(start, micro_config, tmp_path):
    workdir = tmp_path / "run"
    Runner(micro_config({"train.env_steps": 50}), workdir).run()
    found = load_checkpoint(workdir, None, "policy")
    observation = found.parts.factory().reset(seed=0, options={"split": "train"})[0]
    shown = found.parts.prompt.first(observation)
    parts, engine = found.parts, found.parts.collector.engine
    greedy = dataclasses.replace(engine, sampling=dataclasses.replace(engine.sampling, temperature=0.0))
    params, rows = greedy.prepare(found.model.join(found.params)), engine.rows_multiple
    prompt = parts.chat.user_turn(shown, first=True)
    keys = jax.random.split(jax.random.key(0), rows)
    _, answer = greedy.turn(params, greedy.start(rows), [prompt] * rows, keys)
    process, address = start(f"--workdir={workdir}", "--name=agent", "--api-key-env=SECRET", SECRET="k")
    body = {"model": "agent", "temperature": 0, "messages": [{"role": "user", "content": shown}]}
    status, _, reply = call(address, "POST", "/v1/chat/completions", body, {"Authorization": "Bearer k"})
    assert status == 200 and text_of(json.loads(reply)) == parts.chat.text(answer.tokens[0, : answer.count[0]])
    body["messages"].insert(0, {"role": "system", "content": "Be brief."})
    status, _, reply = call(address, "POST", "/v1/chat/completions", body, {"Authorization": "Bearer k"})
    assert status == 400 and "from scratch" in json.loads(reply)["error"]["message"]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130 and process.stderr.read().endswith("interrupted\n")
