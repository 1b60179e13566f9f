"""Uploads and exports on disk: bodies until it is their turn, exports until they are sent."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from io import FileIO
from pathlib import Path
from typing import ParamSpec, TypeVar

from prefix_store.digest import Data
from prefix_store.errors import StorageFailure
from server.budgets import ByteBudget

P = ParamSpec("P")
T = TypeVar("T")

PIECE_BYTES = 256 << 10
"""Bytes that are collected in memory before they are written, and read at a time."""


class Spool:
    """Temporary files without names, in a folder on the file system of the store.

    They are gone when the process is, also if it is killed. `executor` reads and writes them.
    """

    def __init__(self, folder: Path, *, max_bytes: int, executor: Executor) -> None:
        """`max_bytes`: disk space for all files, except for the largest one."""
        self._folder = folder
        self._budget = ByteBudget(max_bytes, "the disk space reserved for uploads and exports")
        self._executor = executor

    def open(self) -> SpoolFile:
        """Return an empty file, which has to be discarded."""
        return SpoolFile(self._folder, self._budget, self._executor)

    @asynccontextmanager
    async def collect(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[SpoolFile]:
        """Collect a body. Raises `Overloaded`, `StorageFailure`, and what `pieces` raises."""
        file = self.open()
        try:
            async for piece in pieces:
                file.append(piece)
                if file.num_unwritten > PIECE_BYTES:
                    file.reserve(file.num_bytes)
                    await file.run(file.write_out)
            yield file
        finally:
            await file.discard()


class SpoolFile:
    """Bytes that are appended, kept in memory while they are few, and read later."""

    def __init__(self, folder: Path, budget: ByteBudget, executor: Executor) -> None:
        self._folder = folder
        self._budget = budget
        self._executor = executor
        self._unwritten: list[Data] = []
        self._file: FileIO | None = None
        self.num_bytes = 0
        self.num_unwritten = 0

    def append(self, piece: Data) -> None:
        """Append bytes in memory."""
        self._unwritten.append(piece)
        self.num_bytes += len(piece)
        self.num_unwritten += len(piece)

    def reserve(self, num_bytes: int) -> None:
        """Charge the disk budget for the whole file. Raises `Overloaded`."""
        self._budget.hold(self, num_bytes)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a method of this file on a thread, to its end."""
        return await run_to_end(self._executor, work, *args, **kwargs)

    async def discard(self) -> None:
        """Delete the bytes. Idempotent."""
        self._unwritten.clear()
        if self._file is not None:  # on a thread, as the file system may have much to free
            await self.run(self._file.close)
        self._budget.release(self)

    # --- on a thread ---

    def write(self, pieces: Iterable[Data]) -> None:
        """Append bytes on disk, after `reserve`. Raises `StorageFailure`."""
        for piece in pieces:
            self.append(piece)
            self.write_out()

    def write_out(self) -> None:
        """Move all bytes from memory to disk. Raises `StorageFailure`."""
        with _refused("written"):
            if self._file is None:
                self._file = _open_unnamed(self._folder)
            for piece in self._unwritten:
                _write_whole(self._file, piece)
        self._unwritten.clear()
        self.num_unwritten = 0

    def pieces(self) -> Iterator[Data]:
        """Iterate over the bytes, a small piece at a time. Raises `StorageFailure`."""
        if self._file is not None:
            for begin in range(0, self.num_bytes - self.num_unwritten, PIECE_BYTES):
                with _refused("read"):
                    yield os.pread(self._file.fileno(), PIECE_BYTES, begin)
        yield from self._unwritten

    def read(self) -> bytearray:
        """Read all bytes into one buffer that is made once. Raises `StorageFailure`."""
        data = bytearray(self.num_bytes)
        end = 0
        for piece in self.pieces():
            begin, end = end, end + len(piece)
            data[begin:end] = piece
        if end != self.num_bytes:
            raise StorageFailure("the spool file was cut short")
        return data


async def run_to_end(
    executor: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run blocking work on a thread. A cancellation waits for its end, so that no file is closed,
    and no memory counted as free, while a thread uses it."""
    loop = asyncio.get_running_loop()
    running = loop.run_in_executor(executor, partial(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


def _open_unnamed(folder: Path) -> FileIO:
    return tempfile.TemporaryFile(dir=folder, buffering=0)


def _write_whole(file: FileIO, piece: Data) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[file.write(rest) :]


@contextmanager
def _refused(action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "input/output error"
        raise StorageFailure(f"the upload's temporary file cannot be {action}: {reason}") from error
