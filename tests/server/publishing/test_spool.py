"""Bodies that are kept on disk until it is their turn."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from threading import Event

import pytest

from prefix_store.errors import StorageFailure
from server.errors import Overloaded
from server.publishing import spool as spools
from server.publishing.spool import PIECE_BYTES, Spool

ROOT = Path(__file__).parents[3]


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
def spool(tmp_path: Path, executor: ThreadPoolExecutor) -> Spool:
    return Spool(tmp_path, max_bytes=4 * PIECE_BYTES, executor=executor)


async def body(num_bytes: int, size: int = 60_000) -> AsyncIterator[bytes]:
    content = (bytes(range(251)) * (num_bytes // 251 + 1))[:num_bytes]
    for begin in range(0, num_bytes, size):
        await asyncio.sleep(0)
        yield content[begin : begin + size]


def num_files(folder: Path) -> int:
    """Open files of this process in a folder, with or without a name."""
    found = (os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
    return sum(name.startswith(str(folder)) for name in found)


async def files_left(folder: Path, *, expected: int) -> int:
    """Open files in a folder, once those that are being closed on a thread are closed."""
    for _ in range(1000):
        if num_files(folder) == expected:
            break
        await asyncio.sleep(0.01)
    return num_files(folder)


@pytest.mark.parametrize("num_bytes", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES + 3])
async def test_what_was_collected_is_read(spool: Spool, tmp_path: Path, num_bytes: int) -> None:
    async with spool.collect(body(num_bytes)) as file:
        assert file.num_bytes == num_bytes
        assert file.num_unwritten <= 2 * PIECE_BYTES
        assert num_files(tmp_path) == (num_bytes > PIECE_BYTES)
        assert list(tmp_path.iterdir()) == []
        data = file.read()
        assert b"".join(file.pieces()) == data

    assert data == b"".join([piece async for piece in body(num_bytes)])
    assert await files_left(tmp_path, expected=0) == 0


async def test_bodies_together_take_no_more_disk_than_there_is(spool: Spool) -> None:
    async with spool.collect(body(9 * PIECE_BYTES)), spool.collect(body(3 * PIECE_BYTES)):
        with pytest.raises(Overloaded, match="disk space"):
            async with spool.collect(body(3 * PIECE_BYTES)):
                pass
        async with spool.collect(body(PIECE_BYTES)):
            pass
    async with spool.collect(body(9 * PIECE_BYTES)):
        pass


async def test_a_discarded_body_returns_its_space_before_its_request_ends(
    spool: Spool, tmp_path: Path
) -> None:
    async with spool.collect(body(9 * PIECE_BYTES)), spool.collect(body(3 * PIECE_BYTES)) as read:
        read.discard()
        assert await files_left(tmp_path, expected=1) == 1
        async with spool.collect(body(3 * PIECE_BYTES)):
            pass


@pytest.mark.parametrize("nth", range(1, 4))
async def test_a_full_disk_is_reported_and_nothing_stays(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    written = 0

    def write(file: FileIO, piece: bytes) -> None:
        nonlocal written
        written += 1
        if written > 5 * nth:
            raise OSError(errno.ENOSPC, "")
        file.write(piece)

    monkeypatch.setattr(spools, "_write_whole", write)
    with pytest.raises(StorageFailure, match="No space left on device"):
        async with spool.collect(body(9 * PIECE_BYTES)):
            pass
    monkeypatch.undo()
    assert await files_left(tmp_path, expected=0) == 0
    async with spool.collect(body(9 * PIECE_BYTES)):
        pass


async def test_a_lost_folder_is_a_storage_failure(spool: Spool, tmp_path: Path) -> None:
    tmp_path.rmdir()
    with pytest.raises(StorageFailure, match="No such file"):
        async with spool.collect(body(2 * PIECE_BYTES)):
            pass


async def test_no_file_is_closed_while_a_thread_writes_to_it(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptor could be another file's by then."""
    begun, may_end = Event(), Event()
    closed_while_written: list[bool] = []

    def write(file: FileIO, piece: bytes) -> None:
        begun.set()
        assert may_end.wait(30)
        closed_while_written.append(file.closed)

    monkeypatch.setattr(spools, "_write_whole", write)

    async def collect() -> None:
        async with spool.collect(body(2 * PIECE_BYTES)):
            pass

    collecting = asyncio.ensure_future(collect())
    assert await asyncio.to_thread(begun.wait, 30)
    collecting.cancel()
    await asyncio.wait({collecting}, timeout=0.05)
    may_end.set()
    await asyncio.wait({collecting})

    assert await files_left(tmp_path, expected=0) == 0
    assert closed_while_written
    assert not any(closed_while_written)
    assert collecting.cancelled()


def test_a_killed_process_leaves_no_file(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from pathlib import Path\n"
        "from server.publishing.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1]), max_bytes=1 << 30, executor=ThreadPoolExecutor(1))\n"
        "file = spool.open()\n"
        "file.write([bytes(1 << 20)])\n"
        "print(file._file.fileno(), flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        size = os.stat(f"/proc/{process.pid}/fd/{number}").st_size
        process.kill()

    assert size == 1 << 20
    assert list(tmp_path.iterdir()) == []
