"""Loads, pins, verifications and compiles that are cancelled leave nothing in the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from prefix_store import artifact
from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.digest import Digest
from server.engine.ipc import messages as m
from server.engine.ipc.client import EngineClient
from server.engine.params import SamplingParams
from tests.server.fakes import make_prefix
from tests.server.loop_engine import LoopEngine


class SlowBlobs(FileBlobStore):
    """A blob store that reads and writes only while it may."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.may_go, self.has_begun = Event(), Event()
        self.may_go.set()

    def get(self, digest: Digest) -> bytes:
        self._wait()
        return super().get(digest)

    def put(self, data: bytes) -> Digest:
        self._wait()
        return super().put(data)

    def _wait(self) -> None:
        self.has_begun.set()
        assert self.may_go.wait(30)

    def hold(self) -> None:
        self.may_go.clear()
        self.has_begun.clear()


@pytest.fixture
def blobs(tmp_path: Path) -> SlowBlobs:
    return SlowBlobs(tmp_path / "blobs")


@pytest.fixture
def digest(blobs: SlowBlobs) -> Digest:
    return blobs.put(artifact.dump(make_prefix()))


@pytest.fixture
async def engine(blobs: SlowBlobs) -> AsyncIterator[LoopEngine]:
    engine = LoopEngine(blobs)
    await engine.start()
    yield engine
    blobs.may_go.set()
    await engine.stop(0)


async def begun(work: Coroutine[Any, Any, Any], has_begun: Event) -> asyncio.Task[Any]:
    task = asyncio.create_task(work)
    await asyncio.to_thread(has_begun.wait, 30)
    return task


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=30)
    assert task.cancelled()


async def check_idle(engine: LoopEngine) -> None:
    """Assert that the engine holds nothing, once it has handled all messages."""
    await engine.preview_eviction(0)
    assert engine.scheduler.running == engine.scheduler.waiting == []
    assert engine.loop._prefix_requests._loads == []
    assert engine.loop._verifier._pending == engine.loop._verifier._probes == {}
    assert engine.device.embeds == {}
    assert engine.compiler.is_idle
    assert engine._pending._replies == {}


@pytest.mark.parametrize("call", ["load", "pin", "verify"])
async def test_a_call_that_waits_for_a_prefix(
    engine: LoopEngine, blobs: SlowBlobs, digest: Digest, call: str
) -> None:
    blobs.hold()
    method = getattr(EngineClient, call)
    engine.device.answers_probes = True
    args = (digest, [1, 2]) if call == "verify" else (digest,)
    task = await begun(method(engine, *args), blobs.has_begun)

    await cancelled(task)
    await check_idle(engine)
    blobs.may_go.set()
    await engine.load(digest)

    assert engine.pinned == set()
    assert await engine.evict(digest)


async def test_a_pin_whose_reply_is_on_its_way(engine: LoopEngine, digest: Digest) -> None:
    replied: list[m.Event] = []
    engine.on_event = replied.append
    task = asyncio.create_task(engine.pin(digest))
    async with asyncio.timeout(30):
        while not any(isinstance(event, m.Loaded) for event in replied):
            await asyncio.sleep(0.01)

    await cancelled(task)
    engine.on_event = engine._dispatch

    assert engine.pinned == set()
    assert await engine.evict(digest)


async def test_a_pin_that_another_client_waits_for_too(
    engine: LoopEngine, blobs: SlowBlobs, digest: Digest
) -> None:
    blobs.hold()
    first = await begun(engine.pin(digest), blobs.has_begun)
    other = asyncio.create_task(engine.pin(digest))
    await asyncio.sleep(0)

    await cancelled(first)
    blobs.may_go.set()
    await other

    assert engine.pinned == {digest}
    assert not await engine.evict(digest)


async def test_a_compile_that_waits_for_its_turn(engine: LoopEngine, blobs: SlowBlobs) -> None:
    may_step, has_begun, launch = Event(), Event(), engine.device.launch

    def held(batch: Any) -> Any:
        has_begun.set()
        assert may_step.wait(30)
        return launch(batch)

    engine.device.launch = held  # type: ignore[method-assign]
    stream = engine.submit(None, [1, 2], SamplingParams(max_tokens=1))
    await asyncio.to_thread(has_begun.wait, 30)
    compiling = asyncio.create_task(engine.compile(token_ids=[1, 2, 3], origin={}))
    await asyncio.sleep(0)
    compiling.cancel()
    await asyncio.sleep(0)
    may_step.set()
    await asyncio.wait({compiling}, timeout=30)

    assert compiling.cancelled()
    assert [delta async for delta in stream]
    await check_idle(engine)
    assert [*blobs] == []


async def test_a_soft_prompt_that_is_read(engine: LoopEngine, blobs: SlowBlobs) -> None:
    embeddings = blobs.put(b"any bytes")
    blobs.hold()
    compiling = engine.compile(embeddings=embeddings, origin={})

    await cancelled(await begun(compiling, blobs.has_begun))

    await check_idle(engine)
    blobs.may_go.set()
    await check_idle(engine)
    assert [*blobs] == [embeddings]


async def test_a_compile_that_is_being_written_returns_all_the_same(
    engine: LoopEngine, blobs: SlowBlobs
) -> None:
    """Its blob exists: the caller has to know its digest, to delete it."""
    blobs.hold()
    compiling = await begun(engine.compile(token_ids=[1, 2], origin={}), blobs.has_begun)

    compiling.cancel()
    await asyncio.sleep(0)
    blobs.may_go.set()
    compiled = await compiling

    assert [*blobs] == [Digest(compiled.digest)]
    await check_idle(engine)
