"""Uploads and exports on disk: bodies until it is their turn, exports until they are sent."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, asynccontextmanager
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import ParamSpec, TypeVar

from prefix_store.blobs.failures import storage_failure
from prefix_store.digest import Data
from prefix_store.errors import StorageFailure
from server.budgets import ByteBudget
from server.cancellation import in_thread

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
            file.discard()


class SpoolFile:
    """Bytes that are appended, kept in memory while they are few, and read later.

    A request that is cancelled discards its file while a thread may still use it: closing waits for
    that use, and later ones fail.
    """

    def __init__(self, folder: Path, budget: ByteBudget, executor: Executor) -> None:
        self._folder = folder
        self._budget = budget
        self._executor = executor
        self._unwritten: list[Data] = []
        self._file: FileIO | None = None
        self._lock = Lock()
        """Held while the file is used, as a closed descriptor may be another file's by then."""
        self._is_reserved = False
        self._is_closed = False
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
        self._is_reserved = True

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a method of this file on a thread."""
        return await in_thread(self._executor, work, *args, **kwargs)

    def discard(self) -> None:
        """Delete the bytes. Idempotent."""
        self._unwritten.clear()
        if self._is_reserved:  # on a thread, as the file system may have much to free
            self._executor.submit(self._close)
        self._budget.release(self)

    # --- on a thread ---

    def _close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._file is not None:
                self._file.close()

    def write(self, pieces: Iterable[Data]) -> None:
        """Append bytes on disk, after `reserve`. Raises `StorageFailure`."""
        for piece in pieces:
            self.append(piece)
            self.write_out()

    def write_out(self) -> None:
        """Move all bytes from memory to disk. Raises `StorageFailure`."""
        with self._lock, _refused("written"):
            if self._is_closed:
                raise ValueError("the file was discarded")
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
                with self._lock, _refused("read"):
                    piece = os.pread(self._file.fileno(), PIECE_BYTES, begin)
                yield piece
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


def _open_unnamed(folder: Path) -> FileIO:
    return tempfile.TemporaryFile(dir=folder, buffering=0)


def _write_whole(file: FileIO, piece: Data) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[file.write(rest) :]


def _refused(action: str) -> AbstractContextManager[None]:
    return storage_failure(f"the upload's temporary file cannot be {action}")
