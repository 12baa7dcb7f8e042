"""What a client may ask of `/v1/chat/completions`, read strictly: what would be ignored is refused, unless it changes nothing."""

from __future__ import annotations

import dataclasses
import json
import secrets
from typing import Any

from stepreward.serve.batcher import Request
from stepreward.serve.models import Served
from stepreward.text import cleaned

MOST_STOPS = 16
_NEUTRAL = {"user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key"}
# Accepted at the value that asks for nothing.
_ABSENT: dict[str, tuple] = {
    "n": (1,), "logprobs": (False,), "top_logprobs": (0,), "presence_penalty": (0,), "frequency_penalty": (0,),
    "logit_bias": ({},), "tools": ([],), "functions": ([],), "tool_choice": ("none",), "function_call": ("none",),
    "modalities": (["text"],),
}  # fmt: skip


class Refused(Exception):
    """A request that gets an error for an answer; becomes OpenAI's error object.

    Attributes:
      status: of HTTP.
      message: for the client's user.
      code, param: what programs look at.
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
    """A request as read.

    Attributes:
      request: what the batcher takes.
      stream: as server-sent events.
      usage: the stream ends with the numbers of tokens.
    """

    request: Request
    stream: bool
    usage: bool


def parse(body: bytes, served: Served, *, ignore_format: bool = False) -> Asked:
    """Reads a request's body.

    Args:
      body: JSON as OpenAI's chat interface has it, see docs/serve.md.
      served: gives defaults, limits and the tokens of messages.
      ignore_format: let requests for JSON pass as requests for text.

    Raises:
      Refused: something is wrong with it, or is not offered.
    """
    try:
        said = cleaned(json.loads(body))  # JSON can spell halves of characters
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not valid JSON") from None
    if not isinstance(said, dict):
        raise Refused(400, "the body is not a JSON object")
    said = {key: value for key, value in said.items() if value is not None and key not in _NEUTRAL}
    fields = _Fields(said)
    model = fields.take("model", str, served.name)
    if model != served.name:
        raise Refused(404, f"no model {model!r} here; this server has {served.name!r}", code="model_not_found", param="model")
    messages = _messages(fields.take("messages", list, None))
    template = fields.take("chat_template_kwargs", dict, {})
    thinking = template.get("enable_thinking")
    if set(template) - {"enable_thinking"} or not (thinking is None or isinstance(thinking, bool)):
        raise Refused(400, "chat_template_kwargs may hold enable_thinking, true or false", param="chat_template_kwargs")
    try:
        prompt = served.conversations.prompt(messages, thinking)
    except ValueError as error:
        raise Refused(400, str(error), param="messages") from None
    stop = fields.take("stop", (str, list), [])
    stop = tuple([stop] if isinstance(stop, str) else stop)
    if len(stop) > MOST_STOPS or not all(isinstance(text, str) and text for text in stop):
        raise Refused(400, f"stop must be a string or at most {MOST_STOPS} strings, none empty", param="stop")
    stream = fields.take("stream", bool, False)
    options = fields.take("stream_options", dict, {})
    _check_format(fields.take("response_format", dict, {"type": "text"}), ignore_format)
    request = Request(
        prompt,
        _max_tokens(fields, served, len(prompt)),
        fields.number("temperature", served.temperature, 0, 100),
        fields.take("top_k", int, served.top_k, lambda k: 0 <= k < 2**31, "at least 0 (0 keeps all tokens)"),
        fields.number("top_p", served.top_p, 0, 1, positive=True),
        fields.take("seed", int, secrets.randbits(63), lambda seed: 0 <= seed < 2**64, "at least 0 and less than 2**64"),
        stop,
    )
    fields.refuse_the_rest()
    return Asked(request, stream, options.get("include_usage") is True)


def _max_tokens(fields: "_Fields", served: Served, prompt: int) -> int:
    length = served.engine.max_length
    room = length - prompt
    if room < 1:
        raise Refused(
            400, f"the messages have {prompt} tokens, and the server takes {length} with the answer: shorten them",
            code="context_length_exceeded", param="messages",
        )  # fmt: skip
    newer, older = (fields.take(name, int, None) for name in ("max_completion_tokens", "max_tokens"))
    longest = older if newer is None else newer
    if longest is None:
        return min(served.max_tokens, room)
    if not 0 < longest <= served.max_tokens:
        raise Refused(
            400, f"max_tokens is {longest}: give 1 to {served.max_tokens}, this server's longest answer", param="max_tokens"
        )
    if longest > room:
        raise Refused(
            400, f"the messages have {prompt} tokens and max_tokens is {longest}, together more than the server's {length}",
            code="context_length_exceeded", param="messages",
        )  # fmt: skip
    return longest


def _messages(said: list | None) -> list[tuple[str, str]]:
    if not said:
        raise Refused(400, "messages is missing or empty", param="messages")
    found = []
    for index, message in enumerate(said):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Refused(400, f"{where} is no object with a role", param="messages")
        role = "system" if message["role"] == "developer" else message["role"]
        if role not in ("system", "user", "assistant"):
            raise Refused(400, f"{where} has the role {role!r}: there are system, user and assistant", param="messages")
        wrong = sorted(key for key, value in message.items() if value and key not in ("role", "content", "name"))
        if wrong:
            raise Refused(400, f"{where} has {wrong[0]}, which this server does not know", param="messages")
        found.append((role, _text(message.get("content"), where)))
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
        400, f"response_format {kind!r} is not offered: answers are free text. Ask for JSON in the messages and leave "
        "response_format out, or start the server with --ignore-response-format", param="response_format",
    )  # fmt: skip


class _Fields:
    """The keys of a body, each to be taken once."""

    def __init__(self, said: dict[str, Any]):
        self._said = dict(said)

    def take(self, name: str, kind, default, right=lambda value: True, told: str = "") -> Any:
        """The value of a key; JSON's true and false are no numbers."""
        value = self._said.pop(name, default)
        if value is default:
            return value
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds) or not right(value):
            raise Refused(400, f"{name} must be {told or ' or '.join(k.__name__ for k in kinds)}", param=name)
        return value

    def number(self, name: str, default: float, low: float, high: float, positive: bool = False) -> float:
        right = lambda x: low <= x <= high and (x > 0 or not positive)  # no NaN passes
        told = f"a number {'above' if positive else 'of at least'} {low} and at most {high}"
        return float(self.take(name, (int, float), default, right, told))

    def refuse_the_rest(self) -> None:
        for name, value in self._said.items():
            if not any(type(value) is type(x) and value == x for x in _ABSENT.get(name, ())) and not (
                name in _ABSENT and isinstance(value, float) and value == 0
            ):
                raise Refused(400, f"{name} is not offered by this server: leave it out", param=name)
