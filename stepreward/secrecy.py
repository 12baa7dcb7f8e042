"""Configs without secrets, for what leaves the machine: trackers, model cards, exported folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

HIDDEN = "(hidden)"
_SECRET = re.compile(r"(^|[._-])(api_?key|key|token|secret|password|passwd|credentials?|auth|authorization)$", re.IGNORECASE)


def public(config: Mapping[str, Any], plain: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Returns a config without secrets.

    Args:
      config: values by dotted key, or nested.
      plain: names of keys that are named like a secret and hold none.

    Returns:
      The same keys. The value of a key that is named like a secret (`…token`, `…api_key`) is `(hidden)`; a URL has neither password nor query.
    """
    hidden = lambda key: key.rpartition(".")[2] not in plain and _SECRET.search(key)
    return {key: HIDDEN if value and hidden(key) else _without_secrets(value, plain) for key, value in config.items()}


def _without_secrets(value: Any, plain: frozenset[str]) -> Any:
    if isinstance(value, Mapping):
        return public(value, plain)
    if isinstance(value, (list, tuple)):
        return [_without_secrets(item, plain) for item in value]
    if isinstance(value, str) and "://" in value:
        try:
            parts = urlsplit(value)
            return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
        except ValueError:
            return HIDDEN
    return value
