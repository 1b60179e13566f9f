"""Answers are read as they came, wherever the reads cut them."""

from __future__ import annotations

import json

import pytest

from foreword_bench import stream
from foreword_bench.stream import Answer, EventSplitter
from foreword_bench.wire import Dechunker, Exchange

EVENTS = b'event: token\r\ndata: {"text": "a"}\r\n\r\n: a comment\n\ndata: one\ndata:two\n\n'


def chunked(payload: bytes, size: int) -> bytes:
    parts = [payload[i : i + size] for i in range(0, len(payload), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def token(text: str = "x") -> bytes:
    return b"data: " + json.dumps({"choices": [{"text": text}], "usage": None}).encode() + b"\n\n"


def end(count: int) -> bytes:
    told = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": count}}
    return b"data: " + json.dumps(told).encode() + b"\n\ndata: [DONE]\n\n"


def answer(*reads: bytes, status: int = 200, num_new_tokens: int = 2) -> Answer:
    """An exchange whose reads arrived at 1 s, 2 s, ..."""
    exchange = Exchange(0.5, status=status, headers={"content-length": "1"})
    exchange.reads = [(float(i + 1), data) for i, data in enumerate(reads)]
    return stream.read(exchange, model="m", due_s=0.25, num_new_tokens=num_new_tokens)


@pytest.mark.parametrize("size", range(1, len(EVENTS) + 1))
def test_events_are_whole_wherever_they_are_cut(size: int) -> None:
    splitter = EventSplitter()

    events = [
        event for i in range(0, len(EVENTS), size) for event in splitter.feed(EVENTS[i : i + size])
    ]

    assert events == [("token", b'{"text": "a"}'), ("", b"one\ntwo")]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 1000])
def test_chunks_are_taken_off_wherever_they_are_cut(size: int) -> None:
    payload = b"in the middle \r\n0\r\n\r\n of it" * 20
    wire = chunked(payload, 37)
    chunks = Dechunker()

    out = b""
    for i in range(0, len(wire), size):
        assert not chunks.is_done
        out += chunks.feed(wire[i : i + size])

    assert out == payload
    assert chunks.is_done


def test_times_are_those_of_the_reads_that_completed_an_event() -> None:
    half = token()[:10]

    got = answer(half, token()[10:], token() + end(2))

    assert got.error is None
    assert got.token_s == (2.0, 3.0)
    assert got.ttft_s == 1.75  # from when it was due, not from when it was sent
    assert got.tpot_s == 1.0
    assert (got.num_tokens, got.num_prompt_tokens) == (2, 3)


def test_time_per_token_counts_tokens_not_events() -> None:
    got = answer(token(), token("two at once") + end(3), num_new_tokens=3)

    assert got.tpot_s == 0.5


@pytest.mark.parametrize(
    ("reads", "error"),
    [
        ([token(), token()], "the stream ended early"),
        ([token(), end(1)], "1 tokens instead of 2"),
        ([end(2)], "2 tokens instead of 2"),
        ([token(), b"data: {no\n\n"], "an event is not JSON"),
        ([token(), b'data: {"error": {"code": "engine"}}\n\n'], "stream: engine"),
        ([b'event: error\ndata: {"code": "step_failed"}\n\n'], "stream: step_failed"),
    ],
)
def test_what_is_no_whole_answer_is_an_error(reads: list[bytes], error: str) -> None:
    assert answer(*reads).error == error


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"error": {"code": "overloaded", "message": "m"}}', "HTTP 429: overloaded"),
        (b'{"error": {"code": 429, "message": "in words"}}', "HTTP 429: in words"),
        (b'{"code": "unknown_task", "status": 429}', "HTTP 429: unknown_task"),
        (b"<html>", "HTTP 429: <html>"),
        (b"[]", "HTTP 429: []"),
        (b"", "HTTP 429"),
    ],
)
def test_a_refusal_is_reported_in_the_servers_words(body: bytes, error: str) -> None:
    assert answer(body, status=429).error == error
