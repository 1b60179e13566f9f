"""Bodies that stall, trickle, grow or lie, and requests with two meanings."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.server.live import LiveServer, connect, generate, read_all


def test_a_stalled_body_is_a_408_that_closes(live: LiveServer) -> None:
    head, raw = generate({"prompt": "hi"}, length=1000)

    answer = read_all(connect(live, *head, body=raw))

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()
    assert b'"code":"body_timeout"' in answer


def test_a_slow_body_that_keeps_coming_is_served(live: LiveServer) -> None:
    head, raw = generate({"prompt": "hi" * 90, "max_tokens": 1})
    raw = raw.ljust(8000)
    head[-1] = f"Content-Length: {len(raw)}"

    connection = connect(live, *head, "Connection: close")
    for i in range(0, len(raw), 200):  # twice the least rate, and longer than the timeout
        connection.sendall(raw[i : i + 200])
        time.sleep(0.02)

    assert read_all(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("request_line", "length"),
    [("POST /generate HTTP/1.1", (64 << 10) + 1), ("PUT /tasks/x/prefix HTTP/1.1", (1 << 20) + 1)],
)
def test_a_body_announced_too_large_is_refused_unread(
    live: LiveServer, request_line: str, length: int
) -> None:
    connection = connect(
        live, request_line, "Content-Type: application/json", f"Content-Length: {length}"
    )
    answer = read_all(connection)

    assert answer.startswith(b"HTTP/1.1 413 ")  # one that was waited for is a 408
    assert b"connection: close" in answer.lower()
    assert b'"code":"body_too_large"' in answer


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

    connection = connect(
        live, "PUT /tasks/x/prefix HTTP/1.1", f"Content-Length: {len(body)}", body=body
    )

    assert read_all(connection).startswith(b"HTTP/1.1 413 ")


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
