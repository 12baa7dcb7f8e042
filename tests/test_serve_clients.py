"""The server and its peers: OpenAI's own client can use it, and transformers' server gives the same answers."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from test_serve import HELLO, make_model

from stepreward.serve import load_folder, running

TALK = [{"role": "system", "content": "Be brief."}, *HELLO, {"role": "assistant", "content": "up"}, *HELLO]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def address(folder):
    with running(load_folder(folder, dtype="float32", max_length=256)) as address:
        yield address


def test_openai_s_client_reads_answers_streams_and_errors(address):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        asked = dict(model="tiny-chat", messages=TALK, temperature=0, max_tokens=20)
        found = client.chat.completions.create(**asked)
        assert found.choices[0].message.role == "assistant" and found.usage.completion_tokens <= 20
        assert [model.id for model in client.models.list()] == ["tiny-chat"]
        chunks = client.chat.completions.create(**asked, stream=True)
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert said == found.choices[0].message.content
        with pytest.raises(openai.NotFoundError, match="tiny-chat"):
            client.chat.completions.create(**asked | {"model": "other"})
        with pytest.raises(openai.BadRequestError, match="beam"):
            client.chat.completions.create(**asked, extra_body={"beam": 4})


def post(address, body):
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=120)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    assert response.status == 200, answer
    return json.loads(answer)


def test_transformers_own_server_answers_the_same(address, folder, tmp_path):
    for package in ("torch", "fastapi", "openai", "pydantic", "accelerate"):  # transformers[serving]
        pytest.importorskip(package)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(folder)]
    command += [f"--port={port}", "--host=127.0.0.1", "--device=cpu", "--dtype=float32"]
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        limit = time.monotonic() + 120
        while True:
            assert server.poll() is None and time.monotonic() < limit, (tmp_path / "log").read_text()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        for messages in (HELLO, TALK):
            asked = {"messages": messages, "temperature": 0, "max_tokens": 24}
            theirs, ours = post(f"127.0.0.1:{port}", asked | {"model": str(folder)}), post(address, asked)
            assert ours["usage"] == theirs["usage"]
            assert ours["choices"][0]["message"]["content"] == theirs["choices"][0]["message"]["content"]
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
