"""The memory of bodies that are read at once, also of those whose client has left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock

import pytest

from prefix_store import artifact, formats
from prefix_store.store import PrefixStore
from server.publishing import reader as readers
from server.publishing.reader import PrefixReader
from tests.server.fakes import FakeEngine, make_prefix

BODY = artifact.dump(make_prefix())


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


async def test_a_body_counts_until_its_thread_lets_go_of_it(
    store: PrefixStore,
    engine: FakeEngine,
    executor: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_end, lock = Event(), Lock()
    num_read, most_read, parse = 0, 0, formats.read

    def slow(data: bytes, *args: object, **options: object) -> formats.Upload:
        nonlocal num_read, most_read
        with lock:
            num_read += len(data)
            most_read = max(most_read, num_read)
        assert may_end.wait(30)
        with lock:
            num_read -= len(data)
        return parse(data, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(readers, "MAX_BYTES_AT_ONCE", len(BODY) + 1)
    monkeypatch.setattr(formats, "read", slow)
    reader = PrefixReader(store, engine, executor, "tiny", 100)

    async def read() -> formats.Upload:
        async with reader.parsed(BODY, formats.SAFETENSORS) as upload:
            return upload

    reading = [asyncio.create_task(read()) for _ in range(4)]
    for task in reading[:-1]:
        await asyncio.wait({task}, timeout=0.05)
        task.cancel()
    await asyncio.wait({reading[-1]}, timeout=0.05)
    may_end.set()
    upload = await reading[-1]

    assert most_read == len(BODY)
    assert upload.digest == formats.Digest.of(BODY)
    assert all(task.cancelled() for task in reading[:-1])
