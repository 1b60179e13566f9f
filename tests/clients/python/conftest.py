from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from foreword_client import AsyncClient, AsyncStream, Client
from tests.clients.python.fake_foreword import ENDING, FakeForeword
from tests.server.conftest import (
    app,
    audit,
    engine,
    keys,
    live,
    registry,
    settings,
    store,
    stored,
    tokenizer,
)

__all__ = [
    "app", "audit", "engine", "keys", "live",
    "registry", "settings", "store", "stored", "tokenizer",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FOREWORD_URL", "FOREWORD_API_KEY"):
        monkeypatch.delenv(name, raising=False)


class AwaitedStream:
    """An AsyncStream with the interface of a Stream."""

    def __init__(self, stream: AsyncStream, runner: asyncio.Runner) -> None:
        self._stream = stream
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> AwaitedStream:
        self._runner.run(self._stream.__aenter__())
        return self

    def __exit__(self, *exc: Any) -> None:
        self._runner.run(self._stream.__aexit__(*exc))

    def close(self) -> None:
        self._runner.run(self._stream.close())

    def __iter__(self) -> AwaitedStream:
        return self

    def __next__(self) -> Any:
        try:
            return self._runner.run(self._stream.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None


class Awaited:
    """An AsyncClient with the interface of a Client, so that both run the same tests."""

    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self._client = client
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **options: Any) -> Any:
            out = method(*args, **options)
            if isinstance(out, AsyncStream):
                return AwaitedStream(out, self._runner)
            return self._runner.run(out)

        return call


Connect = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes a client of either kind: `connect(answer)` in process, `connect(url)` by a socket."""
    with asyncio.Runner() as runner:
        clients: list[Any] = []

        def make(to: Any, **options: Any) -> Any:
            if not isinstance(to, str):
                options |= {"transport": httpx.MockTransport(to)}
                to = "http://foreword.test"
            client: Any = Client(to, **options)
            if request.param == "async":
                client = Awaited(AsyncClient(to, **options), runner)
            clients.append(client)
            return client

        yield make

        for client in clients:
            client.close()


@pytest.fixture
def server() -> Iterator[FakeForeword]:
    fake = FakeForeword()
    config = uvicorn.Config(fake.app(), log_level="warning", ws="none", lifespan="off")
    running = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline_s = time.monotonic() + 10
        while not running.started and time.monotonic() < deadline_s:
            time.sleep(0.01)
        yield fake
        running.should_exit = True
        running.force_exit = True
        thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def ending() -> dict[str, Any]:
    """The data of a `done` event."""
    return dict(ENDING)
