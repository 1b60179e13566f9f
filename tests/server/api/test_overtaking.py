"""A slow upload or activation never takes the place of one that came after it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from prefix_store import artifact
from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.digest import Digest
from prefix_store.formats import tar
from prefix_store.manifest import Manifest
from prefix_store.store import PrefixStore
from server.api.http.deps import Services
from tests.server.fakes import ARTIFACT, FakeEngine, make_prefix, push
from tests.server.live import LiveServer, wait_until


class Held:
    """Holds up the first call of a method of the engine or a service, until it is let go."""

    def __init__(self, service: object, name: str) -> None:
        self.has_begun, self._may_go = asyncio.Event(), asyncio.Event()
        self._inner = getattr(service, name)
        self._is_first = True
        setattr(service, name, self._call)

    async def _call(self, *args: object) -> object:
        if self._is_first:
            self._is_first = False
            self.has_begun.set()
            await asyncio.wait_for(self._may_go.wait(), 10)
        return await self._inner(*args)

    def release(self) -> None:
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
    held.release()
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
    held.release()

    assert (await slow).status_code == 201
    assert await active(http) == (2, 3)


@pytest.mark.parametrize("deleted", ["/tasks/x", "/tasks/x/versions/1"])
async def test_no_version_is_made_from_the_prefix_of_one_that_was_deleted_meanwhile(
    http: httpx.AsyncClient, services: Services, deleted: str
) -> None:
    await push(http, "x", seed=1)
    await push(http, "x", seed=2)
    held = Held(services.definitions, "check")
    body = {"prefix_of": 1, "definition": {"chat": True}}
    slow = asyncio.create_task(http.post("/tasks/x/versions", json=body))
    await held.has_begun.wait()

    await http.delete(deleted)
    await http.put("/tasks/x", json={})  # a new task of this name, or the old one
    before = (await http.get("/tasks/x")).json()
    held.release()
    response = await slow

    assert (response.status_code, response.json()["code"]) == (404, "unknown_version")
    assert (await http.get("/tasks/x")).json() == before


async def test_a_slow_patch_keeps_what_another_one_changed_meanwhile(
    http: httpx.AsyncClient, services: Services
) -> None:
    await push(http, "x", seed=1)
    held = Held(services.definitions, "check")
    slow = asyncio.create_task(http.patch("/tasks/x", json={"template": "{prompt}!"}))
    await held.has_begun.wait()

    await http.patch("/tasks/x", json={"limits": {"max_tokens": 3}})
    held.release()
    answer = await slow

    profile = (await http.get("/tasks/x")).json()["profile"]
    assert answer.json()["profile"] == profile
    assert (profile["template"], profile["limits"]["max_tokens"]) == ("{prompt}!", 3)


async def test_two_patches_make_no_definition_that_nobody_checked(
    http: httpx.AsyncClient, services: Services
) -> None:
    await http.put("/tasks/x", json={})
    held = Held(services.definitions, "check")
    slow = asyncio.create_task(http.patch("/tasks/x", json={"defaults": {"regex": "a"}}))
    await held.has_begun.wait()

    await http.patch("/tasks/x", json={"defaults": {"choice": ["a"]}})
    held.release()
    response = await slow

    assert (response.status_code, response.json()["code"]) == (409, "activation_overtaken")


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
    held.release()
    response = await slow

    assert (response.status_code, response.json()["code"]) == (409, "activation_overtaken")
    assert await active(http) == (2, 3)


@dataclass
class Leaving:
    """A client that leaves while its upload is verified or committed."""

    live: LiveServer
    engine: FakeEngine
    store: PrefixStore
    http: httpx.Client
    monkeypatch: pytest.MonkeyPatch

    def during_verification(self, body: bytes, headers: dict[str, str]) -> None:
        """Leave, and wait until the upload has ended."""
        began = []

        async def verify(prefix: Digest, token_ids: list[int]) -> float:
            began.append(prefix)
            return await asyncio.Event().wait()

        with self.monkeypatch.context() as patched:
            patched.setattr(self.engine, "verify", verify)
            self._upload(body, headers, until=lambda: bool(began))
            wait_until(lambda: not self.live.server.server_state.tasks)

    def during_commit(self, body: bytes, headers: dict[str, str]) -> None:
        """Leave, and let the commit go on once the server has noticed."""
        has_begun, may_go, push = Event(), Event(), self.store.push

        def slow(*args: Any, **options: Any) -> Manifest:
            has_begun.set()
            assert may_go.wait(30)
            return push(*args, **options)

        with self.monkeypatch.context() as patched:
            patched.setattr(self.store, "push", slow)
            self._upload(body, headers, until=has_begun.is_set)
            # The connection is closed: the server has read that once it has answered others.
            for _ in range(3):
                self.http.get("/livez")
            may_go.set()
            wait_until(lambda: not self.live.server.server_state.tasks)

    def _upload(self, body: bytes, headers: dict[str, str], until: Callable[[], bool]) -> None:
        lines = {"Host": f"127.0.0.1:{self.live.port}", "Content-Length": str(len(body))} | headers
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        with socket.create_connection(("127.0.0.1", self.live.port)) as sock:
            sock.sendall(f"PUT /tasks/x/prefix HTTP/1.1\r\n{head}\r\n".encode() + body)
            wait_until(until)

    def found(self) -> tuple[int | None, int]:
        """The active version, and the number of versions."""
        answer = self.http.get("/tasks/x")
        if answer.status_code != 200:
            return None, 0
        return answer.json()["active_version"], answer.json()["num_versions"]


@pytest.fixture
def leaving(
    live: LiveServer, engine: FakeEngine, store: PrefixStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Leaving]:
    with httpx.Client(base_url=live.url, headers={"Connection": "close"}) as http:
        yield Leaving(live, engine, store, http, monkeypatch)


LARGE = tar.write({"prefix.safetensors": artifact.dump(make_prefix(2)), "notes": bytes(300_000)})
"""More than a server reads ahead."""
BODIES = pytest.mark.parametrize(
    "body", [artifact.dump(make_prefix(2)), LARGE], ids=["small", "large"]
)


@BODIES
def test_an_upload_whose_client_leaves_before_the_commit_leaves_nothing(
    leaving: Leaving, tmp_path: Path, body: bytes
) -> None:
    leaving.during_verification(body, {})

    assert leaving.found() == (None, 0)
    assert [*FileBlobStore(tmp_path / "blobs")] == []
    assert len(leaving.engine.unloaded) == 1


@BODIES
@pytest.mark.parametrize("is_new", [True, False])
def test_an_upload_whose_client_leaves_during_the_commit_is_kept_and_not_activated(
    leaving: Leaving, body: bytes, is_new: bool
) -> None:
    if not is_new:
        leaving.http.put("/tasks/x/prefix", content=artifact.dump(make_prefix(1)), headers=ARTIFACT)

    leaving.during_commit(body, {})

    assert leaving.found() == ((None, 1) if is_new else (1, 2))


@pytest.mark.parametrize("when", ["verification", "commit"])
def test_a_client_that_comes_back_for_its_upload_gets_it_activated(
    leaving: Leaving, when: str
) -> None:
    body, key = artifact.dump(make_prefix(2)), {"Idempotency-Key": "again"}
    getattr(leaving, f"during_{when}")(body, key)
    num_kept = leaving.found()[1]

    again = leaving.http.put("/tasks/x/prefix", content=body, headers=key)

    assert (again.status_code, again.json()["active"]) == (201 if num_kept == 0 else 200, True)
    assert leaving.found() == (num_kept + 1, num_kept + 1)
