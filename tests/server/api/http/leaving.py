"""Requests whose client leaves while the request waits for a thread or for the engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from starlette.types import Message

from server.engine.ipc.stream import TokenStream
from tests.server.fakes import FakeEngine

TURNS = 50
"""Turns of the event loop within which whatever is cancelled notices it."""


@dataclass(frozen=True)
class Call:
    """A request."""

    method: str
    path: str
    body: bytes | dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def raw(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return b"" if self.body is None else json.dumps(self.body).encode()

    def scope(self) -> dict[str, Any]:
        path, _, query = self.path.partition("?")
        kind = {"content-type": "application/json"} if isinstance(self.body, dict) else {}
        lines = {"host": "test", "content-length": str(len(self.raw)), **kind, **self.headers}
        return {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http",
            "method": self.method, "path": path, "raw_path": path.encode(), "root_path": "",
            "query_string": query.encode(), "client": ("127.0.0.1", 1), "server": ("test", 80),
            "headers": [(k.lower().encode(), v.encode()) for k, v in lines.items()],
        }  # fmt: skip


_is_stopped: ContextVar[bool] = ContextVar("is_stopped", default=False)
"""Whether what runs belongs to the request that is stopped."""


class Gate:
    """Stops a request where it waits for the `stop_at`-th time: for a thread or for the engine."""

    def __init__(self, engine: FakeEngine) -> None:
        self.stop_at = -1
        self.streams: list[Stopped] = []
        self._num_waits = 0
        self._begin()
        loop = asyncio.get_running_loop()
        self._in_thread = loop.run_in_executor
        loop.run_in_executor = self._run_in_executor  # type: ignore[method-assign]
        self._submit = engine.submit
        engine.submit = self._submit_or_stop  # type: ignore[method-assign]
        for name in ("load", "verify", "compile", "pin", "evict", "preview_eviction"):
            setattr(engine, name, self._stopping(getattr(engine, name)))

    def arm(self, stop_at: int) -> None:
        self.stop_at, self._num_waits = stop_at, 0
        self._begin()

    def release(self) -> None:
        """Let the request go on."""
        self.stop_at = -1
        if not self.held.done():
            self.held.set_result(None)

    def _begin(self) -> None:
        self.held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.has_stopped = asyncio.Event()

    def _is_next(self) -> bool:
        if not _is_stopped.get():
            return False  # periodic work of the server
        self._num_waits += 1
        if self._num_waits - 1 != self.stop_at:
            return False
        self.has_stopped.set()
        return True

    def _run_in_executor(self, executor: Any, work: Callable[..., Any], *args: Any) -> Any:
        if not self._is_next():
            return self._in_thread(executor, work, *args)

        async def queued() -> Any:
            await self.held
            return await self._in_thread(executor, work, *args)

        return asyncio.ensure_future(queued())

    def _stopping(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **options: Any) -> Any:
            if self._is_next():
                await self.held
            return await method(*args, **options)

        return call

    def _submit_or_stop(self, *args: Any) -> TokenStream:
        if not self._is_next():
            return self._submit(*args)
        self.streams.append(Stopped())
        self.held.cancel()  # what a closed stream is to tokens that never come
        return self.streams[-1]


class Stopped(TokenStream):
    """A stream whose tokens never come."""

    def __init__(self) -> None:
        self.is_closed = False
        super().__init__(cancel=self._mark_closed)

    def _mark_closed(self) -> None:
        self.is_closed = True


@dataclass
class Outcome:
    """What a request was when its client had left."""

    has_stopped: bool
    """Whether it was stopped at all. If not, it was answered."""
    was_held: bool
    """Whether it went on to its end all the same."""
    status: int | None


async def leave(app: FastAPI, gate: Gate, call: Call, stop_at: int) -> Outcome:
    """Send a request and leave when it waits for the `stop_at`-th time."""
    gone, statuses = asyncio.Event(), list[int]()
    body = [{"type": "http.request", "body": call.raw, "more_body": False}]

    async def receive() -> Message:
        if body:
            return body.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def run() -> None:
        _is_stopped.set(True)
        await app(call.scope(), receive, send)

    gate.arm(stop_at)
    before = asyncio.all_tasks()
    request = asyncio.ensure_future(run())
    stopped = asyncio.ensure_future(gate.has_stopped.wait())
    await asyncio.wait({request, stopped}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
    has_stopped = stopped.done()
    stopped.cancel()
    gone.set()
    for _ in range(TURNS):
        await asyncio.sleep(0)
    was_held = has_stopped and not gate.held.cancelled() and not request.done()
    gate.release()
    async with asyncio.timeout(30):
        await request
    for _ in range(TURNS):
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - before
    assert left == set(), (call, stop_at, left)
    assert all(stream.is_closed for stream in gate.streams), (call, stop_at)
    return Outcome(has_stopped, was_held, statuses[0] if statuses else None)
