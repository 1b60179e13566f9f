"""Tokens of one request, from the engine process to whoever awaits them in the API process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from server.engine.params import Delta, FinishReason
from server.errors import ServerError


class TokenStream:
    """Deltas of one request as they come. Closing it before the end cancels the sequence."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self.finish_reason: FinishReason | None = None
        self._cancel: Callable[[], None] | None = cancel
        self._queue: asyncio.Queue[Delta | ServerError] = asyncio.Queue()

    def put(self, item: Delta | ServerError) -> None:
        """Called by the engine client, on the event loop."""
        if isinstance(item, ServerError) or item.finish_reason is not None:
            self._cancel = None
        self._queue.put_nowait(item)

    def close(self) -> None:
        """The reader is gone. Idempotent."""
        if self._cancel is not None:
            self._cancel()
            self._cancel = None

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
