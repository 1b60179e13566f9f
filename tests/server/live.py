"""The app behind a real uvicorn on an ephemeral port, and raw sockets to talk to it."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread

from fastapi import FastAPI

from server.api.http.http_server import HttpServer

LONG = {"prompt": "hi", "max_tokens": 200}


@dataclass(frozen=True)
class LiveServer:
    """The app behind a real uvicorn, in a thread."""

    port: int
    server: HttpServer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """What a SIGTERM does."""
        self.server.should_exit = True


@contextmanager
def serve(app: FastAPI, *, drain_timeout_s: float = 1.0) -> Iterator[LiveServer]:
    """Run the app on an ephemeral port until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = HttpServer(app, drain_timeout_s=drain_timeout_s)

        async def run() -> None:
            async with app.router.lifespan_context(app):
                await server.serve([listener])

        thread = Thread(target=lambda: asyncio.run(run()))
        thread.start()
        live = LiveServer(listener.getsockname()[1], server)
        try:
            wait_until(lambda: server.started)
            yield live
        finally:
            live.stop()
            thread.join(20)
            assert not thread.is_alive(), "the server did not stop"


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    """Poll; fail after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.005)


def connect(live: LiveServer, *lines: str, body: bytes = b"") -> socket.socket:
    """A raw connection with a request's head, and as much of its body as given, sent."""
    connection = socket.create_connection(("127.0.0.1", live.port), timeout=30)
    head = "\r\n".join([*lines, "Host: test", "", ""])
    connection.sendall(head.encode() + body)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    with connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


def generate(body: dict[str, object], *, length: int | None = None) -> tuple[list[str], bytes]:
    raw = json.dumps(body).encode()
    return [
        "POST /generate HTTP/1.1",
        "Content-Type: application/json",
        f"Content-Length: {len(raw) if length is None else length}",
    ], raw
