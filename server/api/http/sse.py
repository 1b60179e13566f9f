"""Server-sent event streams."""

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


class EventStream(Response):
    """Streams events. `close` is always called at the end, also on failure or cancellation."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        close: Callable[[], None],
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers}
        )
        del self.headers["content-length"]
        self._events = events
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            async with aclosing(self._events) as events:
                await send(start)
                async for chunk in events:
                    await send(_body(chunk, more=True))
                await send(_body(b"", more=False))
        finally:
            self._close()


def _body(chunk: bytes, *, more: bool) -> dict[str, object]:
    return {"type": "http.response.body", "body": chunk, "more_body": more}
