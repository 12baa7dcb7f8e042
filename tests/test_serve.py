"""The server through a real socket: answers equal the engine's, bad requests get OpenAI's errors, and nothing is left over."""

import concurrent.futures
import dataclasses
import http.client
import json
import runpy
import socket
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from test_chat_templates import FAMILIES, make_folder

from stepreward.errors import UserError
from stepreward.models import decoder
from stepreward.models.hugging_face_save import save_pretrained
from stepreward.models.pretrained_tokenizer import load_pretrained_tokenizer
from stepreward.rollout.engine import Engine
from stepreward.rollout.sampling import Sampling, truncate
from stepreward.serve import Batcher, Request, Served, load_folder, running
from stepreward.serve.batcher import Closed, Failure, Overloaded
from stepreward.serve.conversation import check_roles
from stepreward.serve.engine import truncate_rows
from stepreward.serve.server import Settings
from stepreward.serve.transcript import Transcript

HELLO = [{"role": "user", "content": "push the box"}]
LONGEST, LENGTH = 40, 256


def make_model(root):
    """A random Qwen2-like model of one layer with tokenizer and template in `root`; its answers seldom stop."""
    words = make_folder(root / "words", *FAMILIES["qwen2"])
    config = decoder.DecoderConfig(352, num_layers=1, embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24, qkv_bias=True)
    leaves, structure = jax.tree.flatten(decoder.abstract_params(config))
    rng = np.random.default_rng(0)
    params = structure.unflatten([jnp.asarray(rng.normal(0, 0.8, x.shape), x.dtype) for x in leaves])
    codec = load_pretrained_tokenizer(words)
    plain = [codec.decode([index]).isprintable() and codec.decode([index]).isascii() for index in range(config.vocab_size)]
    rows = params["embedding"].get_value() * jnp.where(jnp.asarray(plain), 1.0, 0.1)[:, None]  # answers are letters, not bytes
    params["embedding"].set_value(rows)
    return save_pretrained(root / "tiny-chat", config, params, tokenizer_folder=words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def served(folder):
    return load_folder(folder, dtype="float32", max_length=LENGTH, max_tokens=LONGEST)


@pytest.fixture(scope="module")
def address(served):
    with running(served, Settings(port=0, max_rows=4)) as address:
        yield address.removeprefix("http://")


def call(address, method, path, body=None, headers=None):
    """`(status, headers, body)` of one request."""
    connection = http.client.HTTPConnection(address, timeout=120)
    try:
        sent = body if isinstance(body, (bytes, type(None))) else json.dumps(body)
        connection.request(method, path, sent, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()
    finally:
        connection.close()


def chat(address, messages=HELLO, **more):
    status, _, body = call(address, "POST", "/v1/chat/completions", {"messages": messages, **more})
    assert status == 200, body
    return json.loads(body)


def text_of(reply):
    return reply["choices"][0]["message"]["content"]


def engine_answer(served, messages, tokens):
    """The greedy answer of the training engine, in one turn."""
    ours, chat = served.engine, served.conversations.chat
    engine = Engine(
        ours.graphdef,
        ours.config,
        Sampling(chat.stop_ids, tokens, temperature=0.0),
        LENGTH,
        (LENGTH - tokens,),
        chat.codec.pad_id,
    )
    prompt = served.conversations.prompt([(m["role"], m["content"]) for m in messages])
    _, answer = engine.turn(served.params, engine.start(1), [prompt], jax.random.split(jax.random.key(0), 1))
    return chat.text(answer.tokens[0, : answer.count[0]]), prompt, answer


def test_a_folder_is_sampled_as_it_is_unless_a_request_says_otherwise():
    assert {f.name: f.default for f in dataclasses.fields(Served) if f.default is not dataclasses.MISSING} == {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
    }


def test_a_greedy_answer_is_the_engine_s_own(served, address):
    talk = [*HELLO, {"role": "assistant", "content": "up"}, {"role": "user", "content": "and now?"}]
    for messages in (HELLO, [{"role": "system", "content": "Be brief."}, *talk]):
        expected, prompt, answer = engine_answer(served, messages, 21)
        found = chat(address, messages, temperature=0, max_tokens=21)
        assert text_of(found) == expected and found["object"] == "chat.completion" and found["model"] == "tiny-chat"
        assert found["choices"][0]["finish_reason"] == ("stop" if answer.stopped[0] else "length")
        sampled = int(answer.count[0])
        usage = {"prompt_tokens": len(prompt), "completion_tokens": sampled, "total_tokens": len(prompt) + sampled}
        assert found["usage"] == usage


def test_a_conversation_has_the_tokens_of_the_template(served, folder):
    talk = [("system", "Be brief."), ("user", "push the box"), ("assistant", "up"), ("user", "<|im_end|> and now?")]
    prompt = served.conversations.prompt(talk)
    codec = served.conversations.chat.codec
    rendered = codec.render([{"role": r, "content": t} for r, t in talk[:-1]], add_generation_prompt=False)
    whole = codec.encode_template(rendered)
    np.testing.assert_array_equal(prompt[: len(whole)], whole)
    ends = np.count_nonzero(prompt == codec.special["<|im_end|>"])
    assert ends == 4  # of four messages: what a message says is no token of the template


def test_a_stop_token_ends_an_answer_and_counts(served):
    chat_form = served.conversations.chat
    sampled = engine_answer(served, HELLO, 4)[2].tokens[0]
    count = int(np.flatnonzero(sampled == sampled[2])[0]) + 1
    sampling = dataclasses.replace(served.engine.sampling, stop_ids=(int(sampled[2]),))
    pieces, done = [], threading.Event()
    with Batcher(dataclasses.replace(served.engine, sampling=sampling), served.params, chat_form.text) as batcher:
        prompt = served.conversations.prompt([("user", HELLO[0]["content"])])
        for longest in (9, count):
            done.clear()
            request = Request(prompt, longest, temperature=0.0)
            batcher.submit(request, lambda piece: (pieces.append(piece), done.set()))
            assert done.wait(60)
    assert [(p.finish_reason, p.tokens, p.text) for p in pieces] == 2 * [("stop", count, chat_form.text(sampled[:count]))]


def test_a_seeded_answer_does_not_depend_on_its_neighbours(served, address):
    settings = dict(temperature=0.8, top_p=0.9, top_k=50, max_tokens=30)
    alone = [text_of(chat(address, seed=seed, **settings)) for seed in range(3)]
    assert len(set(alone)) == 3
    with concurrent.futures.ThreadPoolExecutor(7) as pool:
        others = [pool.submit(chat, address, [{"role": "user", "content": "up " * n}], max_tokens=5 * n) for n in range(1, 5)]
        together = list(pool.map(lambda seed: text_of(chat(address, seed=seed, **settings)), range(3)))
        assert all(other.result()["usage"]["completion_tokens"] <= 5 * n for n, other in enumerate(others, 1))
    assert together == alone
    greedy = {text_of(chat(address, max_tokens=9, **more)) for more in ({"temperature": 0}, {"top_k": 1}, {"top_p": 1e-9})}
    assert len(greedy) == 1


def test_rows_truncate_as_one_setting_does():
    log_p = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (5, 30)), axis=-1)
    settings = [(0, 1.0), (3, 1.0), (0, 0.5), (7, 0.3), (40, 1e-9)]
    found = truncate_rows(log_p, *(jnp.asarray(column) for column in zip(*settings)))
    for row, (top_k, top_p) in enumerate(settings):
        np.testing.assert_array_equal(found[row], truncate(log_p[row : row + 1], top_k, top_p)[0])


