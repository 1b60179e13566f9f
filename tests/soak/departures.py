"""Clients that leave: before an answer, within a stream, within a body."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from random import Random

import httpx

from tests.soak import generation, publishing
from tests.soak.asks import LEAVES
from tests.soak.session import Session
from tests.soak.world import World

LONGEST_STAY_S = 1.5


class Left(Exception):
    """The client has closed its connection on purpose."""


async def leave_answer(session: Session, world: World, random: Random) -> str:
    """Leave before the answer to a request, or to an upload."""
    if random.random() < 0.7:
        task, version = generation.choose_target(world, random)
        request = generation.request_of(session, world, random.choice(LEAVES), task, version)
    else:
        request = _upload(session, world, random)
    sent = asyncio.create_task(session.http.send(request))
    await asyncio.wait({sent}, timeout=random.uniform(0, LONGEST_STAY_S))
    if sent.done():
        return f"{sent.result().status_code} before it left"
    sent.cancel()
    with suppress(asyncio.CancelledError):
        await sent
    return "left"


async def leave_stream(session: Session, world: World, random: Random) -> str:
    """Leave after some events of a stream."""
    task, version = generation.choose_target(world, random)
    ask = random.choice(LEAVES[:3])
    request = generation.request_of(session, world, ask, task, version, stream=True)
    response = await session.http.send(request, stream=True)
    try:
        if response.status_code == 200:
            await generation.follow(session, response, ask, task, random.randint(1, 20))
    finally:
        await response.aclose()
    return "left" if response.status_code == 200 else str(response.status_code)


async def leave_body(session: Session, world: World, random: Random) -> str:
    """Leave within the body of an upload."""
    request = _upload(session, world, random)
    content = request.content
    end = random.randrange(len(content))

    async def half() -> AsyncIterator[bytes]:
        yield content[:end]
        await asyncio.sleep(random.uniform(0, 0.2))
        raise Left

    cut = httpx.Request(request.method, request.url, headers=request.headers, stream=_Body(half()))
    with suppress(Left):
        response = await session.http.send(cut)
        return f"{response.status_code} before it left"
    return "left"


class _Body(httpx.AsyncByteStream):
    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._parts:
            yield part


def _upload(session: Session, world: World, random: Random) -> httpx.Request:
    task = world.any_task(random)
    source = publishing.choose_source(world, random, task)
    headers = {"Content-Type": source.media_type}
    path = random.choice(("prefix", "versions"))
    method = "PUT" if path == "prefix" else "POST"
    return session.request(method, f"/tasks/{task}/{path}", headers=headers, content=source.content)
