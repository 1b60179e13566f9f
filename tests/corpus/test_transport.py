"""Connections that only cost: idle, trickling, pipelining, too many. Live traffic beside them."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.corpus.fake_server import FakeServer, fake_server
from tests.corpus.live_traffic import live_traffic
from tests.corpus.raw_bytes import post
from tests.corpus.raw_requests import GOOD
from tests.corpus.test_raw_requests import ask, beside, statuses

NUM_IDLE = 2000
_OTHER_FILES = 200


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    with fake_server(tmp_path_factory.mktemp("transport"), head_timeout_s=1.0) as running:
        yield running
        assert running.tracebacks == []


@pytest.fixture
def num_idle() -> int:
    """As many as this machine lets one process open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = min(max(soft, NUM_IDLE + _OTHER_FILES), hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return min(NUM_IDLE, allowed - _OTHER_FILES)


@contextmanager
def idle_connections(port: int, number: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        address = ("127.0.0.1", port)
        opened = [
            stack.enter_context(socket.create_connection(address, timeout=10))
            for _ in range(number)
        ]
        for connection in opened:
            connection.setblocking(False)
        yield opened


def is_open(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


def test_two_thousand_idle_connections_are_nobodys_business(
    tmp_path: Path, num_idle: int, note: Callable[[str], None]
) -> None:
    with fake_server(tmp_path, head_timeout_s=6.0) as server:
        with live_traffic(server.url) as idle:
            time.sleep(2)
        with idle_connections(server.port, num_idle) as opened, live_traffic(server.url) as busy:
            time.sleep(2)
            num_open = sum(map(is_open, opened))
            time.sleep(6)
            num_left = sum(map(is_open, opened))
        assert server.tracebacks == []
    note(f"{num_idle} idle connections: {beside(idle, busy)}")

    assert num_open == num_idle
    assert num_left == 0
    assert busy.num_bad == 0, busy.errors
    assert busy.p99_ms < 500 + 5 * idle.p99_ms


def test_beyond_the_limit_the_longest_idle_gives_way_to_whoever_asks(tmp_path: Path) -> None:
    with fake_server(tmp_path, max_connections=50) as server:
        with idle_connections(server.port, 200) as opened:
            answers = [httpx.get(f"{server.url}/livez").status_code for _ in range(20)]
            open_now = [is_open(connection) for connection in opened]
        assert server.tracebacks == []

    assert answers == [200] * 20
    assert not any(open_now[:150])
    assert 25 <= sum(open_now) <= 50


def test_without_files_to_open_the_server_waits_and_goes_on(tmp_path: Path) -> None:
    """A flood that the limit of connections does not hold off: the file limit is lowered live."""
    with fake_server(tmp_path, head_timeout_s=1.0) as server:
        pid = server.process.pid
        num_files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (num_files + 5, limits[1]))
        with idle_connections(server.port, 50), suppress(httpx.TransportError):
            httpx.get(f"{server.url}/livez", timeout=1)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)

        assert httpx.get(f"{server.url}/livez", timeout=20).status_code == 200


async def trickle(port: int, data: bytes, *, size: int, every_s: float) -> tuple[bytes, float]:
    """Send a little now and then until the server has enough: its answer, and after how long."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started_s = time.monotonic()
    answer = bytearray()

    async def read() -> None:
        with suppress(ConnectionResetError):
            while piece := await reader.read(65536):
                answer.extend(piece)

    reading = asyncio.create_task(read())
    for start in range(0, len(data), size):
        if reading.done() or writer.is_closing():
            break
        writer.write(data[start : start + size])
        await asyncio.sleep(every_s)
    await asyncio.wait_for(reading, 20)
    writer.transport.abort()
    return bytes(answer), time.monotonic() - started_s


async def test_what_trickles_ends_at_a_deadline_whatever_it_sends(server: FakeServer) -> None:
    """A header line now and then, a byte of a body, a chunk of a byte."""
    header_lines = b"GET /livez HTTP/1.1\r\n" + b"X-A: b\r\n" * 1000
    slow_body = post("/generate", b'{"prompt": "' + b"x" * 30_000)
    chunks = b"POST /tasks/x/versions HTTP/1.1\r\nHost: localhost\r\n"
    chunks += b"Transfer-Encoding: chunked\r\n\r\n"
    httpx.put(f"{server.url}/tasks/x", json={})
    slowly = [
        trickle(server.port, header_lines, size=8, every_s=0.1),
        trickle(server.port, slow_body, size=20, every_s=0.1),
        trickle(server.port, chunks + b"1\r\nx\r\n" * 10_000, size=60, every_s=0.1),
        trickle(server.port, b"", size=1, every_s=0.1),
        trickle(server.port, b"\r\n" * 1000, size=2, every_s=0.1),
    ]

    found = await asyncio.gather(*slowly)

    assert [statuses(answer) for answer, _ in found] == [[], [408], [408], [], [400]]
    assert max(seconds for _, seconds in found) < 30  # to send it all takes a minute or more


async def test_pipelined_requests_are_answered_in_order(server: FakeServer) -> None:
    """A hundred at once, good ones and bad ones, over one connection."""
    one = post("/generate?task=x", GOOD).replace(b"Connection: close\r\n", b"")
    nowhere = post("/nope", GOOD).replace(b"Connection: close\r\n", b"")
    last = post("/generate?task=x", b"{")
    httpx.put(f"{server.url}/tasks/x", json={})  # without a version to answer

    answer = await ask(server.port, (one + nowhere) * 50 + last)

    assert statuses(answer) == [409, 404] * 50 + [400]


def test_a_burst_beyond_the_queue_is_refused(server: FakeServer) -> None:
    """A connection that is refused gets an answer and may come back; all others are served."""

    async def burst() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=600)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=60) as client:
            body = {"prompt": "x", "max_tokens": 200, "ignore_eos": True}
            asked = [client.post("/generate", json=body) for _ in range(600)]
            return await asyncio.gather(*asked)

    answers = asyncio.run(burst())

    refused = [response for response in answers if response.status_code == 429]
    served = [response for response in answers if response.status_code == 200]
    assert len(served) >= 320
    assert Counter(response.status_code for response in answers).keys() == {200, 429}
    assert refused
    assert all(response.headers["Retry-After"] for response in refused)
    assert all(response.json()["usage"]["completion_tokens"] == 200 for response in served)
