"""Cancellation of a request's work when its client disconnects, up to the first change it makes.

Whatever is done for a client may be cancelled while it waits, at any `await`. A change to the store
is not: from there on the request runs to its end, as what follows the change belongs to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar

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


async def in_thread(
    executor: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run blocking work on a pool.

    If the caller is cancelled, work that is still queued is not started, nor are its arguments kept
    in memory, and work that has started ends at its next `check_wanted`.
    """
    is_cancelled = False
    queued = [partial(work, *args, **kwargs)]
    del work, args, kwargs

    def run() -> T:
        _is_wanted.set(lambda: not is_cancelled)
        return queued.pop()()

    call = partial(copy_context().run, run)
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, call)
    except asyncio.CancelledError:
        is_cancelled = True
        queued.clear()
        raise


def check_wanted() -> None:
    """End this thread's work if its caller was cancelled. To be called between pieces of work.

    Raises `Abandoned`.
    """
    if not _is_wanted.get()():
        raise Abandoned
