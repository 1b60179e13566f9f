"""The engine process is killed under load: what it ran fails clearly, everything else goes on."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time

import httpx
import pytest

from tests.running_server import RunningServer

BODY = {"prompt": "Once upon a time", "max_tokens": 15_000, "ignore_eos": True}


async def num_running(client: httpx.AsyncClient) -> float:
    """What the engine's last heartbeat said."""
    lines = (await client.get("/metrics")).text.splitlines()
    [line] = [line for line in lines if line.startswith("foreword_engine_running_requests ")]
    return float(line.split()[1])


async def wait_for_running(client: httpx.AsyncClient, expected: int) -> None:
    deadline_s = time.monotonic() + 30
    while await num_running(client) != expected:
        assert time.monotonic() < deadline_s, f"never {expected} running"
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_leaves_frees_its_place_in_the_engine(
    small_server: RunningServer, streamed: bool
) -> None:
    body = BODY | {"stream": streamed}
    async with httpx.AsyncClient(base_url=small_server.url, timeout=120) as client:
        asking = [asyncio.create_task(client.post("/generate", json=body)) for _ in range(3)]
        await wait_for_running(client, 3)

        for one in asking:
            one.cancel()

        await wait_for_running(client, 0)
        outcomes = (await client.get("/metrics")).text
    [cancelled] = re.findall(
        r'foreword_requests_total\{outcome="cancelled",task=""\} (\S+)', outcomes
    )
    assert float(cancelled) >= 3


async def test_a_killed_engine_is_replaced(small_server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=small_server.url, timeout=120) as client:
        (await client.put("/tasks/kept/prefix", json={"text": "Be brief.\n"})).raise_for_status()
        short = BODY | {"max_tokens": 8, "return_token_ids": True}
        before = await client.post("/generate", params={"task": "kept"}, json=short)
        task = {"params": {"task": "kept"}}
        running = [
            asyncio.create_task(client.post("/generate", json=BODY, **task)) for _ in range(8)
        ]
        await asyncio.sleep(2)
        killed_s = time.monotonic()

        os.kill(small_server.engine_pid(), signal.SIGKILL)

        for response in await asyncio.gather(*running):
            assert response.status_code == 503
            assert response.headers["Retry-After"]
            assert response.json()["code"] == "engine_unavailable"
        assert (await client.get("/livez")).status_code == 503
        assert (await client.get("/tasks/kept")).status_code == 200
        while (await client.get("/readyz")).status_code != 200:
            assert time.monotonic() - killed_s < 60  # a busy machine takes its time
            await asyncio.sleep(0.05)
        after = await client.post("/generate", params={"task": "kept"}, json=short)

    assert after.status_code == 200
    assert after.json()["token_ids"] == before.json()["token_ids"]
    assert after.json()["digest"] == before.json()["digest"]


async def test_sigterm_lets_a_stream_finish(small_server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=small_server.url, timeout=120) as client:
        body = BODY | {"max_tokens": 600, "stream": True}
        async with client.stream("POST", "/generate", json=body) as response:
            lines = response.aiter_lines()
            await anext(lines)

            small_server.process.send_signal(signal.SIGTERM)

            rest = [line async for line in lines if line]

    event, data = rest[-2:]
    assert event == "event: done"
    assert json.loads(data.removeprefix("data: "))["usage"]["completion_tokens"] == 600
    assert rest.count("event: token") > 50, "it was over before the signal"
    assert small_server.process.wait(60) in (0, -signal.SIGTERM)
