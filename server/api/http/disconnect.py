"""Cancellation of requests whose client has disconnected."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.cancellation import Client, current
from server.errors import ClientGone, ServerError

_DISCONNECT = "http.disconnect"


def until_disconnect(route: BaseRoute) -> BaseRoute:
    """Return a copy of a route that cancels a request whose client has disconnected."""
    watched: Any = copy.copy(route)  # a router's routes are shared by all apps of a process
    watched.app = UntilDisconnect(watched.app, reads_body=_reads_body(route))
    return watched  # type: ignore[no-any-return]


def _reads_body(route: BaseRoute) -> bool:
    """Whether a route reads its body first, whatever it does with it."""
    is_raw = "requestBody" in (getattr(route, "openapi_extra", None) or {})
    return is_raw or getattr(route, "body_field", None) is not None


class UntilDisconnect:
    """ASGI app of a route. Cancels it when the client disconnects, unless it has made a change."""

    def __init__(self, app: ASGIApp, *, reads_body: bool) -> None:
        """`reads_body`: its body is not read ahead, since it may be refused before it is read."""
        self._app = app
        self._reads_body = reads_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = _Connection(receive, send)
        if not (self._reads_body and _has_body(scope)):
            connection.watch()
        token = current.set(connection)
        try:
            await self._app(scope, connection.receive, connection.send)
        except asyncio.CancelledError:
            if not connection.was_cancelled_here():
                raise
            if not connection.is_answering:
                raise connection.error() from None
        finally:
            current.reset(token)
            connection.close()


def _has_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


class _Connection(Client):
    """A request's messages. Listens for the disconnect once the body has been read.

    The server reads from the socket only while somebody waits for a message, so that a look at the
    end of the work would miss a disconnect.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._task = asyncio.current_task()
        self._num_cancels = 0 if self._task is None else self._task.cancelling()
        self._watcher: asyncio.Task[None] | None = None
        self._read_ahead: asyncio.Queue[Message] = asyncio.Queue()
        self._error: ServerError | None = None
        self._is_held = False
        self._is_cancelled = False
        self.is_answering = False

    def watch(self) -> None:
        """Read ahead from now on, up to the disconnect."""
        self._watcher = asyncio.create_task(self._watch(), name="disconnect")

    def close(self) -> None:
        """Stop listening."""
        self.was_cancelled_here()
        if self._watcher is not None:
            self._watcher.cancel()

    def was_cancelled_here(self) -> bool:
        """Whether the request was cancelled because of its client, and by nobody else."""
        if not self._is_cancelled or self._task is None:
            return False
        self._is_cancelled = False
        return self._task.uncancel() <= self._num_cancels

    def error(self) -> ServerError:
        """Return why the request was cancelled."""
        return self._error or ClientGone("the client closed the connection")

    # --- what a request sees ---

    async def receive(self) -> Message:
        if self._watcher is None:
            message = await self._receive()
            if message["type"] == _DISCONNECT or not message.get("more_body", False):
                self.watch()
            return message
        message = await self._read_ahead.get()
        if message["type"] == _DISCONNECT:
            self._read_ahead.put_nowait(message)  # it is the last one
        return message

    async def send(self, message: Message) -> None:
        self.is_answering = True
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.hold()  # the server calls the end of an answer a disconnect, too
        await self._send(message)

    # --- the client ---

    def hold(self) -> None:
        self._is_held = True

    def release(self) -> None:
        self._is_held = False
        if self.is_gone:
            self._cancel()

    async def _watch(self) -> None:
        try:
            while (message := await self._receive())["type"] != _DISCONNECT:
                self._read_ahead.put_nowait(message)
        except ServerError as exc:
            self._error = exc
        self.is_gone = True
        self._read_ahead.put_nowait({"type": _DISCONNECT})
        if not self._is_held:
            self._cancel()

    def _cancel(self) -> None:
        if self._task is not None and not self._is_cancelled:
            self._is_cancelled = True
            self._task.cancel()
