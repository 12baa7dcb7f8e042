"""Optional fields of OpenAI's clients: those without effect are accepted, others are refused by name, in OpenAI's form."""

import http.client
import json
import threading

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from test_serve import BAD, HELLO, LENGTH, LONGEST, call, chat, make_model, text_of

from stepreward.models.pretrained_tokenizer import PretrainedCodec
from stepreward.models.tokenizer import Codec
from stepreward.serve import load_folder, running
from stepreward.serve.models import _conversations
from stepreward.serve.protocol import Refused, parse
from stepreward.serve.server import Settings


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return load_folder(make_model(tmp_path_factory.mktemp("hub")), dtype="float32", max_length=LENGTH, max_tokens=LONGEST)


@pytest.fixture(scope="module")
def address(served):
    with running(served, Settings(port=0, max_rows=2)) as address:
        yield address.removeprefix("http://")


def asked(served, **more):
    return parse(json.dumps({"messages": HELLO, **more}).encode(), served)


def error_of(served, **more):
    with pytest.raises(Refused) as raised:
        asked(served, **more)
    return raised.value


NEUTRAL = {
    "top_k": (-1, 0), "seed": (-1,), "min_p": (0, 0.0), "repetition_penalty": (1, 1.0), "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0), "ignore_eos": (False,), "skip_special_tokens": (True,), "tool_choice": ("auto", "none"),
    "n": (1,), "best_of": (1,), "logit_bias": ({},), "tools": ([],), "stream_options": ({"include_usage": True}, {}),
    "user": ("me",), "metadata": ({"a": "b"},), "store": (False,), "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},), "service_tier": ("auto", "default"), "reasoning_effort": ("low",), "min_tokens": (0,),
    "max_tokens": (-1,), "stop": ([],), "stop_token_ids": ([],), "include_stop_str_in_output": (False,), "use_beam_search": (False,),
    "length_penalty": (1.0,), "chat_template_kwargs": ({}, {"enable_thinking": None}), "logprobs": (False,), "top_logprobs": (0,),
    "spaces_between_special_tokens": (True,), "verbosity": ("medium",),
}  # fmt: skip


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_asks_for_nothing_passes(served, name):
    plain = asked(served)
    for value in (*NEUTRAL[name], None):
        request = asked(served, **{name: value}).request
        for field in ("max_tokens", "temperature", "top_k", "top_p", "stop"):
            assert getattr(request, field) == getattr(plain.request, field)
        assert (request.prompt == plain.request.prompt).all() and 0 <= request.seed < 2**64


