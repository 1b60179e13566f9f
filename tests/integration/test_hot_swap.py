"""A task is swapped under 16 streams: nothing fails, and no stream mixes two versions."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from dataclasses import dataclass

import httpx

from tests.running_server import RunningServer

NUM_STREAMS = 16
NUM_SWAPS = int(os.environ.get("NUM_SWAPS", "40"))
NUM_NEW = 24
PROMPT = "My favourite place in the world is"
TEXTS = [
    "You are a pirate and every sentence is about treasure.\n",
    "You are a cook. Bread, soup, and nothing else matters.\n",
    "def quicksort(numbers):\n",
]


@dataclass(frozen=True)
class Streamed:
    """What a client of one stream saw."""

    version: int
    token_ids: list[int]
    finish_reason: str


async def stream(client: httpx.AsyncClient, version: int | None = None) -> Streamed:
    params = {"task": "swapped"} | ({"version": str(version)} if version else {})
    body = {"prompt": PROMPT, "max_tokens": NUM_NEW, "ignore_eos": True}
    body |= {"stream": True, "return_token_ids": True}
    token_ids: list[int] = []
    async with client.stream("POST", "/generate", params=params, json=body) as response:
        assert response.status_code == 200, await response.aread()
        event = ""
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                assert event != "error", data
                token_ids += data["token_ids"] or [] if event == "token" else []
    assert event == "done"
    assert data["version"] == int(response.headers["X-Task-Version"])
    assert data["digest"] == response.headers["X-Prefix-Digest"]
    return Streamed(data["version"], token_ids, data["finish_reason"])


async def test_no_stream_notices_a_swap(small_server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=small_server.url, timeout=120) as client:
        for text in TEXTS:
            response = await client.post("/tasks/swapped/versions", json={"text": text})
            if response.status_code == 404:
                (await client.put("/tasks/swapped", json={})).raise_for_status()
                response = await client.post("/tasks/swapped/versions", json={"text": text})
            response.raise_for_status()
        activate = {"version": 1}
        (await client.post("/tasks/swapped/activate", json=activate)).raise_for_status()
        alone = {v: (await stream(client, v)).token_ids for v in (1, 2, 3)}
        assert len({str(tokens) for tokens in alone.values()}) == 3, "the versions must differ"

        seen: list[Streamed] = []
        swapping = True

        async def keep_streaming() -> None:
            while swapping:
                seen.append(await stream(client))

        streams = [asyncio.create_task(keep_streaming()) for _ in range(NUM_STREAMS)]
        for version in itertools.islice(itertools.cycle((2, 3, 1)), NUM_SWAPS):
            response = await client.post("/tasks/swapped/activate", json={"version": version})
            response.raise_for_status()
        swapping = False
        await asyncio.gather(*streams)

    assert len(seen) >= NUM_STREAMS
    assert {one.version for one in seen} == {1, 2, 3}
    for one in seen:
        assert one.token_ids == alone[one.version]
        assert one.finish_reason == "length"
