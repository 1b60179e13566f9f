"""Middleware that limits the size of request heads and rejects ambiguous headers."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.http import problems
from server.errors import HeadTooLarge, MalformedRequest, ServerError

MAX_HEAD_BYTES = 32 << 10
_MAX_HEADERS = 100
_HOST = re.compile(rb"([\w.~%!$&'()*+,;=-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{0,5})?", re.ASCII)
_SINGLE = (b"host", b"content-type", b"content-encoding", b"content-length", b"transfer-encoding")


class HeadLimits:
    """Rejects heads that are too large, repeated unique headers, and invalid Host headers.

    h11 accepts these: it limits the size of a head only while the head is incomplete.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                _check_head(scope)
            except ServerError as exc:
                await problems.respond(scope, exc)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _check_head(scope: Scope) -> None:
    num_bytes = len(scope["raw_path"]) + len(scope["query_string"])
    num_bytes += sum(len(name) + len(value) for name, value in scope["headers"])
    if num_bytes > MAX_HEAD_BYTES or len(scope["headers"]) > _MAX_HEADERS:
        raise HeadTooLarge(f"the limit is {MAX_HEAD_BYTES} bytes and {_MAX_HEADERS} headers")
    names = [name for name, _ in scope["headers"]]
    if any(names.count(name) > 1 for name in _SINGLE):
        raise MalformedRequest("a header that must be unique is given twice")
    if not all(_HOST.fullmatch(value) for name, value in scope["headers"] if name == b"host"):
        raise MalformedRequest("the Host header is not a host")
