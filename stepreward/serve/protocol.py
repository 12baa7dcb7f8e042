"""Parses requests to `/v1/chat/completions` strictly: a setting that would be ignored is refused, unless it changes nothing."""

from __future__ import annotations

import dataclasses
import json
import secrets
from typing import Any

import numpy as np

from stepreward.serve.batcher import Request
from stepreward.serve.conversation import TooLong
from stepreward.serve.models import Served
from stepreward.text import cleaned

MOST_STOPS = 16
_MOST_TOLD = 1_000  # most characters of an error that quotes a client's message
# Keys that do not affect the answer, whatever their value: bookkeeping, and hints that this server does not use.
_NEUTRAL = {
    "user", "metadata", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "request_id", "cache_salt", "reasoning_effort",
}  # fmt: skip
# Keys accepted only with values that have no effect: the defaults of OpenAI's, vLLM's and SGLang's interfaces, which clients send.
_ABSENT: dict[str, tuple] = {
    "store": (False,), "n": (1,), "best_of": (1,), "logprobs": (False,), "top_logprobs": (0,), "presence_penalty": (0,),
    "frequency_penalty": (0,), "logit_bias": ({},), "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"), "modalities": (["text"],), "background": (False,), "verbosity": ("medium",),
    "min_p": (0,), "typical_p": (1,), "repetition_penalty": (1,), "length_penalty": (1,), "no_repeat_ngram_size": (0,),
    "ignore_eos": (False,), "min_tokens": (0,), "min_new_tokens": (0,), "stop_token_ids": ([],), "bad_words": ([],),
    "include_stop_str_in_output": (False,), "no_stop_trim": (False,), "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,), "use_beam_search": (False,), "num_beams": (1,), "early_stopping": (False,),
    "echo": (False,), "add_generation_prompt": (True,), "continue_final_message": (False,), "add_special_tokens": (False,),
    "include_reasoning": (True,), "separate_reasoning": (True,), "stream_reasoning": (True,), "documents": ([],), "priority": (0,),
    "return_token_ids": (False,), "return_tokens_as_token_ids": (False,), "return_hidden_states": (False,),
    "mm_processor_kwargs": ({},), "vllm_xargs": ({},),
}  # fmt: skip
_STREAM_OPTIONS = {"include_usage": (True, False), "include_obfuscation": (True, False), "continuous_usage_stats": (False,)}


class Refused(Exception):
    """An error response in the form of OpenAI's error object.

    Attributes:
      status: the HTTP status.
      message: the error message for a person.
      code, param: the error code and the name of the wrong parameter, for programs.
    """

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclasses.dataclass(frozen=True)
class Asked:
    """A parsed request.

    Attributes:
      request: the request for the batcher.
      stream: whether the answer is streamed as server-sent events.
      usage: whether the stream ends with token counts.
    """

    request: Request
    stream: bool
    usage: bool


def parse(body: bytes, served: Served, *, ignore_format: bool = False) -> Asked:
    """Parses the body of a request.

    Args:
      body: JSON of OpenAI's chat completions interface, see docs/serve.md.
      served: the model, with its defaults, limits and chat format.
      ignore_format: treat requests for JSON output as requests for text.

    Raises:
      Refused: if the body is invalid, or asks for something that the server does not offer.
    """
    try:
        said = cleaned(json.loads(body))  # JSON can contain lone surrogates
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not valid JSON") from None
    if not isinstance(said, dict):
        raise Refused(400, "the body is not a JSON object")
    said = {key: value for key, value in said.items() if value is not None and key not in _NEUTRAL}
    fields = _Fields(said)
    model = fields.take("model", str, served.name)
    if model != served.name:
        raise unknown_model(model, served)
    messages = _messages(fields.take("messages", list, None))
    template = {key: value for key, value in fields.take("chat_template_kwargs", dict, {}).items() if value is not None}
    thinking = template.get("enable_thinking")
    if set(template) - {"enable_thinking"} or not (thinking is None or isinstance(thinking, bool)):
        raise Refused(400, "chat_template_kwargs may contain only enable_thinking, true or false", param="chat_template_kwargs")
    stop = fields.take("stop", (str, list), [])
    stop = tuple([stop] if isinstance(stop, str) else stop)
    if len(stop) > MOST_STOPS or not all(isinstance(text, str) and text for text in stop):
        raise Refused(400, f"stop must be a non-empty string or a list of at most {MOST_STOPS} non-empty strings", param="stop")
    stream = fields.take("stream", bool, False)
    usage = _stream_options(fields.take("stream_options", dict, {}))
    _check_format(fields.take("response_format", dict, {"type": "text"}), ignore_format)
    longest = _max_tokens(fields, served)
    temperature = fields.number("temperature", served.temperature, 0, 100)
    top_k = fields.take("top_k", int, served.top_k, lambda k: -1 <= k < 2**31, "a whole number of at least 0 (0 or -1 keeps all tokens)")
    top_p = fields.number("top_p", served.top_p, 0, 1, positive=True)
    seed = fields.take("seed", int, -1, lambda seed: -1 <= seed < 2**64, "a whole number of at least 0 and less than 2**64 (-1: none)")
    fields.refuse_the_rest()
    prompt = _prompt(messages, thinking, served)  # last, because it is the only slow part
    seed = secrets.randbits(63) if seed < 0 else seed
    request = Request(prompt, _fitting(longest, len(prompt), served), temperature, max(top_k, 0), top_p, seed, stop)
    return Asked(request, stream, usage)


