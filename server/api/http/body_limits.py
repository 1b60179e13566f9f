"""Middleware that limits the size, duration and memory of request bodies."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefix_store import formats
from server.api.http import problems
from server.budgets import ByteBudget
from server.errors import (
    BodyTimeout,
    BodyTooLarge,
    ClientGone,
    MalformedRequest,
    ServerError,
    UnsupportedBody,
)
from server.publishing import spool
from server.settings import Settings

_UPLOAD = re.compile(r"/tasks/[^/]+/(?:prefix|versions)")
_MIN_BYTES_PER_S = 4 << 10
_LINGER_S = 1.0
_SMALL_BODY = 64 << 10
"""Smaller bodies take nothing of the budget, so that large ones never block them."""
_MAX_BYTES_OF_ALL = 96 << 20
"""Memory for all bodies above `_SMALL_BODY`, except the largest."""


class BodyLimits:
    """Middleware that rejects bodies that are too large, encoded, or too slow, before parsing."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._budget = ByteBudget(_MAX_BYTES_OF_ALL, "the memory reserved for bodies")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limits = self._limits_of(scope)
        body = _Body(Headers(scope=scope), limits, receive, send)
        try:
            body.check_headers()
        except ServerError as exc:
            await problems.respond(scope, exc)(scope, body.receive, body.send)
            return
        try:
            await self._app(scope, body.receive, body.send)
        finally:
            self._budget.release(body)

    def _limits_of(self, scope: Scope) -> BodyLimit:
        settings = self._settings
        max_bytes, max_in_memory = settings.max_body_bytes, sys.maxsize
        if scope["method"] in ("PUT", "POST") and _UPLOAD.fullmatch(scope["path"]):
            is_json = Headers(scope=scope).get("content-type", "").lower().startswith(formats.JSON)
            max_bytes = settings.max_upload_bytes
            max_bytes = min(max_bytes, formats.MAX_JSON_BYTES) if is_json else max_bytes
            max_in_memory = spool.PIECE_BYTES  # the route moves the rest to disk as it arrives
        return BodyLimit(max_bytes, max_in_memory, settings.body_timeout_s, self._budget)


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """Limits of one request's body."""

    max_bytes: int
    max_in_memory: int
    """Most bytes of the body that are in memory at a time."""
    timeout_s: float
    budget: ByteBudget


class _Body:
    """A request's body: measured while it is read, drained if it is not wanted."""

    def __init__(self, headers: Headers, limit: BodyLimit, receive: Receive, send: Send) -> None:
        self._headers = headers
        self._max_bytes = limit.max_bytes
        self._max_in_memory = limit.max_in_memory
        self._timeout_s = limit.timeout_s
        self._budget = limit.budget
        self._receive = receive
        self._send = send
        self._num_bytes = 0
        self._waited_s = 0.0
        self._is_read = not ({"content-length", "transfer-encoding"} & set(headers.keys()))

    def check_headers(self) -> None:
        """Check everything that can be checked without reading the body."""
        if self._headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise UnsupportedBody("send the body without a content encoding")
        if "transfer-encoding" in self._headers and "content-length" in self._headers:
            raise MalformedRequest("both a content length and a transfer encoding")
        if self._content_length > self._max_bytes:
            raise BodyTooLarge(f"the body may have {self._max_bytes} bytes at most")

    async def receive(self) -> Message:
        if self._is_read:
            return await self._receive()  # only the disconnect is left, without a timeout
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(min(self._timeout_s, self._patience_s)):
                message = await self._receive()
        except TimeoutError:
            raise BodyTimeout(
                f"the body stalled for {self._timeout_s:g} s, or is slower than "
                f"{_MIN_BYTES_PER_S} bytes per second"
            ) from None
        self._waited_s += time.monotonic() - started_s
        if message["type"] != "http.request":
            self._is_read = True
            raise ClientGone("the client disconnected before its body was complete")
        self._num_bytes += len(message.get("body", b""))
        self._is_read = not message.get("more_body", False)
        if self._num_bytes > self._max_bytes:
            raise BodyTooLarge(f"the body may have {self._max_bytes} bytes at most")
        if self._num_bytes > _SMALL_BODY:
            self._budget.hold(self, min(self._num_bytes, self._max_in_memory))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not self._is_read and self._is_large:
            MutableHeaders(scope=message)["connection"] = "close"
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if is_last and not self._is_read:
            # Closing while the client still sends would reset the connection and lose our response.
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    @property
    def _patience_s(self) -> float:
        """Remaining time budget of the body, in seconds, given the bytes received so far."""
        return self._timeout_s + self._num_bytes / _MIN_BYTES_PER_S - self._waited_s

    @property
    def _content_length(self) -> int:
        given = self._headers.get("content-length", "0")
        if not given.isascii() or not given.isdigit():
            raise MalformedRequest("the content length is not a number")
        return int(given[:20])

    @property
    def _is_large(self) -> bool:
        chunked = "transfer-encoding" in self._headers
        return chunked or self._content_length - self._num_bytes > _SMALL_BODY

    async def _drain(self) -> None:
        if "expect" in self._headers:
            return  # the client waits for a 100 before it sends
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while not self._is_read:
                    message = await self._receive()
                    self._is_read = not message.get("more_body", False)
