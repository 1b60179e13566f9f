"""Budgets of memory and disk space that running requests share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

from server.errors import Overloaded


class ByteBudget:
    """Budget that refuses what it has no room for. One holder at a time may exceed it: a single
    large body is allowed, many at once are not."""

    def __init__(self, max_bytes: int, what: str) -> None:
        """`what` is said to be used up when a request is refused."""
        self._free = max_bytes
        self._what = what
        self._held: dict[Hashable, int] = {}
        self._large: Hashable | None = None

    def hold(self, holder: Hashable, num_bytes: int) -> None:
        """Charge a holder for `num_bytes` in total so far.

        Raises `Overloaded`; the holder is then charged for nothing, as it has to give up.
        """
        if holder is self._large:
            return
        growth = num_bytes - self._held.get(holder, 0)
        if growth <= self._free:
            self._free -= growth
            self._held[holder] = num_bytes
        elif self._large is None:
            self.release(holder)
            self._large = holder
        else:
            self.release(holder)
            raise Overloaded(f"other requests use all {self._what}")

    def release(self, holder: Hashable) -> None:
        """Return what a holder was charged. Idempotent."""
        self._free += self._held.pop(holder, 0)
        if holder is self._large:
            self._large = None


class MemoryTurns:
    """Bounds the memory of work in progress. Work waits for its turn, in the order of arrival; what
    needs more than all of the memory runs alone."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = self._free = max_bytes
        self._queue = asyncio.Lock()  # first come, first served
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def turn(self, num_bytes: int) -> AsyncIterator[None]:
        """Wait until `num_bytes` are free and hold them. Turns must not be nested."""
        charged = min(num_bytes, self._max_bytes)
        async with self._queue:
            while charged > self._free:
                self._freed.clear()
                await self._freed.wait()
            self._free -= charged
        try:
            yield
        finally:
            self._free += charged
            self._freed.set()