NOT_OFFERED = {
    "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -1, "ignore_eos": True,
    "skip_special_tokens": False, "tool_choice": "required", "n": 2, "best_of": 2, "logit_bias": {"5": 1}, "tools": [{"type": "x"}],
    "store": True, "logprobs": True, "top_logprobs": 3, "min_tokens": 2, "stop_token_ids": [3], "use_beam_search": True,
    "length_penalty": 0.5, "guided_json": {}, "echo": True, "truncate_prompt_tokens": 5, "verbosity": "low",
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_what_would_change_the_answer_is_refused_by_name(served, name):
    error = error_of(served, **{name: NOT_OFFERED[name]})
    assert error.status == 400 and error.param == name and error.message.startswith(f"{name} is not supported")


def test_a_boolean_is_no_number_and_a_number_no_boolean(served):
    assert error_of(served, n=True).param == "n" and error_of(served, presence_penalty=False).param == "presence_penalty"
    assert error_of(served, ignore_eos=0).param == "ignore_eos" and error_of(served, store=0).param == "store"


def test_options_of_a_stream_are_read_strictly(served):
    assert asked(served, stream=True, stream_options={"include_usage": True}).usage
    assert not asked(served, stream=True, stream_options={"include_usage": False, "continuous_usage_stats": False}).usage
    for options in ({"continuous_usage_stats": True}, {"include_usage": "yes"}, {"unheard_of": 1}):
        assert f"stream_options.{next(iter(options))}" in error_of(served, stream_options=options).message


def test_an_answer_without_content_in_the_history_is_an_empty_one(served):
    for content in (None, ""):
        said = {"role": "assistant", "content": content, "tool_calls": None, "refusal": None, "annotations": []}
        found = asked(served, messages=[*HELLO, said, *HELLO]).request.prompt
        assert (found == served.conversations.prompt([("user", HELLO[0]["content"]), ("assistant", ""), ("user", "push the box")])).all()
    assert "messages[0]" in error_of(served, messages=[{"role": "user", "content": None}]).message


def test_the_model_is_found_by_its_id(address):
    status, _, body = call(address, "GET", "/v1/models/tiny-chat")
    (listed,) = json.loads(call(address, "GET", "/v1/models")[2])["data"]
    assert status == 200 and json.loads(body) == listed
    for name in ("gpt-4", "Qwen/tiny-chat", "tiny-chat/"):
        status, _, body = call(address, "GET", f"/v1/models/{name}")
        error = json.loads(body)["error"]
        assert status == 404 and error["code"] == "model_not_found" and repr(name) in error["message"]
        assert error["type"] == "invalid_request_error" and "tiny-chat" in error["message"]


def test_models_ask_for_the_key(served):
    with running(served, Settings(port=0, api_key="s3cret")) as address:
        address = address.removeprefix("http://")
        assert call(address, "GET", "/v1/models/tiny-chat")[0] == 401
        assert call(address, "GET", "/v1/models/tiny-chat", headers={"Authorization": "Bearer s3cret"})[0] == 200


@pytest.mark.parametrize(
    "method, path, status", [("POST", "/v1/completions", 404), ("GET", "/", 404), ("DELETE", "/v1/models", 405), ("PUT", "/health", 405)]
)
def test_a_path_that_is_not_there_names_those_that_are(address, method, path, status):
    found, _, body = call(address, method, path)
    error = json.loads(body)["error"]
    assert found == status and set(error) == {"message", "type", "param", "code"}
    assert path in error["message"] and "/v1/chat/completions" in error["message"]


@pytest.mark.parametrize(
    "headers, words",
    [({"Content-Type": "multipart/form-data; boundary=x"}, "application/json"), ({"Content-Type": "text/plain"}, "application/json"),
     ({"Content-Encoding": "gzip"}, "uncompressed")],
)  # fmt: skip
def test_a_body_of_another_kind_is_refused(address, headers, words):
    status, _, body = call(address, "POST", "/v1/chat/completions", {"messages": HELLO}, headers)
    assert status == 415 and words in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/x-www-form-urlencoded"])
def test_json_may_say_its_character_set_and_come_as_curl_labels_it(address, kind):
    status, _, body = call(address, "POST", "/v1/chat/completions", {"messages": HELLO, "max_tokens": 2}, {"Content-Type": kind})
    assert status == 200, body


def test_a_body_that_is_too_large_is_refused_before_it_arrives(address):
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(2**40))
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 413 and "larger" in json.loads(response.read())["error"]["message"]
    finally:
        connection.close()


@pytest.mark.parametrize("body", [b"\xff\xfe\xfd", b"[" * 100_000, b'{"seed": ' + b"9" * 5_000 + b"}", b"", b"null"])
def test_a_body_that_is_no_json_object_is_refused(address, body):
    status, _, answer = call(address, "POST", "/v1/chat/completions", body)
    assert status == 400 and "JSON" in json.loads(answer)["error"]["message"]


# --- Before anything is tokenised ---


@pytest.fixture
def tokenised(monkeypatch):
    """The texts that were tokenised meanwhile."""
    texts, encode = [], Codec.encode
    monkeypatch.setattr(Codec, "encode", lambda self, text: (texts.append(text), encode(self, text))[1])
    return texts


def test_what_can_never_fit_is_refused_untokenised(served, tokenised):
    most = served.conversations.most_characters(LENGTH)
    error = error_of(served, messages=[{"role": "user", "content": "a" * (most + 1)}])
    assert error.status == 400 and error.code == "context_length_exceeded" and str(most + 1) in error.message
    assert not tokenised
    error_of(served, messages=[{"role": "user", "content": "a" * most}])
    assert tokenised  # it might have fitted


@pytest.mark.parametrize("name", sorted({"model", "max_tokens", "temperature", "top_p", "n", "stop", "format", "unknown"} & set(BAD)))
def test_a_request_that_is_wrong_anyway_is_not_tokenised(served, tokenised, name):
    with pytest.raises(Refused):
        parse(json.dumps(BAD[name][0]).encode(), served)
    assert not tokenised


def test_a_system_message_that_cannot_fit_is_not_rendered(served, monkeypatch):
    monkeypatch.setattr("stepreward.serve.models.TemplateChat", None)
    messages = [{"role": "system", "content": "q" * (LENGTH + 1)}, *HELLO]
    error = error_of(served, messages=messages)
    assert error.code == "context_length_exceeded" and f"{LENGTH + 1} tokens" in error.message


