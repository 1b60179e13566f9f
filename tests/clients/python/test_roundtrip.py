"""Every call over a real socket, on the sync and on the async client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from foreword_client import (
    AsyncClient,
    ConnectionLostError,
    ServerFailureError,
    UnfinishedStreamError,
    UnknownTaskError,
    VersionActiveError,
)
from tests.clients.python.fake_foreword import FakeForeword

Connect = Callable[..., Any]


def test_a_stream_brings_tokens_and_then_its_result(connect: Connect, server: FakeForeword) -> None:
    with connect(server.url).stream("hi", task="x", max_tokens=3) as stream:
        assert (stream.version, stream.digest, stream.request_id) == (
            3,
            "sha256:" + "ab" * 32,
            "r1",
        )
        with pytest.raises(UnfinishedStreamError):
            _ = stream.result
        texts = [token.text for token in stream]

    assert texts == ["one", " two", " three"]
    assert stream.result.text == "one two three"
    assert (stream.result.version, stream.result.finish_reason) == (3, "stop")
    assert server.bodies() == [{"prompt": "hi", "max_tokens": 3, "stream": True}]


def test_a_stream_needs_no_with_statement(connect: Connect, server: FakeForeword) -> None:
    stream = connect(server.url).stream("hi", task="x")
    with pytest.raises(UnfinishedStreamError):
        _ = stream.version

    assert next(stream).text == "one"
    assert [token.text for token in stream] == [" two", " three"]
    assert list(stream) == []
    assert stream.result.text == "one two three"


def test_leaving_a_stream_early_cancels_the_request(connect: Connect, server: FakeForeword) -> None:
    client = connect(server.url)

    with client.stream("hi", task="endless") as stream:
        assert next(stream).text == "one"
        assert not server.left.is_set()

    assert server.left.wait(5)
    assert client.generate("hi", task="x").text == "one two three"


def test_an_exception_inside_of_a_stream_cancels_the_request(
    connect: Connect, server: FakeForeword
) -> None:
    def read() -> None:
        with connect(server.url).stream("hi", task="endless") as stream:
            for _ in stream:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()
    assert server.left.wait(5)


def test_a_stream_that_is_closed_before_it_began_sends_nothing(
    connect: Connect, server: FakeForeword
) -> None:
    stream = connect(server.url).stream("hi")
    stream.close()

    assert list(stream) == []
    assert server.seen == []


def test_a_refusal_comes_before_the_first_token(connect: Connect, server: FakeForeword) -> None:
    with pytest.raises(UnknownTaskError), connect(server.url).stream("hi", task="nope"):
        pytest.fail("it was refused")


def test_a_failure_in_mid_stream_comes_after_the_tokens(
    connect: Connect, server: FakeForeword
) -> None:
    texts: list[str] = []

    with connect(server.url).stream("hi", task="failing") as stream:
        with pytest.raises(ServerFailureError, match="it failed") as caught:
            texts.extend(token.text for token in stream)
        with pytest.raises(UnfinishedStreamError):
            _ = stream.result

    assert texts == ["one", " two", " three"]
    assert (caught.value.status, caught.value.code) == (500, "step_failed")


def test_a_stream_without_an_end_is_an_error(connect: Connect, server: FakeForeword) -> None:
    with pytest.raises(ConnectionLostError, match="broke off"):
        list(connect(server.url).stream("hi", task="torn"))


async def test_a_cancelled_task_cancels_its_request(server: FakeForeword) -> None:
    async with AsyncClient(server.url) as client:

        async def read() -> None:
            async with client.stream("hi", task="endless") as stream:
                async for _ in stream:
                    started.set()

        started = asyncio.Event()
        task = asyncio.create_task(read())
        await asyncio.wait_for(started.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert await asyncio.to_thread(server.left.wait, 5)


def test_a_push_streams_a_file_with_its_length(
    connect: Connect, server: FakeForeword, tmp_path: Path
) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(bytes(range(256)) * 20_000)

    uploaded = connect(server.url).push("x", weights)
    stored = connect(server.url).push("x", text="Translate.", activate=False)

    (seen, *_), (method, where, headers, body), (method2, where2, headers2, _) = server.seen
    assert seen == "GET"  # what a second attempt must not overtake
    assert (method, where) == ("PUT", "/tasks/x/prefix")
    assert body == weights.read_bytes()
    assert headers["content-length"] == str(len(body))
    assert "transfer-encoding" not in headers
    assert headers["content-type"] == "application/vnd.safetensors"
    assert (uploaded.version, uploaded.active, uploaded.num_virtual_tokens) == (4, True, 20)
    assert (method2, where2) == ("POST", "/tasks/x/versions")
    assert headers2["content-type"] == "application/json"
    assert not stored.active


def test_a_push_carries_how_it_is_asked_and_changes_the_task_afterwards(
    connect: Connect, server: FakeForeword
) -> None:
    client = connect(server.url)

    client.push("x", text="t", chat=True, defaults={"stop": ["."]}, description="d")
    client.push("x", text="t", definition={"template": "{prompt}!"}, activate=False)
    client.push("x", prefix_of=2, definition={"template": "{prompt}?"})

    assert [(method, where) for method, where, _, _ in server.seen] == [
        ("GET", "/tasks/x"),
        ("PUT", "/tasks/x/prefix"),
        ("PATCH", "/tasks/x"),
        ("POST", "/tasks/x/versions"),
        ("GET", "/tasks/x"),
        ("POST", "/tasks/x/versions?activate=true"),
    ]
    assert server.bodies() == [
        {"text": "t", "definition": {"chat": True, "defaults": {"stop": ["."]}}},
        {"description": "d"},
        {"text": "t", "definition": {"template": "{prompt}!"}},
        {"prefix_of": 2, "definition": {"template": "{prompt}?"}},
    ]
    # The first one builds on the task's definition, as it was at this revision.
    assert [headers.get("if-match") for _, _, headers, _ in server.seen] == [
        None,
        '"7"',
        *[None] * 4,
    ]


def test_tasks_are_collected_over_all_pages(connect: Connect, server: FakeForeword) -> None:
    tasks = connect(server.url).tasks()

    assert [task.name for task in tasks] == ["a", "b", "c"]
    assert [where for _, where, _, _ in server.seen] == ["/tasks", "/tasks?after=b"]


def test_every_other_call_says_what_the_contract_says(
    connect: Connect, server: FakeForeword
) -> None:
    client = connect(server.url)

    assert client.create_task("x", description="d", template=None).name == "x"
    assert client.update_task("x", template=None).name == "x"
    assert client.task("x").residency == "device"
    assert [found.version for found in client.versions("x").versions] == [1, 2, 3]
    assert client.version("x", 2).num_bytes == 1_500_000
    assert client.activate("x", 2).active_version == 2
    assert client.rollback("x").active_version == 2
    assert client.download("x", 1) == b"bytes of artifact"
    assert client.download("x", 1, format="peft") == b"bytes of peft"
    assert client.info().limits.max_model_len == 128
    assert client.is_ready()
    client.delete_task("x")
    with pytest.raises(VersionActiveError):
        client.delete_version("x", 3)

    assert [(method, where) for method, where, _, _ in server.seen] == [
        ("PUT", "/tasks/x"),
        ("PATCH", "/tasks/x"),
        ("GET", "/tasks/x"),
        ("GET", "/tasks/x/versions"),
        ("GET", "/tasks/x/versions/2"),
        ("GET", "/tasks/x"),
        ("POST", "/tasks/x/activate"),
        ("GET", "/tasks/x"),
        ("POST", "/tasks/x/rollback"),
        ("GET", "/tasks/x/versions/1/prefix"),
        ("GET", "/tasks/x/versions/1/prefix?format=peft"),
        ("GET", "/info"),
        ("DELETE", "/tasks/x"),
        ("DELETE", "/tasks/x/versions/3"),
    ]
    assert server.bodies() == [{"description": "d"}, {"template": None}, {"version": 2}]
    changes = [headers for _, where, headers, _ in server.seen if where.endswith(("ate", "back"))]
    assert [headers["if-match"] for headers in changes] == ['"7"', '"7"']  # what it saw


def test_keys_are_made_listed_and_revoked(connect: Connect, server: FakeForeword) -> None:
    client = connect(server.url, api_key="fwd_mine")
    ends = datetime(2030, 1, 1, tzinfo=UTC)

    made = client.create_key("ci", ["read"], ["a-*"], expires_at=ends, burst=3)
    listed = client.keys()
    client.revoke_key(made.id)
    rows = client.audit(after=7)

    assert (made.key, made.name, made.expires_at, made.burst) == ("fwd_k1_secret", "ci", ends, 3)
    assert [(key.id, key.scopes, key.tasks) for key in listed] == [("k1", ["read"], ["*"])]
    assert [(row.seq, row.action, row.by) for row in rows] == [(8, "rollback", None)]
    assert [(method, where) for method, where, _, _ in server.seen] == [
        ("POST", "/keys"),
        ("GET", "/keys"),
        ("DELETE", "/keys/k1"),
        ("GET", "/audit?after=7&limit=1000"),
    ]
    assert all(headers["authorization"] == "Bearer fwd_mine" for _, _, headers, _ in server.seen)


def test_a_client_connects_again_when_the_server_comes_up_late(
    connect: Connect, server: FakeForeword
) -> None:
    started_s = time.monotonic()

    assert connect("http://127.0.0.1:1").is_ready() is False
    assert connect(server.url).is_ready() is True
    assert time.monotonic() - started_s < 30
