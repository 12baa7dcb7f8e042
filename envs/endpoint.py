"""A client for a language model behind an OpenAI-compatible /chat/completions, with retries and time limits. It stores no key."""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

LARGEST = 8 << 20  # maximum size of an answer in bytes
LONGEST_WAIT = 10.0  # maximum seconds between two tries
REACH_S = 10.0  # seconds in which a server must respond to the first request
FINAL = (400, 401, 403, 404, 405, 422)  # statuses that a retry will not change
_CODE = re.compile(r"[a-z]+(_[a-z]+)*")  # an error's code, such as context_length_exceeded; a key never has this form


class EndpointError(RuntimeError):
    """An endpoint gave no usable answer. The message has its role, address and model, but never a key or an answer's text."""

    def __init__(self, role: str, url: str, model: str, reason: str):
        super().__init__(role, url, model, reason)
        self.role, self.url, self.model, self.reason = role, url, model, reason

    def __str__(self) -> str:
        return f"the {self.role} at {self.url} (model {self.model}) gave no usable answer: {self.reason}"


def words(text: str) -> str:
    """Returns `text`; raises ValueError when it is blank."""
    if not text.strip():
        raise ValueError("blank")
    return text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments, **named):
        return None  # a redirect would send the key to another address


@dataclass(frozen=True)
class Endpoint:
    """One model at one address. Each request reads the key from the environment; it is stored nowhere.

    role: the endpoint's name in errors. url: the address, up to and including /v1. temperature: sent with each request.
    timeout_s: seconds for one request; a slowly trickling answer is cut off within twice that time. retries: tries after the
    first. backoff_s: seconds before the first retry; doubled for each further one.
    """

    role: str
    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    timeout_s: float = 60.0
    retries: int = 3
    backoff_s: float = 0.5

    def complete(self, messages: Sequence[dict[str, str]], accept: Callable[[str], str] = words) -> str:
        """Asks the model for an answer to chat messages {"role", "content"}; returns `accept(answer)`.

        accept: raises ValueError for an unusable answer, such as a blank one; then the model is asked again.
        Raises EndpointError after the last try, or at once for a status that a retry will not change.
        """
        wait, reason = self.backoff_s, ""
        for left in range(self.retries, -1, -1):
            try:
                text = self._ask(messages)
            except _Refused as error:
                raise EndpointError(self.role, self.url, self.model, str(error)) from None
            except _Failed as error:
                reason = str(error)
            else:
                try:
                    return accept(text)
                except ValueError:  # drop the error's text, which may repeat the answer
                    reason = "its answer could not be parsed or was blank"
            if left:
                time.sleep(min(wait, LONGEST_WAIT))
                wait *= 2
        raise EndpointError(self.role, self.url, self.model, f"{reason} (tried {self.retries + 1} times)")

    def reach(self) -> None:
        """Raises EndpointError unless a server responds. It tries once and accepts any status."""
        try:
            self._exchange("models", None, min(self.timeout_s, REACH_S))
        except _Status:
            pass
        except _Failed as error:
            raise EndpointError(self.role, self.url, self.model, str(error)) from None

    def _ask(self, messages: Sequence[dict[str, str]]) -> str:
        body = json.dumps({"model": self.model, "messages": list(messages), "temperature": self.temperature}).encode()
        answer = self._exchange("chat/completions", body, self.timeout_s)
        try:
            text = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise _Failed("the answer is not a chat completion") from None
        if not isinstance(text, (str, type(None))):
            raise _Failed("the answer is not a chat completion")
        return text or ""  # a model that stopped at once

    def _exchange(self, path: str, body: bytes | None, timeout_s: float) -> bytes:
        """Sends a GET, or a POST if there is a body; returns the server's answer."""
        headers = {} if body is None else {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url.rstrip('/')}/{path}", body, headers)
        key = os.environ.get(self.key_variable)
        if key:
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        local = urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")
        handlers = [_NoRedirect(), *([urllib.request.ProxyHandler({})] if local else [])]
        end = time.monotonic() + timeout_s
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=timeout_s) as response:
                answer = bytearray()
                while part := response.read1(1 << 16):
                    answer += part
                    if time.monotonic() > end:
                        raise _Failed(f"no full answer within {timeout_s:g} s")
                    if len(answer) > LARGEST:
                        raise _Failed(f"the answer has more than {LARGEST} bytes")
                return bytes(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise (_Refused if error.code in FINAL else _Status)(f"status {error.code}{_code(error)}") from None
        except TimeoutError:
            raise _Failed(f"no full answer within {timeout_s:g} s") from None
        except urllib.error.URLError as error:
            late = isinstance(error.reason, TimeoutError)
            reason = f"no full answer within {timeout_s:g} s" if late else f"no connection ({type(error.reason).__name__})"
            raise _Failed(reason) from None
        except (OSError, ValueError) as error:  # a broken answer, or a key that is no legal header, which the error's text may show
            raise _Failed(f"the request failed ({type(error).__name__})") from None
        except Exception as error:  # errors of http.client
            raise error if isinstance(error, _Failed) else _Failed(f"the request failed ({type(error).__name__})") from None


def _code(error: urllib.error.HTTPError) -> str:
    """Returns the error code of an OpenAI-compatible server, in brackets; an empty string if there is none."""
    try:
        code = json.loads(error.read(1 << 16))["error"]["code"]
        return f" ({code})" if _CODE.fullmatch(code) else ""
    except Exception:  # the body is incomplete, or not from an OpenAI-compatible server
        return ""


class _Failed(Exception):
    """A try that failed; a retry may succeed."""


class _Status(_Failed):
    """The server answered with an error status."""


class _Refused(_Status):
    """The server refused the request; a retry will not help."""
