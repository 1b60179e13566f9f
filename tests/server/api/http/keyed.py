"""Constants of the tests of keys."""

from __future__ import annotations

from collections.abc import Callable

SCOPES = ("generate", "read", "write", "promote", "delete", "admin")
GENERATE = {"prompt": "hi", "max_tokens": 2}
CHAT = [{"role": "user", "content": "hi"}]

Make = Callable[..., dict[str, str]]