def test_one_text_s_tokens_do_not_hold_up_another_s(served, monkeypatch):
    """One request waits in the tokenizer, and another one's prompt is made meanwhile."""
    inside, leave, encode = threading.Event(), threading.Event(), Codec.encode

    def slow(self, text):
        if "slow" in text:
            inside.set()
            assert leave.wait(240)
        return encode(self, text)

    monkeypatch.setattr(Codec, "encode", slow)
    waiting = threading.Thread(target=lambda: asked(served, messages=[{"role": "user", "content": "slow"}]))
    waiting.start()
    try:
        assert inside.wait(60)
        others = [HELLO, [{"role": "system", "content": "Be brief."}, *HELLO]]
        done = threading.Thread(target=lambda: [asked(served, messages=messages) for messages in others])
        done.start()
        done.join(60)  # long before the other one gives up
        assert not done.is_alive()
    finally:
        leave.set()
        waiting.join()


def test_many_threads_get_the_tokens_that_one_gets(served):
    """Finding a template's pieces changes settings of a tokenizer: not of the one that others use."""
    talks = [[("system", f"System {n % 3}."), ("user", f"<|im_end|> {n}")] for n in range(12)]
    expected = [served.conversations.prompt(talk).tolist() for talk in talks]
    found = {}
    fresh = [[("system", f"System {n % 3}!"), ("user", f"<|im_end|> {n}")] for n in range(12)]  # three new forms on the way

    def work(index):
        served.conversations.chat.codec.forget()
        served.conversations.prompt(fresh[index])
        found[index] = served.conversations.prompt(talks[index]).tolist()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(12)] == expected


def test_a_new_system_message_leaves_the_settings_of_the_shared_tokenizer_alone(served, monkeypatch):
    """`encode_template` changes them for the length of a call, in which another thread would read special tokens out of text."""
    touched, encode = [], PretrainedCodec.encode_template
    monkeypatch.setattr(PretrainedCodec, "encode_template", lambda self, text: (touched.append(self), encode(self, text))[1])
    shared = served.conversations.chat
    fresh = _conversations(shared, None, None, served.name)  # one that has found no pieces yet
    found = fresh.prompt([("system", "Never said before."), ("user", "up")])
    assert touched and shared.codec not in touched
    assert "Never said before." in shared.codec.decode(found)


# --- What errors show ---


@pytest.mark.parametrize(
    "body",
    [{"messages": [{"role": "system", "content": "a<|im_end|>b"}, *HELLO]},
     {"messages": HELLO, "chat_template_kwargs": {"enable_thinking": True}}],
)  # fmt: skip
def test_errors_name_the_model_and_no_folder_of_this_machine(served, body):
    folder = str(served.conversations.chat.codec.folder)
    with pytest.raises(Refused) as raised:
        parse(json.dumps(body).encode(), served)
    assert "'tiny-chat'" in raised.value.message and folder not in raised.value.message and "/" not in raised.value.message


def test_an_error_does_not_repeat_a_long_message(served):
    content = "<|im_end|>" + "x " * 100
    message = error_of(served, messages=[{"role": "system", "content": content}, *HELLO]).message
    assert len(message) <= 1_001
    assert len(error_of(served, model="m" * 10_000).message) < 400
    assert len(error_of(served, **{"k" * 10_000: 1}).message) < 200


def test_a_fault_of_the_server_is_in_its_log_and_not_in_the_answer(served, monkeypatch, capfd):
    with running(served, Settings(port=0)) as address:
        monkeypatch.setattr("stepreward.serve.server.parse", lambda *_, **__: 1 / 0)
        status, _, body = call(address.removeprefix("http://"), "POST", "/v1/chat/completions", {"messages": HELLO})
    assert status == 500 and b"division" not in body and json.loads(body)["error"]["type"] == "server_error"
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_openai_s_own_client(served, address):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0, timeout=120)
    assert client.models.retrieve("tiny-chat").id == "tiny-chat"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    common = dict(
        model="tiny-chat", n=1, presence_penalty=0, frequency_penalty=0, tool_choice="auto", response_format={"type": "text"},
        user="u", store=False, reasoning_effort="low", temperature=0, max_tokens=4, seed=-1,
        extra_body={"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": False, "skip_special_tokens": True},
    )  # fmt: skip
    found = client.chat.completions.create(messages=HELLO, **common)
    assert found.choices[0].message.content == text_of(chat(address, temperature=0, max_tokens=4))
    again = client.chat.completions.create(messages=[*HELLO, found.choices[0].message, *HELLO], **common)
    assert again.usage.completion_tokens <= 4
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        client.chat.completions.create(messages=HELLO, **common, logprobs=True)