def unknown_model(name: str, served: Served) -> Refused:
    """The error of a request for a model that this server does not have."""
    return Refused(404, f"there is no model {name[:200]!r}; this server has {served.name!r}", code="model_not_found", param="model")


def _prompt(messages: list[tuple[str, str]], thinking: bool | None, served: Served) -> np.ndarray:
    """Encodes the messages. Messages with too many characters to fit in any encoding are refused before they are encoded."""
    length, characters = served.engine.max_length, sum(len(text.strip()) for _, text in messages)
    if characters > served.conversations.most_characters(length):
        raise _too_long(
            f"the messages have {characters} characters, too many for the server's limit of {length} tokens for messages and answer "
            "together: shorten them"
        )
    try:
        return served.conversations.prompt(messages, thinking, most=length)
    except TooLong as error:
        raise _too_long(f"{error}, more than the server's limit of {length} for messages and answer together: shorten it") from None
    except ValueError as error:
        raise Refused(400, _clipped(str(error)), param="messages") from None


def _max_tokens(fields: _Fields, served: Served) -> int | None:
    """The limit on the answer that the client asks for, in tokens; None if it leaves the limit to the server."""
    newer, older = (fields.take(name, int, None) for name in ("max_completion_tokens", "max_tokens"))
    longest = older if newer is None else newer
    if longest is None or longest == -1:
        return None
    if not 0 < longest <= served.max_tokens:
        raise Refused(400, f"max_tokens is {longest}; it must be from 1 to {served.max_tokens}, this server's limit", param="max_tokens")
    return longest


def _fitting(longest: int | None, prompt: int, served: Served) -> int:
    """The limit on the answer after a prompt of `prompt` tokens; raises Refused if they do not fit together."""
    length = served.engine.max_length
    room = length - prompt
    if room < 1:
        raise _too_long(
            f"the messages have {prompt} tokens, which leaves no room for an answer in the server's limit of {length}: shorten them"
        )
    if longest is None:
        return min(served.max_tokens, room)
    if longest > room:
        raise _too_long(
            f"the messages have {prompt} tokens and max_tokens is {longest}, together more than the server's limit of {length}: shorten "
            "the messages or lower max_tokens"
        )
    return longest


def _too_long(message: str) -> Refused:
    return Refused(400, message, code="context_length_exceeded", param="messages")


def _clipped(message: str) -> str:
    return message if len(message) <= _MOST_TOLD else f"{message[:_MOST_TOLD]}…"


def _stream_options(said: dict) -> bool:
    """Whether the stream ends with token counts."""
    for name, value in said.items():
        if value is not None and not _among(value, _STREAM_OPTIONS.get(name, ())):
            raise Refused(400, f"stream_options.{name[:100]} is not supported by this server: omit it", param="stream_options")
    return said.get("include_usage") is True


def _messages(said: list | None) -> list[tuple[str, str]]:
    if not said:
        raise Refused(400, "messages is missing or empty", param="messages")
    found = []
    for index, message in enumerate(said):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Refused(400, f"{where} must be an object with a role", param="messages")
        role = "system" if message["role"] == "developer" else message["role"]
        if role not in ("system", "user", "assistant"):
            raise Refused(400, f"{where} has the role {role[:100]!r}; it must be system, user or assistant", param="messages")
        wrong = sorted(key for key, value in message.items() if value and key not in ("role", "content", "name"))
        if wrong:
            raise Refused(400, f"{where} has the key {wrong[0][:100]}, which this server does not support", param="messages")
        content = message.get("content")
        if content is None and role == "assistant":  # clients send an empty answer like this
            content = ""
        found.append((role, _text(content, where)))
    return found


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in parts):
        raise Refused(400, f"the content of {where} must be text: a string, or parts of type text", param="messages")
    return "".join(p["text"] for p in parts)


def _check_format(said: dict, ignore: bool) -> None:
    kind = said.get("type")
    if kind == "text" or (ignore and kind in ("json_object", "json_schema")):
        return
    raise Refused(
        400,
        f"response_format {str(kind)[:100]!r} is not supported: answers are free text. Ask for JSON in the messages and omit "
        "response_format, or start the server with --ignore-response-format",
        param="response_format",
    )


class _Fields:
    """The keys of a body. Each key is taken once; keys that are left over are refused."""

    def __init__(self, said: dict[str, Any]):
        self._said = dict(said)

    def take(self, name: str, kind, default, right=lambda value: True, told: str = "") -> Any:
        """The value of a key, after checking its type (JSON's true and false are not numbers) and that `right(value)` holds."""
        value = self._said.pop(name, default)
        if value is default:
            return value
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds) or not right(value):
            raise Refused(400, f"{name} must be {told or 'of type ' + ' or '.join(k.__name__ for k in kinds)}", param=name)
        return value

    def number(self, name: str, default: float, low: float, high: float, positive: bool = False) -> float:
        right = lambda x: low <= x <= high and (x > 0 or not positive)  # refuses NaN
        told = f"a number {'above' if positive else 'of at least'} {low} and at most {high}"
        return float(self.take(name, (int, float), default, right, told))

    def refuse_the_rest(self) -> None:
        for name, value in self._said.items():
            if not _among(value, _ABSENT.get(name, ())):
                raise Refused(400, f"{name[:100]} is not supported by this server: omit it", param=name[:100])


def _among(value: Any, allowed: tuple) -> bool:
    """Whether a JSON value equals one of the allowed values; 1 equals 1.0, but neither equals true."""
    return any(isinstance(value, bool) == isinstance(other, bool) and value == other for other in allowed)
