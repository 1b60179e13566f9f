"""uvicorn with timeouts for request heads, slow readers, and requests at shutdown."""

from __future__ import annotations

import asyncio
import logging
import math
import resource
import socket
import sys
from functools import partial
from typing import Any, ClassVar

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.api.http import problems
from server.api.http.deps import Services
from server.api.http.head_limits import MAX_HEAD_BYTES

logger = logging.getLogger(__name__)

_DRAIN_MARGIN_S = 5.0
_SLICE_BYTES = 16 << 10
_MAX_SMALL_CHUNKS = 1000
_MIN_CHUNK = 256
_MAX_UNSENT_BYTES = 16 << 10
_OTHER_FILES = 256
"""File descriptors reserved for blobs, the registry and logs."""
MIN_FILES = _OTHER_FILES + 64
"""Smallest limit of open files with which the server works."""


class ChunkLimitConnection(h11.Connection):
    """Connection that rejects bodies in tiny chunks, as every chunk costs the same to parse."""

    _num_chunks = 0
    _num_bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._num_chunks = self._num_bytes = 0
        elif isinstance(event, h11.Data):
            self._num_chunks += event.chunk_start
            self._num_bytes += len(event.data)
            if self._num_chunks > _MAX_SMALL_CHUNKS + self._num_bytes // _MIN_CHUNK:
                raise h11.RemoteProtocolError("the chunks of the body are too small")
        return event


class DeadlineProtocol(H11Protocol):
    """Closes connections whose client is too slow to send a head or to read a response.

    uvicorn waits forever, even at shutdown. Bodies are limited by the middleware. `idle` has the
    server's connections without a running request, longest idle first.
    """

    HEAD_TIMEOUT_S: ClassVar[float] = 10.0

    def __init__(
        self,
        *args: Any,
        write_timeout_s: float,
        max_connections: int,
        idle: dict[DeadlineProtocol, None],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.conn = ChunkLimitConnection(h11.SERVER, MAX_HEAD_BYTES)
        self._write_timeout_s = write_timeout_s
        self._max_connections = max_connections
        self._idle = idle
        self._deadline: asyncio.TimerHandle | None = None
        self._write_check: asyncio.TimerHandle | None = None
        self._num_unsent = 0
        self._stalled_since_s = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            victim = next(iter(self._idle), self)
            self._idle.pop(victim, None)
            victim.transport.abort()
        self._idle[self] = None
        connection: socket.socket = transport.get_extra_info("socket")
        # asyncio sets this only on sockets made with an explicit protocol number; without it, the
        # tokens of a stream wait up to 40 ms for the acknowledgement of those before.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Megabytes in the kernel's send buffer would hide a client that does not read.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MAX_UNSENT_BYTES)
        transport.set_write_buffer_limits(high=0)  # pause as soon as the client falls behind
        self._arm()

    def data_received(self, data: bytes) -> None:
        if not self._is_answering:
            self._arm()
        for start in range(0, len(data), _SLICE_BYTES):  # h11 checks its limit between calls
            if not self.transport.is_closing():
                super().data_received(data[start : start + _SLICE_BYTES])
        if self._is_answering:
            self._disarm()
            self._idle.pop(self, None)

    def on_response_complete(self) -> None:
        self._idle[self] = None
        super().on_response_complete()
        if self._is_answering:  # a pipelined request has started
            self._idle.pop(self, None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._idle.pop(self, None)
        self._disarm()
        self._stop_checking()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP with a problem document, unless a response has already started."""
        # uvicorn calls this while it handles the parser's error.
        is_too_large = getattr(sys.exc_info()[1], "error_status_hint", None) == 431
        if self._is_answering:  # wake up the reader of the rest of the body
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            status, body = problems.unreadable(is_too_large=is_too_large)
            headers = [
                (b"content-type", b"application/problem+json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            for event in (
                h11.Response(status_code=status, headers=headers, reason=b""),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _arm(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.HEAD_TIMEOUT_S, self._expire)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        self._deadline = None
        if not self._is_answering and not self.transport.is_closing():
            self.transport.abort()

    # --- slow readers ---

    def pause_writing(self) -> None:
        super().pause_writing()
        self._num_unsent = self.transport.get_write_buffer_size()
        self._stalled_since_s = self.loop.time()
        self._check_later()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_checking()

    def _stop_checking(self) -> None:
        if self._write_check is not None:
            self._write_check.cancel()
            self._write_check = None

    def _check_later(self) -> None:
        self._write_check = self.loop.call_later(self._write_timeout_s / 4, self._check_progress)

    def _check_progress(self) -> None:
        """Abort if the client has read nothing within the timeout; slow progress is fine."""
        num_unsent = self.transport.get_write_buffer_size()
        now_s = self.loop.time()
        if num_unsent < self._num_unsent:
            self._num_unsent, self._stalled_since_s = num_unsent, now_s
        if now_s - self._stalled_since_s < self._write_timeout_s:
            self._check_later()
        else:
            logger.info("a client read nothing of its response for %g s", self._write_timeout_s)
            self.transport.abort()


class HttpServer(uvicorn.Server):
    """Server that drains at shutdown: no new requests, and a deadline for running ones."""

    def __init__(self, app: FastAPI, *, drain_timeout_s: float) -> None:
        self._services: Services = app.state.services
        self._drain_timeout_s = drain_timeout_s
        settings = self._services.settings
        max_connections = raise_file_limit(settings.max_connections)
        protocol = partial(
            DeadlineProtocol,
            write_timeout_s=settings.write_timeout_s,
            max_connections=max_connections,
            idle={},
        )
        config = uvicorn.Config(
            app,
            http=protocol,  # type: ignore[arg-type]
            ws="none",
            backlog=max_connections,
            lifespan="off",  # the caller enters it: a failed start is one line, no traceback
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(drain_timeout_s + _DRAIN_MARGIN_S),
        )
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain and stop. Called by uvicorn after a signal."""
        self._services.router.drain()
        deadline = asyncio.create_task(self._stop_at_deadline())
        try:
            await super().shutdown(sockets)
        finally:
            deadline.cancel()

    async def _stop_at_deadline(self) -> None:
        """Stop the engine at the deadline: streams end with an `error` event, not a reset."""
        await asyncio.sleep(self._drain_timeout_s)
        num_cut = self._services.engine.num_in_flight
        logger.warning("%d requests did not finish in %g s", num_cut, self._drain_timeout_s)
        await self._services.engine.stop(0)


def raise_file_limit(max_connections: int) -> int:
    """Raise the limit of open files if allowed; return the possible number of connections.

    asyncio accepts as many new connections as the backlog holds before the first of them can be
    closed, so that there may be twice as many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, 2 * max_connections + _OTHER_FILES)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return max(1, min(max_connections, (allowed - _OTHER_FILES) // 2))
