"""What needs a real socket: clients that leave, stall, trickle or say too much; and the drain."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
from fastapi import FastAPI

from server.api import sse
from server.http_server import DeadlineProtocol
from tests.server.fakes import FakeEngine, LiveServer, serve, wait_until

LONG = {"prompt": "hi", "max_tokens": 200}


@pytest.fixture
def live(app: FastAPI) -> Iterator[LiveServer]:
    with serve(app) as running:
        yield running


def connect(live: LiveServer, *lines: str, body: bytes = b"") -> socket.socket:
    """A raw connection with a request's head, and as much of its body as given, sent."""
    connection = socket.create_connection(("127.0.0.1", live.port), timeout=5)
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


# --- clients that leave ---


def test_a_streaming_client_that_leaves_cancels_its_sequence(
    live: LiveServer, engine: FakeEngine
) -> None:
    engine.delay_s = 0.02

    with httpx.stream("POST", f"{live.url}/generate", json=LONG | {"stream": True}) as response:
        lines = response.iter_lines()
        assert next(lines) == "event: token"

    wait_until(lambda: engine.num_in_flight == 0, timeout_s=1.0)
    assert engine.num_cancelled == 1
    assert engine.num_tokens_made < 100


def test_a_client_that_leaves_before_a_whole_answer_cancels_it_too(
    live: LiveServer, engine: FakeEngine
) -> None:
    engine.delay_s = 0.02
    head, raw = generate(LONG)

    connection = connect(live, *head, body=raw)
    wait_until(lambda: engine.num_in_flight == 1)
    connection.close()

    wait_until(lambda: engine.num_in_flight == 0, timeout_s=1.0)
    assert engine.num_tokens_made < 100


def test_a_client_that_leaves_in_the_queue_never_gets_a_token(
    live: LiveServer, engine: FakeEngine
) -> None:
    engine.delay_s = 60.0
    head, raw = generate(LONG | {"stream": True})

    connection = connect(live, *head, body=raw)
    wait_until(lambda: engine.num_in_flight == 1)
    connection.close()

    wait_until(lambda: engine.num_in_flight == 0, timeout_s=1.0)
    assert engine.num_tokens_made == 0


def test_all_choices_of_a_client_that_leaves_are_cancelled(
    live: LiveServer, engine: FakeEngine
) -> None:
    engine.delay_s = 0.02
    body = {"model": "tiny", "prompt": ["a", "b", "c"], "max_tokens": 200, "stream": True}

    with httpx.stream("POST", f"{live.url}/v1/completions", json=body) as response:
        next(response.iter_lines())
        assert engine.num_in_flight == 3

    wait_until(lambda: engine.num_in_flight == 0, timeout_s=1.0)
    assert engine.num_cancelled == 3


def test_half_an_upload_leaves_nothing(live: LiveServer) -> None:
    connection = connect(
        live, "PUT /tasks/x/prefix HTTP/1.1", "Content-Length: 1000", body=b"x" * 500
    )
    connection.close()

    assert httpx.get(f"{live.url}/tasks").json()["tasks"] == []


