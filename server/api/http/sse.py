"""Answers that are sent in pieces, such as server-sent event streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_encoder = msgspec.json.Encoder()


def event(name: str, data: object) -> bytes:
    """Encode a named event. `data` is a msgspec struct or plain data."""
    return b"event: " + name.encode() + b"\ndata: " + _encoder.encode(data) + b"\n\n"


def data(data: object) -> bytes:
    """Encode an unnamed event, in OpenAI's format."""
    return b"data: " + _encoder.encode(data) + b"\n\n"


DONE = b"data: [DONE]\n\n"


class Streamed(Response):
    """Sends pieces. `close` is always called at the end, also on failure or cancellation, and if
    the client has left before the first piece."""

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        *,
        close: Callable[[], object],
        headers: Mapping[str, str],
        media_type: str | None = None,
        num_bytes: int | None = None,
    ) -> None:
        """`num_bytes`: size of all pieces, if it is known."""
        super().__init__(headers=headers, media_type=media_type)
        del self.headers["content-length"]
        if num_bytes is not None:
            self.headers["content-length"] = str(num_bytes)
        self._pieces = pieces
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        try:
            async with aclosing(self._pieces) as pieces:
                await send(start)
                async for piece in pieces:
                    await send(_body(piece, more=True))
                await send(_body(b"", more=False))
        finally:
            self._close()


class EventStream(Streamed):
    """Streams events."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        close: Callable[[], object],
        headers: Mapping[str, str],
    ) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers}
        super().__init__(events, close=close, headers=headers)


def _body(chunk: bytes, *, more: bool) -> dict[str, object]:
    return {"type": "http.response.body", "body": chunk, "more_body": more}
