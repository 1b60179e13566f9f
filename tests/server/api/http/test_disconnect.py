"""Clients that leave."""

from __future__ import annotations

import httpx

from tests.server.fakes import FakeEngine
from tests.server.live import LONG, LiveServer, connect, generate, wait_until


def test_a_streaming_client_that_leaves_cancels_its_sequence(
    live: LiveServer, engine: FakeEngine
) -> None:
    engine.delay_s = 0.02

    with httpx.stream("POST", f"{live.url}/generate", json=LONG | {"stream": True}) as response:
        lines = response.iter_lines()
        assert next(lines) == "event: token"

    wait_until(lambda: engine.num_in_flight == 0)
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

    wait_until(lambda: engine.num_in_flight == 0)
    assert engine.num_tokens_made < 100


def test_a_client_that_leaves_in_the_queue_never_gets_a_token(
    live: LiveServer, engine: FakeEngine
) -> None:
    engine.delay_s = 60.0
    head, raw = generate(LONG | {"stream": True})

    connection = connect(live, *head, body=raw)
    wait_until(lambda: engine.num_in_flight == 1)
    connection.close()

    wait_until(lambda: engine.num_in_flight == 0)
    assert engine.num_tokens_made == 0


def test_all_choices_of_a_client_that_leaves_are_cancelled(
    live: LiveServer, engine: FakeEngine
) -> None:
    engine.delay_s = 0.02
    body = {"model": "tiny", "prompt": ["a", "b", "c"], "max_tokens": 200, "stream": True}

    with httpx.stream("POST", f"{live.url}/v1/completions", json=body) as response:
        lines = response.iter_lines()  # closes the response when it is let go of
        next(lines)
        assert engine.num_in_flight == 3

    wait_until(lambda: engine.num_in_flight == 0)
    assert engine.num_cancelled == 3


def test_half_an_upload_leaves_nothing(live: LiveServer) -> None:
    connection = connect(
        live, "PUT /tasks/x/prefix HTTP/1.1", "Content-Length: 1000", body=b"x" * 500
    )
    connection.close()

    assert httpx.get(f"{live.url}/tasks").json()["tasks"] == []
