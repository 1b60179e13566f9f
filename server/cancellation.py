"""Cancellation of a request's work when its client disconnects, up to the first change it makes.

Whatever is done for a client may be cancelled while it waits, at any `await`. A change to the store
is not: from there on the request runs to its end, as what follows the change belongs to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Client:
    """The client of a running request. This one never disconnects: periodic work has no client."""

    is_gone = False

    def hold(self) -> None:
        """Do not cancel the request from now on."""

    def release(self) -> None:
        """Cancel the request again if the client disconnects, or has done so meanwhile."""


current: ContextVar[Client | None] = ContextVar("client", default=None)
"""The client of the current request."""


def client() -> Client:
    """Return the client of the current request."""
    return current.get() or Client()


@contextmanager
def change() -> Iterator[None]:
    """Write a change. Unless it fails, neither it nor what follows it is cancelled."""
    waiting = client()
    waiting.hold()
    try:
        yield
    except BaseException:
        waiting.release()
        raise


# --- work that a cancellation must not cut short ---


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`. If the caller is cancelled, `work` ends first."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _ended(task)
        raise


async def until_settled(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`. If the caller is cancelled, so is `work`, which may still end with a result
    and do what follows that."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        await _ended(task)
        raise


async def _ended(task: asyncio.Future[Any]) -> None:
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # the caller's cancellation is raised instead


# --- threads ---


class Abandoned(Exception):
    """Nobody waits for the result of this thread's work any more. Reaches no caller."""


_is_wanted: ContextVar[Callable[[], bool]] = ContextVar("is_wanted", default=lambda: True)


class _Call(Generic[T]):
    """Work for a thread, which is dropped if it is cancelled before a thread takes it."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._queued = [work]
        self._is_cancelled = False

    def start(self, executor: Executor) -> asyncio.Future[T]:
        call = partial(copy_context().run, self._run)
        return asyncio.get_running_loop().run_in_executor(executor, call)

    def cancel(self) -> bool:
        """Return whether it was still queued. If not, it ends at its next `check_wanted`."""
        self._is_cancelled = True
        return self._take() is not None

    def _run(self) -> T:
        if (work := self._take()) is None:
            raise Abandoned
        _is_wanted.set(lambda: not self._is_cancelled)
        return work()

    def _take(self) -> Callable[[], T] | None:
        with suppress(IndexError):  # an empty list decides between the thread and `cancel`
            return self._queued.pop()
        return None


async def in_thread(
    executor: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run blocking work on a pool.

    If the caller is cancelled, work that is still queued is not started, nor are its arguments kept
    in memory, and work that has started ends at its next `check_wanted`.
    """
    call = _Call(partial(work, *args, **kwargs))
    del work, args, kwargs
    try:
        return await call.start(executor)
    except asyncio.CancelledError:
        call.cancel()
        raise


async def in_thread_to_the_end(
    executor: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run blocking work like `in_thread`. If the caller is cancelled, work that has started ends
    first, so that the caller can count what it holds."""
    call = _Call(partial(work, *args, **kwargs))
    del work, args, kwargs
    future = call.start(executor)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if call.cancel():
            future.cancel()
        else:
            await _ended(future)
        raise


def check_wanted() -> None:
    """End this thread's work if its caller was cancelled. To be called between pieces of work.

    Raises `Abandoned`.
    """
    if not _is_wanted.get()():
        raise Abandoned
