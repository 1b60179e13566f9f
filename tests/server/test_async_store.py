"""The thread pools of the store: slow work of one kind never blocks work of another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from prefix_store.errors import UnknownTask
from prefix_store.manifest import Profile
from prefix_store.registry.audit import AuditLog
from prefix_store.registry.keys import Grant, KeyStore
from prefix_store.registry.registry import Registry
from prefix_store.store import PrefixStore
from server.async_store import AsyncStore

GRANT = Grant(name="app", scopes=("read",))
POOLS = ("checks", "requests", "readers", "writers")
CALLS: dict[str, Callable[[AsyncStore], Any]] = {
    "checks": lambda store: store.keys_exist(),
    "requests": lambda store: store.run("requests", int),
    "readers": lambda store: store.list_tasks(),
    "writers": lambda store: store.create_key(GRANT),
}


@pytest.fixture
async def async_store(
    store: PrefixStore, keys: KeyStore, audit: AuditLog
) -> AsyncIterator[AsyncStore]:
    opened = AsyncStore(store, keys, audit)
    yield opened
    await asyncio.to_thread(opened.close)


@pytest.mark.parametrize("blocked", POOLS)
async def test_a_blocked_pool_blocks_no_other(async_store: AsyncStore, blocked: Any) -> None:
    may_end = threading.Event()
    busy = [asyncio.create_task(async_store.run(blocked, may_end.wait, 30)) for _ in range(8)]
    blocked_call = asyncio.create_task(CALLS[blocked](async_store))
    try:
        async with asyncio.timeout(20):
            for pool in set(POOLS) - {blocked}:
                await CALLS[pool](async_store)
        assert not blocked_call.done()
    finally:
        may_end.set()

    await blocked_call
    assert all(await asyncio.gather(*busy))


async def test_calls_have_the_results_and_errors_of_the_store(
    async_store: AsyncStore, registry: Registry
) -> None:
    created = await async_store.create_task("x", Profile(description="d"))

    assert created == await async_store.get_task("x") == registry.get_task("x")
    assert await async_store.list_tasks(None, limit=10, globs=("y*",)) == []
    with pytest.raises(UnknownTask):
        await async_store.get_task("y")


async def test_a_queued_call_is_not_started_after_its_cancellation(
    async_store: AsyncStore, registry: Registry
) -> None:
    may_end = threading.Event()
    busy = [asyncio.create_task(async_store.run("writers", may_end.wait, 30)) for _ in range(4)]
    await asyncio.sleep(0)

    queued = asyncio.create_task(async_store.create_task("x", Profile()))
    await asyncio.sleep(0.05)
    queued.cancel()
    await asyncio.wait({queued})
    may_end.set()
    await asyncio.gather(*busy)
    await async_store.create_task("y", Profile())

    assert [task.name for task in registry.list_tasks()] == ["y"]
