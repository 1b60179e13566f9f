"""Requests that the engine process has not finished: open token streams and awaited replies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from server.engine.ipc import messages as m
from server.engine.ipc.stream import TokenStream
from server.engine.params import Delta
from server.errors import (
    CompileFailed,
    InvalidRequest,
    PinRefused,
    PrefixUnavailable,
    ServerError,
    StepFailed,
    Unavailable,
)

_FAILURES: dict[str, type[ServerError]] = {
    error.code: error
    for error in (
        StepFailed,
        PrefixUnavailable,
        CompileFailed,
        PinRefused,
        Unavailable,
        InvalidRequest,
    )
}


class PendingRequests:
    """Token streams and replies by request id, to which events of the engine are dispatched."""

    def __init__(self) -> None:
        self._streams: dict[int, TokenStream] = {}
        self._replies: dict[int, asyncio.Future[m.Event]] = {}

    @property
    def num_streams(self) -> int:
        return len(self._streams)

    def add_stream(self, request_id: int, stream: TokenStream) -> None:
        self._streams[request_id] = stream

    def remove_stream(self, request_id: int) -> None:
        """Forget a stream, if it is still open."""
        self._streams.pop(request_id, None)

    async def reply(self, request_id: int, cancel: Callable[[], None]) -> m.Event:
        """Wait for the reply to a request. `cancel` is called if the caller is cancelled."""
        try:
            return await self._add_reply(request_id)
        except asyncio.CancelledError:
            self._replies.pop(request_id, None)
            cancel()
            raise

    async def last_reply(self, request_id: int, cancel: Callable[[], None]) -> m.Event:
        """Wait for the reply to a request that is answered even if it is cancelled.

        If the caller is cancelled too late for the request to fail, this returns all the same.
        """
        reply = self._add_reply(request_id)
        try:
            return await asyncio.shield(reply)
        except asyncio.CancelledError:
            cancel()
            with suppress(ServerError):
                return await reply
            raise

    def _add_reply(self, request_id: int) -> asyncio.Future[m.Event]:
        reply: asyncio.Future[m.Event] = asyncio.get_running_loop().create_future()
        self._replies[request_id] = reply
        return reply

    def dispatch(self, event: m.Tokens | m.Failed | m.Reply) -> None:
        """Pass an event to the stream or the future of its request."""
        match event:
            case m.Tokens(deltas=deltas):
                for delta in deltas:
                    self._deliver(delta.request_id, delta, last=delta.finish_reason is not None)
            case m.Failed(request_id=request_id, code=code, message=message):
                self._fail(request_id, _FAILURES.get(code, StepFailed)(message))
            case _:
                self._resolve(event.request_id, event)

    def fail_all(self, error: type[ServerError], message: str) -> None:
        """Fail every pending request, each with an error of its own."""
        for request_id in [*self._streams, *self._replies]:
            self._fail(request_id, error(message))

    def _fail(self, request_id: int, error: ServerError) -> None:
        self._deliver(request_id, error, last=True)
        self._resolve(request_id, error)

    def _deliver(self, request_id: int, item: Delta | ServerError, *, last: bool) -> None:
        stream = self._streams.pop(request_id, None) if last else self._streams.get(request_id)
        if stream is not None:
            stream.put(item)

    def _resolve(self, request_id: int, result: m.Event | ServerError) -> None:
        reply = self._replies.pop(request_id, None)
        if reply is None or reply.done():
            return
        if isinstance(result, ServerError):
            reply.set_exception(result)
        else:
            reply.set_result(result)
