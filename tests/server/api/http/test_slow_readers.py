"""Clients that take nothing of their answer are cut off; slow ones are not, nor anybody else."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from prefix_store.digest import Digest
from prefix_store.store import PrefixStore
from prefix_store.testing.samples import draft
from server.api.http import sse
from server.api.http.http_server import DeadlineProtocol
from tests.server.fakes import FakeEngine
from tests.server.live import LONG, LiveServer, generate, read_all, wait_until

WRITE_TIMEOUT_S = 0.8  # as in the settings of these tests


@pytest.fixture
def large_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model's context is short: let an event be as long as hundreds of tokens."""
    event = sse.event
    monkeypatch.setattr(sse, "event", lambda *of: event(*of) + b": " + b"x" * 8000 + b"\n\n")


@contextmanager
def reader(live: LiveServer, *lines: str, body: bytes = b"") -> Iterator[socket.socket]:
    """A connection with a request sent and a fixed window to answer into, as small as loopback's
    large packets allow."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", live.port))
        connection.sendall("\r\n".join([*lines, "Host: test", "", ""]).encode() + body)
        yield connection


def stream(live: LiveServer) -> AbstractContextManager[socket.socket]:
    head, raw = generate(LONG | {"stream": True, "ignore_eos": True})
    return reader(live, *head, body=raw)


@pytest.mark.usefixtures("large_events")
def test_a_stream_nobody_reads_is_cut_off_and_its_place_freed(
    live: LiveServer, engine: FakeEngine
) -> None:
    engine.delay_s = 0.005
    with stream(live) as silent:
        wait_until(lambda: engine.num_in_flight == 1)
        started_s = time.monotonic()
        other = httpx.post(f"{live.url}/generate", json=LONG | {"stream": True}, timeout=20)

        wait_until(lambda: engine.num_in_flight == 0)
        wait_until(lambda: not live.server.server_state.tasks)
        waited_s = time.monotonic() - started_s
        with suppress(ConnectionResetError):
            assert b"event: done" not in read_all(silent)

    assert engine.num_cancelled == 1
    assert other.text.count("event: token") == LONG["max_tokens"]
    assert "event: done" in other.text
    assert waited_s >= WRITE_TIMEOUT_S


@pytest.mark.usefixtures("large_events")
def test_a_stream_read_slowly_is_served_whole(live: LiveServer, engine: FakeEngine) -> None:
    engine.delay_s = 0.001
    answer = bytearray()
    with stream(live) as slow:
        started_s = time.monotonic()
        while not answer.endswith(b"0\r\n\r\n"):
            time.sleep(0.02)
            answer += slow.recv(16 << 10)

    assert answer.count(b"event: token") == LONG["max_tokens"]
    assert b"event: done" in answer
    assert engine.num_cancelled == 0
    assert time.monotonic() - started_s > 2 * WRITE_TIMEOUT_S


@pytest.mark.usefixtures("large_events")
def test_without_the_deadline_a_silent_reader_keeps_its_place(
    live: LiveServer, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: uvicorn by itself waits for ever."""
    monkeypatch.setattr(DeadlineProtocol, "pause_writing", H11Protocol.pause_writing)
    engine.delay_s = 0.001
    with stream(live):
        wait_until(lambda: engine.num_tokens_made == LONG["max_tokens"])
        time.sleep(3 * WRITE_TIMEOUT_S)
        assert live.server.server_state.tasks


def keep(store: PrefixStore, num_bytes: int) -> None:
    """Make a version of a blob that is larger than any prefix of the fake engine."""
    content = "x" * num_bytes
    store.put_bytes(content.encode())
    store.push("x", draft(content), activate=True, create=True)


def test_a_download_nobody_reads_is_cut_off(live: LiveServer, store: PrefixStore) -> None:
    keep(store, 8 << 20)
    connections = live.server.server_state.connections
    blob = f"sha256/{Digest.of(b'x' * (8 << 20)).hex[:2]}"

    with reader(live, "GET /tasks/x/versions/1/prefix HTTP/1.1"):
        wait_until(lambda: num_open(blob) == 1)
        wait_until(lambda: not connections and num_open(blob) == 0)


def test_a_download_ends_with_its_client(live: LiveServer, store: PrefixStore) -> None:
    keep(store, 8 << 20)
    blob = f"sha256/{Digest.of(b'x' * (8 << 20)).hex[:2]}"

    with reader(live, "GET /tasks/x/versions/1/prefix HTTP/1.1") as leaving:
        leaving.recv(1000)
        wait_until(lambda: num_open(blob) == 1)
    started_s = time.monotonic()
    wait_until(lambda: num_open(blob) == 0)
    assert time.monotonic() - started_s < WRITE_TIMEOUT_S  # not by the deadline of slow readers


def num_open(part: str) -> int:
    """Files that this process has open, by a part of their path."""
    found = 0
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found += part in os.readlink(path)
    return found


def test_a_download_read_slowly_is_whole(live: LiveServer, store: PrefixStore) -> None:
    keep(store, 2 << 20)
    num_bytes = 0

    with reader(live, "GET /tasks/x/versions/1/prefix HTTP/1.1", "Connection: close") as slow:
        started_s = time.monotonic()
        while piece := slow.recv(16 << 10):
            num_bytes += piece.count(b"x")
            time.sleep(0.02)

    assert num_bytes >= 2 << 20
    assert time.monotonic() - started_s > 2 * WRITE_TIMEOUT_S


def test_a_reset_in_the_middle_of_a_stream_frees_its_place(
    live: LiveServer, engine: FakeEngine
) -> None:
    engine.delay_s = 0.02
    with stream(live) as connection:
        connection.recv(100)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    wait_until(lambda: engine.num_in_flight == 0)
    assert engine.num_tokens_made < 100


def test_a_client_that_shuts_its_side_has_left(live: LiveServer, engine: FakeEngine) -> None:
    """It looks like a client that closes, whose request would run for no one."""
    engine.delay_s = 0.02
    with stream(live) as connection:
        wait_until(lambda: engine.num_in_flight == 1)
        connection.shutdown(socket.SHUT_WR)

        wait_until(lambda: engine.num_in_flight == 0)
    assert engine.num_tokens_made < 100
