"""Limits of keys, and of peers with invalid keys."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI

from prefix_store.registry import keys as keys_module
from prefix_store.registry.keys import KeyStore
from server.api.http import access
from server.api.http.limits import TokenBucket
from tests.server.api.http.keyed import GENERATE, Make
from tests.server.fakes import FakeEngine
from tests.server.live import LiveServer


async def test_a_key_has_a_rate(
    http: httpx.AsyncClient, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, other = make("read", requests_per_s=0.5, burst=3), make("read")
    now_s = [access.time.monotonic()]
    monkeypatch.setattr("server.api.http.limits.time.monotonic", lambda: now_s[0])

    statuses = [(await http.get("/tasks", headers=slow)).status_code for _ in range(5)]
    refused = await http.get("/tasks", headers=slow)

    assert statuses == [200, 200, 200, 429, 429]
    assert (refused.json()["code"], refused.headers["Retry-After"]) == ("key_limit_reached", "2")
    assert (await http.get("/tasks", headers=other)).status_code == 200
    now_s[0] += 2
    assert (await http.get("/tasks", headers=slow)).status_code == 200


async def test_a_rate_that_never_comes_round_is_a_wait_of_a_day() -> None:
    """Keys with such a rate could be made once."""
    bucket = TokenBucket(5e-324, burst=1)

    assert bucket.take() == 0
    assert bucket.take() == 24 * 3600


async def test_a_key_has_so_many_requests_at_once_to_their_very_end(
    live: LiveServer, make: Make, engine: FakeEngine
) -> None:
    engine.delay_s = 0.02
    two = make("generate", max_concurrency=2)
    body = {"prompt": "hi", "max_tokens": 100, "stream": True}
    async with (
        httpx.AsyncClient(base_url=live.url, headers=two) as client,
        client.stream("POST", "/generate", json=body) as first,
    ):
        assert first.status_code == 200
        async with client.stream("POST", "/generate", json=body):
            refused = await client.post("/generate", json=GENERATE)
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
            other = await client.get("/livez")
            assert other.status_code == 200
        for _ in range(100):  # the second stream was left: its place is free again
            again = await client.post("/generate", json=GENERATE)
            if again.status_code == 200:
                break
            await asyncio.sleep(0.02)
        assert again.status_code == 200
    two = make("generate", max_concurrency=2)
    async with httpx.AsyncClient(base_url=live.url, headers=two) as client:
        body = {"prompt": "hi", "max_tokens": 100}
        answers = await asyncio.gather(*(client.post("/generate", json=body) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] * 2 + [429] * 8


async def test_a_key_without_a_limit_has_a_default_one(
    live: LiveServer, make: Make, engine: FakeEngine
) -> None:
    """Half of the 8 sequences that may run or wait."""
    engine.delay_s = 0.02
    body = {"prompt": "hi", "max_tokens": 100}
    async with httpx.AsyncClient(base_url=live.url, headers=make("generate")) as client:
        answers = await asyncio.gather(*(client.post("/generate", json=body) for _ in range(6)))

    assert sorted(answer.status_code for answer in answers) == [200] * 4 + [429] * 2


async def test_wrong_keys_are_slowed_down_and_right_ones_are_not(
    http: httpx.AsyncClient, app: FastAPI, make: Make, keys: KeyStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    good, wrong = make("read"), {"Authorization": f"Bearer fwd_{'a' * 12}_wrong"}
    assert (await http.get("/tasks", headers=good)).status_code == 200
    lookups: list[object] = []
    monkeypatch.setattr(keys, "find", lambda attempt: lookups.append(attempt))
    monkeypatch.setattr(keys_module, "CACHE_S", 1e9)  # a slow machine must not forget the key

    responses = [await http.get("/tasks", headers=wrong) for _ in range(1000)]

    statuses = [r.status_code for r in responses]
    assert set(statuses[:20]) == {401}
    assert statuses.count(429) > 950
    assert len(lookups) < 50
    assert responses[-1].json()["code"] == "too_many_attempts"
    assert int(responses[-1].headers["Retry-After"]) >= 1
    assert (await http.get("/tasks", headers=good)).status_code == 200
    monkeypatch.undo()
    elsewhere = httpx.ASGITransport(app, client=("10.1.2.3", 1))
    async with httpx.AsyncClient(transport=elsewhere, base_url="http://test") as other:
        assert (await other.get("/tasks", headers=make("read"))).status_code == 200
        assert (await other.get("/tasks", headers=wrong)).status_code == 401


async def test_a_keys_requests_are_those_of_one_client(
    http: httpx.AsyncClient, make: Make, engine: FakeEngine
) -> None:
    body = {"prompt": "hi", "max_tokens": 2}
    one, other = make("generate"), make("generate")
    for headers in (one, one, other):
        assert (await http.post("/generate", json=body, headers=headers)).status_code == 200
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    assert (await http.post("/v1/chat/completions", json=chat, headers=one)).status_code == 200

    clients = [share.client for share in engine.shares]

    assert clients[0] == clients[1] == clients[3] != clients[2]
    assert 0 not in clients


async def test_a_request_with_too_many_choices_is_a_429(
    http: httpx.AsyncClient, make: Make
) -> None:
    body = {"model": "tiny", "prompt": "hi", "n": 5, "temperature": 1, "max_tokens": 2}

    refused = await http.post("/v1/completions", json=body, headers=make("generate"))

    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert "this request has 5" in refused.json()["error"]["message"]
