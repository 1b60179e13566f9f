"""The tokens of one request, as an asynchronous iterator."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from server.engine.params import Delta, FinishReason
from server.errors import ServerError


class TokenStream:
    """Iterator over the deltas of one request. Closing it early cancels the sequence.

    Iteration raises the `ServerError` that the request failed with.
    """

    def __init__(self, cancel: Callable[[], None]) -> None:
        self.finish_reason: FinishReason | None = None
        self._cancel: Callable[[], None] | None = cancel
        self._on_end: Callable[[], None] | None = None
        self._queue: asyncio.Queue[Delta | ServerError] = asyncio.Queue()

    def put(self, item: Delta | ServerError) -> None:
        """Add a delta or the final error. The engine client calls this on the event loop."""
        if isinstance(item, ServerError) or item.finish_reason is not None:
            self._end()
        self._queue.put_nowait(item)

    def on_end(self, call: Callable[[], None]) -> None:
        """Call `call` once, when the engine has ended the sequence or `close` has cancelled it."""
        self._on_end = call

    def close(self) -> None:
        """Cancel the sequence, unless it has ended. Idempotent."""
        if self._cancel is not None:
            self._cancel()
            self._end()

    def _end(self) -> None:
        self._cancel = None
        if self._on_end is not None:
            self._on_end()
            self._on_end = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        if self.finish_reason is not None:
            raise StopAsyncIteration
        item = await self._queue.get()
        if isinstance(item, ServerError):
            raise item
        self.finish_reason = item.finish_reason
        return item
