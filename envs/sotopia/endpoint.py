"""A language model behind an OpenAI-compatible /chat/completions address: retries, time limits, no key in anything it keeps."""

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

LARGEST = 8 << 20  # bytes of an answer that are read
LONGEST_WAIT = 10.0  # seconds between two tries
REACH_S = 10.0  # seconds in which a server must say that it is there
FINAL = (400, 401, 403, 404, 405, 422)  # statuses that another try will not change
_CODE = re.compile(r"[a-z]+(_[a-z]+)*")  # an error's code, such as context_length_exceeded: words, which no key is


class EndpointError(RuntimeError):
    """An endpoint gave no usable answer. The message names its role, address and model, and never a key or an answer's text."""

    def __init__(self, role: str, url: str, model: str, reason: str):
        super().__init__(role, url, model, reason)
        self.role, self.url, self.model, self.reason = role, url, model, reason

    def __str__(self) -> str:
        return f"the {self.role} at {self.url} (model {self.model}) did not answer: {self.reason}"


def words(text: str) -> str:
    """`text`, or ValueError where it is blank."""
    if not text.strip():
        raise ValueError("blank")
    return text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments, **named):
        return None  # a redirect would carry the key to another address


@dataclass(frozen=True)
class Endpoint:
    """One model at one address. The key is read from the environment at each request and kept nowhere.

    role: what the endpoint is called in errors. url: up to and with /v1. temperature: sent with each request.
    timeout_s: seconds for one request; an answer that comes in drops is cut off within twice that. retries: further tries.
    backoff_s: wait before the first; doubled each time.
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
        """The model's answer to chat messages {"role", "content"}, as `accept` returns it.

        accept: raises ValueError on an answer that cannot be used, such as a blank one; then the model is asked again.
        Raises EndpointError after the last try, or at once on a status that says that the request itself is refused.
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
                except ValueError:  # its text may repeat the answer
                    reason = "what it wrote cannot be used"
            if left:
                time.sleep(min(wait, LONGEST_WAIT))
                wait *= 2
        raise EndpointError(self.role, self.url, self.model, f"{reason} (tried {self.retries + 1} times)")

    def reach(self) -> None:
        """Raises EndpointError unless a server is there: one try, in which any status will do."""
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
        """What the server answers to a GET, or with a body to a POST."""
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
                        raise _Failed(f"an answer of more than {LARGEST} bytes")
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
        except (OSError, ValueError) as error:  # a broken answer, or a key that no header can hold: its text may show the key
            raise _Failed(f"the exchange broke off ({type(error).__name__})") from None
        except Exception as error:  # http.client's own
            raise error if isinstance(error, _Failed) else _Failed(f"the exchange broke off ({type(error).__name__})") from None


def _code(error: urllib.error.HTTPError) -> str:
    """The code that an OpenAI-compatible server gives for an error, in brackets; nothing where there is none."""
    try:
        code = json.loads(error.read(1 << 16))["error"]["code"]
        return f" ({code})" if _CODE.fullmatch(code) else ""
    except Exception:  # the body is broken off, or another server's
        return ""


class _Failed(Exception):
    """A try that failed; another may not."""


class _Status(_Failed):
    """The server answered with the status of an error."""


class _Refused(_Status):
    """A request that will be refused again."""
