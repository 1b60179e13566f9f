"""Deadlines of connections, and the drain."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

import httpx
import pytest

from server.api.http.http_server import DeadlineProtocol
from tests.server.fakes import FakeEngine
from tests.server.live import LONG, LiveServer, connect, generate, read_all, wait_until


def test_a_head_that_does_not_arrive_is_closed(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeadlineProtocol, "HEAD_TIMEOUT_S", 0.3)
    silent = socket.create_connection(("127.0.0.1", live.port), timeout=30)
    trickling = socket.create_connection(("127.0.0.1", live.port), timeout=30)

    for byte in b"GET /li":
        trickling.sendall(bytes([byte]))
        time.sleep(0.03)

    for connection in (silent, trickling):
        with suppress(ConnectionResetError):
            assert read_all(connection) == b""


def test_a_stream_may_last_longer_than_any_deadline(
    live: LiveServer, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeadlineProtocol, "HEAD_TIMEOUT_S", 0.2)
    engine.delay_s = 0.05
    body = {"prompt": "hi", "max_tokens": 20, "stream": True}

    response = httpx.post(f"{live.url}/generate", json=body)

    assert response.text.count("event: token") == 20
    assert "event: done" in response.text


def test_tokens_are_not_held_back_on_a_connection_that_is_used_again(
    live: LiveServer, engine: FakeEngine
) -> None:
    engine.delay_s = 0.001
    head, raw = generate({"prompt": "hi", "max_tokens": 32, "stream": True})

    nums_reads = []
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
        for _ in range(3):
            connection.sendall("\r\n".join([*head, "Host: test", "", ""]).encode() + raw)
            answer, num_reads = b"", 0
            while not answer.endswith(b"0\r\n\r\n"):
                answer += connection.recv(65536)
                num_reads += 1
            nums_reads.append(num_reads)

    assert min(nums_reads) > 10


def test_a_drain_lets_a_stream_finish(live: LiveServer, engine: FakeEngine) -> None:
    engine.delay_s = 0.02
    body = {"prompt": "hi", "max_tokens": 20, "stream": True}

    with httpx.stream("POST", f"{live.url}/generate", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        live.stop()
        rest = list(lines)

    assert "event: done" in rest
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{live.url}/livez")


def test_a_stream_that_outlives_the_drain_ends_with_an_error_event(
    live: LiveServer, engine: FakeEngine
) -> None:
    engine.delay_s = 0.1

    with httpx.stream("POST", f"{live.url}/generate", json=LONG | {"stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        live.stop()
        rest = list(lines)

    assert "event: error" in rest
    assert rest.count("event: token") < LONG["max_tokens"] // 2


def test_a_slow_client_does_not_hold_up_the_end(live: LiveServer) -> None:
    half = connect(live, "POST /generate HTTP/1.1", "Content-Length: 10")
    silent = socket.create_connection(("127.0.0.1", live.port), timeout=30)

    started_s = time.monotonic()
    live.stop()
    wait_until(lambda: not live.server.servers[0].is_serving())
    read_all(half)
    silent.close()

    assert time.monotonic() - started_s < DeadlineProtocol.HEAD_TIMEOUT_S
