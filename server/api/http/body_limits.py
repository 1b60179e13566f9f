"""Middleware that limits the size, duration and memory of request bodies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.http import problems
from server.errors import (
    BodyTimeout,
    BodyTooLarge,
    ClientGone,
    MalformedRequest,
    Overloaded,
    ServerError,
    UnsupportedBody,
)

_MIN_BYTES_PER_S = 4 << 10
_LINGER_S = 1.0
_SMALL_BODY = 64 << 10
_MAX_BYTES_OF_ALL = 192 << 20
"""Memory for all bodies above `_SMALL_BODY`, except the largest."""


class BodyBudget:
    """Memory budget of the bodies of all running requests.

    Small bodies are free, so that uploads never block them. One body at a time may exceed the
    budget: a single large upload is allowed, many at once are not.
    """

    def __init__(self, max_bytes: int) -> None:
        self._free = max_bytes
        self._held: dict[_Body, int] = {}
        self._large: _Body | None = None

    def hold(self, body: _Body, num_bytes: int) -> None:
        """Charge a body of which `num_bytes` have arrived so far. Raises `Overloaded`."""
        if body is self._large or num_bytes <= _SMALL_BODY:
            return
        growth = num_bytes - self._held.get(body, 0)
        if growth <= self._free:
            self._free -= growth
            self._held[body] = num_bytes
        elif self._large is None:
            self.release(body)
            self._large = body
        else:
            raise Overloaded("the bodies of other requests use all the memory reserved for them")

    def release(self, body: _Body) -> None:
        """Return a body's memory once the request is answered. Idempotent."""
        self._free += self._held.pop(body, 0)
        if body is self._large:
            self._large = None


class BodyLimits:
    """Middleware that rejects bodies that are too large, encoded, or too slow, before parsing."""

    def __init__(
        self, app: ASGIApp, *, max_bytes: Callable[[Scope], int], timeout_s: float
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._budget = BodyBudget(_MAX_BYTES_OF_ALL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limits = BodyLimit(self._max_bytes(scope), self._timeout_s, self._budget)
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


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """Limits of one request's body."""

    max_bytes: int
    timeout_s: float
    budget: BodyBudget


class _Body:
    """A request's body: measured while it is read, drained if it is not wanted."""

    def __init__(self, headers: Headers, limit: BodyLimit, receive: Receive, send: Send) -> None:
        self._headers = headers
        self._max_bytes = limit.max_bytes
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
        self._budget.hold(self, self._num_bytes)
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
