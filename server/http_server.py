"""uvicorn with deadlines: for a request's head to arrive, and for requests to end at shutdown."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from typing import ClassVar

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.api.deps import Services
from server.api.middleware import MAX_HEAD_BYTES

logger = logging.getLogger(__name__)

_DRAIN_MARGIN_S = 5.0


class DeadlineProtocol(H11Protocol):
    """Closes a connection whose request line and headers do not arrive in time.

    uvicorn itself waits for ever, also at shutdown. Bodies have their own limit in the middleware.
    """

    HEAD_TIMEOUT_S: ClassVar[float] = 10.0

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio sets this only on sockets made with an explicit protocol number; without it, the
        # tokens of a stream wait up to 40 ms for the acknowledgement of those before.
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._arm()

    def data_received(self, data: bytes) -> None:
        if not self._is_answering:
            self._arm()
        super().data_received(data)
        if self._is_answering:
            self._disarm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

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


class HttpServer(uvicorn.Server):
    """Drains: from the signal on nothing new is taken, and what runs has a deadline to finish."""

    def __init__(self, app: FastAPI, *, drain_timeout_s: float) -> None:
        self._services: Services = app.state.services
        self._drain_timeout_s = drain_timeout_s
        config = uvicorn.Config(
            app,
            http=DeadlineProtocol,
            ws="none",
            lifespan="off",  # entered by the caller: a failed start is one line, not a traceback
            log_config=None,
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_graceful_shutdown=math.ceil(drain_timeout_s + _DRAIN_MARGIN_S),
        )
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn once a signal has come."""
        self._services.router.drain()
        deadline = asyncio.create_task(self._end_what_runs())
        try:
            await super().shutdown(sockets)
        finally:
            deadline.cancel()

    async def _end_what_runs(self) -> None:
        """Streams that outlive the deadline end with an `error` event, not a torn connection."""
        await asyncio.sleep(self._drain_timeout_s)
        num_cut = self._services.engine.num_in_flight
        logger.warning("%d requests did not finish in %g s", num_cut, self._drain_timeout_s)
        await self._services.engine.stop(0)
