"""A slow upload or activation never takes the place of one that came after it."""

from __future__ import annotations

import asyncio
import socket

import httpx
import pytest

from prefix_store import artifact
from prefix_store.digest import Digest
from tests.server.fakes import ARTIFACT, FakeEngine, make_prefix, push
from tests.server.live import LiveServer, wait_until


class Held:
    """Holds up what the engine is asked about one prefix, until it is let go."""

    def __init__(self, engine: FakeEngine, name: str) -> None:
        self.has_begun, self._may_go = asyncio.Event(), asyncio.Event()
        self._inner = getattr(engine, name)
        self._is_first = True
        setattr(engine, name, self._call)

    async def _call(self, *args: object) -> object:
        if self._is_first:
            self._is_first = False
            self.has_begun.set()
            await asyncio.wait_for(self._may_go.wait(), 10)
        return await self._inner(*args)

    def let_go(self) -> None:
        self._may_go.set()


async def active(http: httpx.AsyncClient) -> tuple[int | None, int]:
    """The active version of x, and how many there are."""
    task = (await http.get("/tasks/x")).json()
    return task["active_version"], task["num_versions"]


@pytest.mark.parametrize("later", [1, 2])
async def test_an_upload_is_refused_once_a_later_activation_came_first(
    http: httpx.AsyncClient, engine: FakeEngine, later: int
) -> None:
    await push(http, "x", seed=1)
    if later == 1:  # an activation of a version that is there, instead of a push
        await push(http, "x", seed=2)
    held = Held(engine, "verify")
    body = artifact.dump(make_prefix(3))
    slow = asyncio.create_task(http.put("/tasks/x/prefix", content=body, headers=ARTIFACT))
    await held.has_begun.wait()

    if later == 1:
        await http.post("/tasks/x/activate", json={"version": 1})
    else:
        await push(http, "x", seed=2)
    before = (await http.get("/tasks/x")).json()
    held.let_go()
    response = await slow

    assert (response.status_code, response.json()["code"]) == (409, "activation_overtaken")
    assert (await http.get("/tasks/x")).json() == before
    assert before["active_version"] == later


async def test_an_upload_that_is_not_to_be_active_overtakes_nothing(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await push(http, "x", seed=1)
    held = Held(engine, "verify")
    body = artifact.dump(make_prefix(3))
    slow = asyncio.create_task(http.post("/tasks/x/versions", content=body, headers=ARTIFACT))
    await held.has_begun.wait()

    await push(http, "x", seed=2)
    held.let_go()

    assert (await slow).status_code == 201
    assert await active(http) == (2, 3)


@pytest.mark.parametrize("change", ["activate", "traffic"])
async def test_a_slow_activation_is_refused_once_a_later_one_came_first(
    http: httpx.AsyncClient, engine: FakeEngine, change: str
) -> None:
    for seed in (1, 2, 3):
        await push(http, "x", seed=seed)
    held = Held(engine, "load")
    slow = asyncio.create_task(
        http.post("/tasks/x/activate", json={"version": 1})
        if change == "activate"
        else http.put("/tasks/x/traffic", json={"weights": {"1": 1, "3": 1}})
    )
    await held.has_begun.wait()

    await http.post("/tasks/x/activate", json={"version": 2})
    held.let_go()
    response = await slow

    assert (response.status_code, response.json()["code"]) == (409, "activation_overtaken")
    assert await active(http) == (2, 3)


@pytest.mark.parametrize("is_new", [True, False])
def test_an_upload_whose_client_has_gone_is_kept_and_not_activated(
    live: LiveServer, engine: FakeEngine, is_new: bool
) -> None:
    began: list[Digest] = []
    may_go: list[bool] = []
    inner = engine.verify

    async def verify(prefix: Digest, token_ids: list[int]) -> float:
        began.append(prefix)
        while not may_go:
            await asyncio.sleep(0.01)
        return await inner(prefix, token_ids)

    with httpx.Client(base_url=live.url) as http:
        if not is_new:
            body = artifact.dump(make_prefix(1))
            http.put("/tasks/x/prefix", content=body, headers=ARTIFACT)
        engine.verify = verify  # type: ignore[method-assign]
        body = artifact.dump(make_prefix(2))
        head = (
            f"PUT /tasks/x/prefix HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\n"
            f"Content-Type: {ARTIFACT['Content-Type']}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", live.port)) as sock:
            sock.sendall(head.encode() + body)
            wait_until(lambda: bool(began))
        # The connection is closed: the server has read that once it answers another.
        http.get("/livez")
        may_go.append(True)
        expected = (None, 1) if is_new else (1, 2)

        def found() -> tuple[int | None, int] | None:
            answer = http.get("/tasks/x")
            if answer.status_code != 200:
                return None
            return answer.json()["active_version"], answer.json()["num_versions"]

        wait_until(lambda: (found() or (0, 0))[1] == expected[1])
        assert found() == expected
