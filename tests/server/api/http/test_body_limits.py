"""How much of a body is taken: of one by itself, and of all together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Event, Thread
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from prefix_store import formats
from prefix_store.registry.audit import AuditLog
from prefix_store.registry.keys import KeyStore
from prefix_store.store import PrefixStore
from server.api.http import body_limits
from server.app import create_app
from server.budgets import ByteBudget
from server.publishing import spool
from server.settings import Settings
from server.text.tokenizer import Tokenizer
from tests.server.fakes import FakeEngine
from tests.server.live import LiveServer, connect, read_all, serve, wait_until

JSON = "Content-Type: application/json"
KIB = 1 << 10
CHAT = '{"model":"tiny","messages":[{"role":"user","content":'
TENSORS = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def small_json(monkeypatch: pytest.MonkeyPatch) -> int:
    """The most bytes of a text upload, below those of any other."""
    monkeypatch.setattr(formats, "MAX_JSON_BYTES", 100 * KIB)
    return 100 * KIB


def put(live: LiveServer, body: bytes) -> int:
    return httpx.put(f"{live.url}/tasks/x/prefix", content=body, headers=TENSORS).status_code


@pytest.fixture
def roomy(
    settings: Settings,
    store: PrefixStore,
    keys: KeyStore,
    audit: AuditLog,
    engine: FakeEngine,
    tokenizer: Tokenizer,
) -> Iterator[LiveServer]:
    """With the limits that a server has by default."""
    defaults = {"max_body_bytes": 4 << 20, "max_upload_bytes": 2 << 30, "body_timeout_s": 10.0}
    settings = settings.model_copy(update=defaults)
    app: FastAPI = create_app(settings, store, keys, audit, engine, tokenizer, "tiny")
    with serve(app) as running:
        yield running


# --- uploads of text ---


@pytest.mark.parametrize("kind", [JSON, "Content-Type: Application/JSON; charset=utf-8"])
@pytest.mark.parametrize("line", ["PUT /tasks/x/prefix", "POST /tasks/x/versions"])
def test_a_text_announced_too_large_is_refused_unread(
    live: LiveServer, small_json: int, line: str, kind: str
) -> None:
    length = f"Content-Length: {small_json + 1}"

    connection = connect(live, f"{line} HTTP/1.1", kind, length)

    assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    connection.close()


def test_a_text_in_chunks_is_counted(live: LiveServer, small_json: int) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"text":"'
        for _ in range(200):
            yield b"x" * KIB
        yield b'"}'

    headers = {"Content-Type": "application/json"}
    response = httpx.put(f"{live.url}/tasks/x/prefix", content=chunks(), headers=headers)

    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_tensors_may_be_larger_than_texts(live: LiveServer, small_json: int) -> None:
    assert put(live, b"x" * (small_json + 1)) == 422


# --- all bodies together ---


def test_half_sent_uploads_together_do_not_take_more_than_there_is(
    monkeypatch: pytest.MonkeyPatch, roomy: LiveServer
) -> None:
    monkeypatch.setattr(body_limits, "_MAX_BYTES_OF_ALL", 400 * KIB)  # read at the first request
    head = ("PUT /tasks/x/prefix HTTP/1.1", f"Content-Length: {1000 * KIB}")
    part = b"x" * (300 * KIB)

    arrived: dict[object, int] = {}
    hold = ByteBudget.hold

    def spy(self: ByteBudget, body: Any, num_bytes: int) -> None:
        if isinstance(body, body_limits._Body):  # and not a file that it is spooled to
            arrived[body] = num_bytes
        hold(self, body, num_bytes)

    monkeypatch.setattr(ByteBudget, "hold", spy)
    waited_for = [connect(roomy, *head, body=part) for _ in range(2)]  # one of them the large one
    wait_until(lambda: sum(arrived.values()) == 2 * spool.PIECE_BYTES)
    refused = [read_all(connect(roomy, *head, body=part)) for _ in range(2)]
    small = httpx.post(f"{roomy.url}/generate", json={"prompt": "x", "max_tokens": 1})

    for answer in refused:
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1" in answer.lower()
    assert small.status_code == 200
    for upload in waited_for:
        upload.close()
    wait_until(lambda: put(roomy, b"x" * (900 * KIB)) == 422)  # no prefix, and taken whole


# --- the event loop ---


def longest_livez_s(live: LiveServer, work: Any) -> float:
    """Seconds of the slowest `/livez` while `work` runs, and of one more after it."""
    is_done = Event()
    slowest_s = 0.0

    def ask() -> None:
        nonlocal slowest_s
        is_last = False
        while not is_last:
            is_last = is_done.is_set()
            started_s = time.monotonic()
            assert httpx.get(f"{live.url}/livez", timeout=120).status_code == 200
            slowest_s = max(slowest_s, time.monotonic() - started_s)

    asking = Thread(target=ask)
    asking.start()
    try:
        work()
    finally:
        is_done.set()
        asking.join()
    return slowest_s


def items(before: str, item: str, after: str, num_bytes: int = 4_000_000) -> bytes:
    num_items = num_bytes // (len(item) + 1)
    return f"{before}[{','.join([item] * num_items)}]{after}".encode()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", (CHAT, "1", "}]}")),
        ("/v1/completions", ('{"model":"tiny","prompt":', "-1", "}")),
        ("/generate", ('{"prompt":"x","stop":', "1", "}")),
        ("/generate", ('{"prompt":"x","choice":', "[]", "}")),
        ("/generate", ('{"prompt":"x","response_format":{"type":', "1.5", "}}")),
        ("/tasks/x/prefix", ('{"text":"x","golden":', "[]", "}")),
    ],
    ids=range(6),
)
def test_the_event_loop_turns_while_a_hostile_body_is_refused(
    roomy: LiveServer, path: str, body: tuple[str, str, str]
) -> None:
    raw = items(*body)
    method = "PUT" if path.startswith("/tasks") else "POST"
    headers = {"Content-Type": "application/json"}
    statuses: list[int] = []

    def send(content: bytes) -> None:
        with httpx.Client(base_url=roomy.url, headers=headers, timeout=120) as client:
            statuses.append(client.request(method, path, content=content).status_code)

    control_s = longest_livez_s(roomy, lambda: send(b"[" + b" " * len(raw)))
    hostile_s = longest_livez_s(roomy, lambda: send(raw))

    assert all(status in (400, 422) for status in statuses)
    assert hostile_s < 2 + 5 * control_s  # it was 10 to 70 s