def test_a_stop_string_is_cut_wherever_the_chunks_end():
    words = ["one ", "two S", "TOP", " three", "é"[:0], "four"]
    text_of = lambda tokens: "".join(words[i] for i in tokens)
    for chunks in ([[0, 1, 2, 3, 5]], [[0], [1], [2, 3]], [[0, 1], [2], [3]]):
        transcript = Transcript(text_of, ("STOP", "never"))
        said = ""
        for tokens in chunks:
            said += transcript.add(tokens, last=False)
            if transcript.stopped:
                break
        assert said == "one two " and transcript.stopped and transcript.tokens == [0, 1, 2]
    transcript = Transcript(text_of, ("STOP",))
    assert transcript.add([0, 1], last=False) == "one two " and transcript.add([3], last=True) == "S three"
    half = Transcript(lambda tokens: b"ab\xc3\xa9"[: len(tokens)].decode(errors="replace"))
    assert [half.add([0] * n, last=False) for n in (3, 1)] == ["ab", "é"]


def test_stop_strings_and_limits_reach_the_answer(address):
    whole = chat(address, temperature=0, max_tokens=30)
    text = text_of(whole)
    stop = text[len(text) // 2 :][:3]
    cut = chat(address, temperature=0, max_tokens=30, stop=["never said", stop])
    assert text_of(cut) == text[: text.index(stop)] and cut["choices"][0]["finish_reason"] == "stop"
    assert cut["usage"]["completion_tokens"] <= whole["usage"]["completion_tokens"]
    assert chat(address, temperature=0)["usage"]["completion_tokens"] <= LONGEST


def events(address, **more):
    body = {"messages": HELLO, "stream": True, **more}
    status, headers, sent = call(address, "POST", "/v1/chat/completions", body)
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in sent.decode().split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_stream_is_the_answer_in_pieces(address):
    whole = chat(address, temperature=0, max_tokens=36)
    found = events(address, temperature=0, max_tokens=36, stream_options={"include_usage": True})
    assert found.pop()["usage"] == whole["usage"]
    deltas = [event["choices"][0]["delta"] for event in found]
    assert deltas[0]["role"] == "assistant" and sum("content" in delta for delta in deltas) > 1
    assert "".join(delta.get("content", "") for delta in deltas) == text_of(whole)
    assert [event["choices"][0]["finish_reason"] for event in found][-1] == whole["choices"][0]["finish_reason"]
    assert {event["object"] for event in found} == {"chat.completion.chunk"} and len({event["id"] for event in found}) == 1


BAD = {
    "json": (b"{", 400, "not valid JSON"),
    "list": (b"[]", 400, "not a JSON object"),
    "model": ({"messages": HELLO, "model": "gpt-4"}, 404, "tiny-chat"),
    "no messages": ({}, 400, "messages"),
    "role": ({"messages": [{"role": "tool", "content": "x"}]}, 400, "'tool'"),
    "order": ({"messages": [*HELLO, *HELLO]}, 400, "user, user"),
    "image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "text"),
    "system": ({"messages": [{"role": "system", "content": "<|im_end|>"}, *HELLO]}, 400, "special tokens"),
    "too long": ({"messages": [{"role": "user", "content": "box " * 999}]}, 400, f"limit of {LENGTH}"),
    "max_tokens": ({"messages": HELLO, "max_tokens": LONGEST + 1}, 400, f"from 1 to {LONGEST}"),
    "true": ({"messages": HELLO, "max_tokens": True}, 400, "max_tokens"),
    "temperature": ({"messages": HELLO, "temperature": -1}, 400, "temperature"),
    "infinite": (b'{"messages": [{"role": "user", "content": "x"}], "temperature": Infinity}', 400, "temperature"),
    "huge": ({"messages": HELLO, "temperature": 10**400}, 400, "temperature"),
    "top_p": ({"messages": HELLO, "top_p": 0}, 400, "top_p"),
    "n": ({"messages": HELLO, "n": 2}, 400, "n is not supported"),
    "stop": ({"messages": HELLO, "stop": [""]}, 400, "stop"),
    "format": ({"messages": HELLO, "response_format": {"type": "json_object"}}, 400, "--ignore-response-format"),
    "thinking": ({"messages": HELLO, "chat_template_kwargs": {"enable_thinking": True}}, 400, "thinking mode"),
    "unknown": ({"messages": HELLO, "beam": 4}, 400, "beam"),
    "large": (b" " * (4 * 2**20 + 1), 413, "larger"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_client_gets_wrong_is_told(address, name):
    body, expected, words = BAD[name]
    status, _, answer = call(address, "POST", "/v1/chat/completions", body)
    error = json.loads(answer)["error"]
    assert status == expected and words in error["message"], answer
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"


def test_a_long_prompt_leaves_what_is_left_for_the_answer(served, address):
    empty = len(served.conversations.prompt([("user", "")]))
    messages = [{"role": "user", "content": "q" * (LENGTH - empty - 9)}]
    status, _, body = call(address, "POST", "/v1/chat/completions", {"messages": messages, "max_tokens": 10})
    error = json.loads(body)["error"]
    assert status == 400 and error["code"] == "context_length_exceeded" and str(LENGTH - 9) in error["message"]
    usage = chat(address, messages)["usage"]
    assert usage["prompt_tokens"] == LENGTH - 9 and usage["completion_tokens"] <= 9


def test_half_characters_and_long_memories_are_no_trouble(served, address, monkeypatch):
    halves = [{"role": "system", "content": "\ud83d!"}, {"role": "user", "content": "push \ude00"}]
    monkeypatch.setattr("stepreward.serve.conversation._MOST_CHARACTERS", 5)
    found = [text_of(chat(address, halves, temperature=0, max_tokens=4)) for _ in range(2)]
    assert found[0] == found[1]


def test_half_characters_outside_the_messages_get_an_answer_too(address):
    for odd, expected in (({"a\ud83d": 1}, 400), ({"model": "\ud83d"}, 404), ({"stop": ["\ud83d"], "max_tokens": 2}, 200)):
        assert call(address, "POST", "/v1/chat/completions", {"messages": HELLO, **odd})[0] == expected


def test_added_tokens_in_any_message_are_text(served):
    codec = served.conversations.chat.codec
    turns = [("system", "Use {}."), ("user", "{}a"), ("assistant", "{}b"), ("user", "c{}")]
    control = set(codec.control.values())
    count = lambda token: sum(int(i) in control for i in served.conversations.prompt([(r, t.format(token)) for r, t in turns]))
    plain = [token for token in codec.control if token not in codec.special]
    assert plain and all(count(token) == count("x") for token in plain)


def test_other_paths_and_what_changes_nothing(address):
    assert json.loads(call(address, "GET", "/health")[2])["status"] == "ok"
    (model,) = json.loads(call(address, "GET", "/v1/models")[2])["data"]
    assert model["id"] == "tiny-chat" and model["object"] == "model"
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405)):
        found = call(address, method, path)
        assert found[0] == status and path in json.loads(found[2])["error"]["message"]
    pieces = [{"type": "text", "text": text} for text in ("push the ", "box")]
    parts = [{"role": "user", "content": pieces, "name": "Ann"}]
    same = dict(n=1, presence_penalty=0.0, tools=[], user="me", logit_bias=None, response_format={"type": "text"})
    asked = dict(temperature=0, max_tokens=5)
    assert text_of(chat(address, parts, model="tiny-chat", **asked, **same)) == text_of(chat(address, **asked))


def test_a_key_is_asked_for_and_never_shown(served):
    with running(served, Settings(port=0, api_key="s3cret")) as address:
        address = address.removeprefix("http://")
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            status, _, body = call(address, "GET", "/v1/models", headers=headers)
            assert status == 401 and b"s3cret" not in body and json.loads(body)["error"]["code"] == "invalid_api_key"
            assert call(address, "POST", "/v1/chat/completions", {"messages": HELLO}, headers)[0] == 401
        assert call(address, "GET", "/v1/models", headers={"Authorization": "Bearer s3cret"})[0] == 200
        assert call(address, "GET", "/health")[0] == 200


class Held:
    """An engine whose chunks wait for leave, so that a test knows what waits."""

    def __init__(self, engine):
        self._engine, self.leave, self.turns = engine, threading.Semaphore(0), 0
        self.broken = False

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def conversations(self, params, count):
        rows = self._engine.conversations(params, count)
        run = rows.run

        def held():
            assert self.leave.acquire(timeout=60)
            self.turns += 1
            if self.broken:
                raise RuntimeError("out of memory")
            return run()

        rows.run = held
        return rows


@pytest.fixture
def held(served):
    return dataclasses.replace(served, engine=Held(served.engine))


def until(condition):
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def load(address):
    return json.loads(call(address, "GET", "/health")[2])


def test_more_than_may_wait_are_told_to_come_back(held):
    one = Settings(port=0, max_rows=1, max_waiting=1)
    with running(held, one) as address, concurrent.futures.ThreadPoolExecutor(2) as pool:
        address = address.removeprefix("http://")
        first = pool.submit(chat, address, max_tokens=3)
        until(lambda: load(address)["active"] == 1)
        second = pool.submit(chat, address, max_tokens=3)
        until(lambda: load(address)["waiting"] == 1)
        status, headers, body = call(address, "POST", "/v1/chat/completions", {"messages": HELLO})
        assert status == 503 and headers["retry-after"] == "1" and json.loads(body)["error"]["code"] == "overloaded"
        held.engine.leave.release(2)
        assert first.result() and second.result()


def test_an_answer_that_nobody_waits_for_is_given_up(held):
    with running(held, Settings(port=0, max_rows=1, timeout=1)) as address:
        address = address.removeprefix("http://")
        for stream in (False, True):
            host, port = address.split(":")
            with socket.create_connection((host, int(port))) as client:
                body = json.dumps({"messages": HELLO, "stream": stream}).encode()
                head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
                client.sendall(head + body)
                until(lambda: load(address)["active"] == 1)
            held.engine.leave.release()  # one chunk of three
            until(lambda: load(address)["active"] == 0)
        assert held.engine.turns == 2
        status, _, body = call(address, "POST", "/v1/chat/completions", {"messages": HELLO})
        assert status == 504 and "1 s" in json.loads(body)["error"]["message"]
        held.engine.leave.release()


def test_a_failing_turn_fails_its_requests_alone(held, capfd):
    with running(held, Settings(port=0)) as address:
        address = address.removeprefix("http://")
        held.engine.broken = True
        held.engine.leave.release()
        status, _, body = call(address, "POST", "/v1/chat/completions", {"messages": HELLO})
        assert status == 500 and json.loads(body)["error"]["type"] == "server_error"
        held.engine.broken = False
        held.engine.leave.release(9)
        assert chat(address, max_tokens=3)["usage"]["completion_tokens"] <= 3
    assert "out of memory" in capfd.readouterr().err


def test_a_closed_batcher_fails_what_is_left_and_leaves_no_thread(held):
    before = set(threading.enumerate())
    told = []
    batcher = Batcher(held.engine, held.params, held.text_of, max_rows=1, max_waiting=2)
    tickets = [batcher.submit(Request(np.arange(3), 30), told.append) for _ in range(2)]
    until(lambda: batcher.load == (1, 1))
    batcher.submit(Request(np.arange(3), 30), told.append)
    with pytest.raises(Overloaded):
        batcher.submit(Request(np.arange(3), 30), told.append)
    tickets[1].cancel()
    held.engine.leave.release()
    batcher.close()
    assert [type(t.error) for t in told if isinstance(t, Failure)] == [Closed, Closed]
    with pytest.raises(Closed):
        batcher.submit(Request(np.arange(3), 30), told.append)
    assert set(threading.enumerate()) == before


def test_a_server_leaves_no_thread(served):
    before = set(threading.enumerate())
    with running(served) as address:
        chat(address.removeprefix("http://"), max_tokens=2)
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize(
    "roles", [(), ("system",), ("assistant",), ("user", "assistant"), ("user", "system", "user"), ("system", "system", "user")]
)
def test_conversations_alternate_and_end_with_the_user(roles):
    with pytest.raises(ValueError, match="alternating"):
        check_roles(roles)


# --- The command line ---


@pytest.mark.parametrize(
    "flags, words",
    [
        ((), "--workdir=RUN or --model=FOLDER"),
        (("--model=a", "--workdir=b"), "one of them"),
        (("--model=a", "--api-key-env=NOT_SET_ANYWHERE"), "not set"),
        (("--model=a", "--max-rows=0"), "--max-rows=0"),
        (("--model=no/such-folder",), "no/such-folder"),
        (("--workdir=no/such-run",), "no/such-run"),
    ],
)
def test_a_wrong_command_line_is_one_error(root, monkeypatch, flags, words):
    monkeypatch.setattr("sys.argv", ["serve.py", *flags])
    main = runpy.run_path(str(root / "launch" / "serve.py"))["main"]
    with pytest.raises((UserError, FileNotFoundError), match=words):
        main()


def test_an_address_that_is_taken_and_limits_that_do_not_fit_are_told(served, folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port={port}"), running(served, Settings(port=port)):
            pass
    with pytest.raises(UserError, match="--max-length=99999"):
        load_folder(folder, max_length=99999)
    with pytest.raises(UserError, match="--max-tokens=64"):
        load_folder(folder, max_length=64, max_tokens=64)
