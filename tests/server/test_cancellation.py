"""Work whose caller is cancelled: what ends at once, and what does not."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from server import cancellation
from server.cancellation import (
    Abandoned,
    check_wanted,
    in_thread,
    in_thread_to_the_end,
    to_the_end,
    until_settled,
)


@pytest.fixture
async def pool() -> AsyncIterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


async def test_work_on_a_thread_ends_between_pieces_once_its_caller_is_cancelled(
    pool: ThreadPoolExecutor,
) -> None:
    has_begun, may_go, ended = Event(), Event(), list[type[BaseException] | None]()

    def pieces() -> None:
        check_wanted()
        has_begun.set()
        assert may_go.wait(30)
        try:
            check_wanted()
        except Abandoned as exc:
            ended.append(type(exc))
            raise

    work = asyncio.create_task(in_thread(pool, pieces))
    await asyncio.to_thread(has_begun.wait, 30)
    work.cancel()
    await asyncio.wait({work})
    may_go.set()
    await in_thread(pool, check_wanted)  # what comes after it on the same thread is wanted

    assert work.cancelled()
    assert ended == [Abandoned]


async def test_work_that_waits_for_a_thread_is_not_started_once_its_caller_is_cancelled(
    pool: ThreadPoolExecutor,
) -> None:
    may_go, started = Event(), list[int]()
    busy = pool.submit(may_go.wait, 30)
    work = asyncio.create_task(in_thread(pool, started.append, 1))
    await asyncio.sleep(0)

    work.cancel()
    await asyncio.wait({work})
    may_go.set()
    await in_thread(pool, busy.result)

    assert started == []


async def test_work_that_is_cancelled_in_the_queue_keeps_nothing_in_memory(
    pool: ThreadPoolExecutor,
) -> None:
    class Body(bytearray):
        pass

    may_go = Event()
    busy = pool.submit(may_go.wait, 30)
    body = Body(1 << 10)
    kept = weakref.ref(body)
    work = asyncio.create_task(in_thread(pool, len, body))
    del body
    await asyncio.sleep(0)
    assert kept() is not None

    work.cancel()
    await asyncio.wait({work})
    is_kept = kept() is not None
    may_go.set()
    await in_thread(pool, busy.result)

    assert not is_kept


@pytest.mark.parametrize("is_started", [True, False])
async def test_work_that_is_counted_ends_before_its_caller_unless_it_never_started(
    pool: ThreadPoolExecutor, is_started: bool
) -> None:
    has_begun, may_go, done = Event(), Event(), list[int]()

    def work() -> None:
        has_begun.set()
        assert may_go.wait(30)
        done.append(1)

    busy = None if is_started else pool.submit(may_go.wait, 30)
    caller = asyncio.create_task(in_thread_to_the_end(pool, work))
    await asyncio.sleep(0)
    if is_started:
        await asyncio.to_thread(has_begun.wait, 30)
    caller.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert caller.cancelled() == (not is_started)
    may_go.set()
    await asyncio.wait({caller})
    await in_thread(pool, check_wanted)

    assert caller.cancelled()
    assert done == [1] * is_started
    assert busy is None or busy.result()


@pytest.mark.parametrize("ends", ["with a result", "with an error"])
async def test_what_runs_to_the_end_does_so_before_the_caller_is_cancelled(ends: str) -> None:
    may_go, done = asyncio.Event(), list[str]()

    async def work() -> None:
        await may_go.wait()
        done.append(ends)
        if ends == "with an error":
            raise ValueError

    caller = asyncio.create_task(to_the_end(work()))
    await asyncio.sleep(0)
    caller.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not caller.done()
    may_go.set()
    await asyncio.wait({caller})

    assert caller.cancelled()
    assert done == [ends]


async def test_what_is_settled_is_cancelled_and_may_still_do_what_follows_its_result() -> None:
    followed = list[str]()

    async def too_late() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "written"
        raise AssertionError

    async def work() -> None:
        followed.append(await too_late())

    caller = asyncio.create_task(until_settled(work()))
    for _ in range(3):
        await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait({caller})

    assert caller.cancelled()
    assert followed == ["written"]


class Gone(cancellation.Client):
    """A client, and how often its request was held and released."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def hold(self) -> None:
        self.calls.append("hold")

    def release(self) -> None:
        self.calls.append("release")


def test_a_change_that_fails_is_none() -> None:
    client = Gone()
    token = cancellation.current.set(client)
    try:
        with pytest.raises(ValueError, match="refused"), cancellation.change():
            raise ValueError("refused")
        with cancellation.change():
            pass
    finally:
        cancellation.current.reset(token)

    assert client.calls == ["hold", "release", "hold"]