def test_a_reader_that_takes_nothing_is_dropped(
    live: LiveServer, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "WRITE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(sse, "event", lambda *_: b"x" * (1 << 20))
    engine.delay_s = 0.005
    head, raw = generate(LONG | {"stream": True})

    connection = connect(live, *head, body=raw)

    wait_until(lambda: len(engine.submitted) == 1)
    wait_until(lambda: engine.num_in_flight == 0, timeout_s=3.0)
    assert engine.num_tokens_made < 200
    connection.close()


# --- bodies ---


def test_a_stalled_body_is_a_408_that_closes(live: LiveServer) -> None:
    head, raw = generate({"prompt": "hi"}, length=1000)

    started_s = time.monotonic()
    answer = read_all(connect(live, *head, body=raw))

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()
    assert b'"code":"body_timeout"' in answer
    assert time.monotonic() - started_s < 4.0


def test_a_slow_body_that_keeps_coming_is_served(live: LiveServer) -> None:
    head, raw = generate({"prompt": "hi", "max_tokens": 1})

    connection = connect(live, *head, "Connection: close")
    for i in range(len(raw)):
        connection.sendall(raw[i : i + 1])
        time.sleep(0.02)

    assert read_all(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("request_line", "length"),
    [("POST /generate HTTP/1.1", (64 << 10) + 1), ("PUT /tasks/x/prefix HTTP/1.1", (1 << 20) + 1)],
)
def test_a_body_announced_too_large_is_refused_unread(
    live: LiveServer, request_line: str, length: int
) -> None:
    started_s = time.monotonic()
    connection = connect(
        live, request_line, "Content-Type: application/json", f"Content-Length: {length}"
    )
    first = connection.recv(65536)

    assert first.startswith(b"HTTP/1.1 413 ")
    assert time.monotonic() - started_s < 0.5
    assert b"connection: close" in first.lower()
    assert read_all(connection) == b""


def test_a_chunked_body_is_counted(live: LiveServer) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 1024

    response = httpx.post(
        f"{live.url}/generate", content=chunks(), headers={"Content-Type": "application/json"}
    )

    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_a_client_that_sends_everything_first_still_reads_its_413(live: LiveServer) -> None:
    body = b"x" * (8 << 20)

    response = httpx.put(f"{live.url}/tasks/x/prefix", content=body)

    assert response.status_code == 413


def test_an_upload_to_nowhere_is_refused_before_its_body(live: LiveServer) -> None:
    connection = connect(
        live,
        "POST /tasks/nope/versions HTTP/1.1",
        "Content-Length: 1000000",
        "Expect: 100-continue",
    )

    assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")
    connection.close()


@pytest.mark.parametrize(
    "lines",
    [
        ("POST /generate HTTP/1.1", "Content-Length: 5", "Transfer-Encoding: chunked"),
        ("POST /generate HTTP/1.1", "Content-Length: -5"),
        ("POST /generate HTTP/1.1", "Content-Length: +5"),
        ("POST /generate HTTP/1.1", "Content-Length: 5", "Content-Length: 6"),
        ("GET /livez HTTP/1.1", "Host: other"),
        ("GET /livez HTTP/1.1", "X-Big: " + "x" * 100_000),
        ("GET /" + "x" * 100_000 + " HTTP/1.1",),
        ("\x16\x03\x01 hello",),
        ("PRI * HTTP/2.0",),
    ],
    ids=range(9),
)
def test_a_request_with_two_meanings_or_none_is_refused(
    live: LiveServer, lines: tuple[str, ...]
) -> None:
    connection = connect(live, *lines)
    connection.shutdown(socket.SHUT_WR)

    answer = read_all(connection)

    assert answer == b"" or answer[9:12] in (b"400", b"404", b"431"), answer
    assert httpx.get(f"{live.url}/livez").status_code == 200


def test_a_second_request_inside_a_body_is_not_executed(live: LiveServer) -> None:
    inner = b"DELETE /tasks/x HTTP/1.1\r\nHost: test\r\n\r\n"
    httpx.put(f"{live.url}/tasks/x", json={})

    connection = connect(
        live,
        "GET /livez HTTP/1.1",
        f"Content-Length: {len(inner)}",
        "Connection: close",
        body=inner,
    )

    assert read_all(connection).count(b"HTTP/1.1 ") == 1
    assert httpx.get(f"{live.url}/tasks/x").status_code == 200


def test_a_connection_is_used_again_after_an_error(live: LiveServer) -> None:
    with httpx.Client(base_url=live.url) as client:
        statuses = [
            client.post("/generate", content=b"{", headers={"Content-Type": "application/json"}),
            client.post("/generate", content=b"{}", headers={"Content-Type": "text/plain"}),
            client.post("/generate", json={"prompt": "hi", "max_tokens": 1}),
        ]

    assert [response.status_code for response in statuses] == [400, 415, 200]


def test_a_head_that_does_not_arrive_is_closed(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeadlineProtocol, "HEAD_TIMEOUT_S", 0.3)
    silent = socket.create_connection(("127.0.0.1", live.port), timeout=5)
    trickling = socket.create_connection(("127.0.0.1", live.port), timeout=5)

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


# --- the end ---


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
    started_s = time.monotonic()

    with httpx.stream("POST", f"{live.url}/generate", json=LONG | {"stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        live.stop()
        rest = list(lines)

    assert "event: error" in rest
    assert time.monotonic() - started_s < 5.0


def test_a_slow_client_does_not_hold_up_the_end(live: LiveServer) -> None:
    half = connect(live, "POST /generate HTTP/1.1", "Content-Length: 10")
    silent = socket.create_connection(("127.0.0.1", live.port), timeout=5)

    started_s = time.monotonic()
    live.stop()
    wait_until(lambda: not live.server.servers[0].is_serving())
    read_all(half)
    silent.close()

    assert time.monotonic() - started_s < 4.0
