"""Requests that come again count once; changes are made to the state they were meant for."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from prefix_store import artifact
from server.api.http.deps import Services
from tests.server.fakes import ARTIFACT, FakeEngine, make_prefix, push

KEY = {"Idempotency-Key": "k-1"}


def upload(seed: int, *, key: str = "k-1", kind: str = ARTIFACT["Content-Type"]) -> dict[str, Any]:
    headers = {"Content-Type": kind, "Idempotency-Key": key}
    return {"content": artifact.dump(make_prefix(seed)), "headers": headers}


@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "/tasks/x/prefix"), ("POST", "/tasks/x/versions?activate=true")]
)
async def test_an_upload_that_comes_again_makes_one_version(
    http: httpx.AsyncClient, method: str, path: str
) -> None:
    if method == "POST":
        await http.put("/tasks/x", json={})

    answers = [await http.request(method, path, **upload(1)) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [201, 201, 201]
    assert len({answer.content for answer in answers}) == 1
    assert (await http.get("/tasks/x")).json()["num_versions"] == 1


async def test_the_same_key_elsewhere_is_another_request(http: httpx.AsyncClient) -> None:
    first = await http.put("/tasks/x/prefix", **upload(1))
    others = [
        await http.put("/tasks/y/prefix", **upload(1)),
        await http.post("/tasks/x/versions", **upload(1)),
        await http.put(
            "/tasks/x/prefix", **upload(1) | {"headers": ARTIFACT | {"Idempotency-Key": "2"}}
        ),
    ]

    assert [first.status_code, *(r.status_code for r in others)] == [201, 201, 201, 200]
    assert (await http.get("/tasks/x")).json()["num_versions"] == 3


async def test_the_same_key_for_something_else_is_refused(http: httpx.AsyncClient) -> None:
    await http.put("/tasks/x/prefix", **upload(1))

    body = await http.put("/tasks/x/prefix", **upload(2))
    query = await http.put("/tasks/x/prefix?dry_run=0", **upload(1))
    kind = await http.put("/tasks/x/prefix", **upload(1, kind="application/octet-stream"))

    for response in (body, query, kind):
        assert (response.status_code, response.json()["code"]) == (422, "idempotency_mismatch")
    assert (await http.get("/tasks/x")).json()["num_versions"] == 1


async def test_the_same_key_at_once_is_a_conflict(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    entered, gate = asyncio.Event(), asyncio.Event()

    async def slow_load(*_: Any) -> None:
        entered.set()
        await gate.wait()

    engine.load = slow_load  # type: ignore[method-assign]
    first = asyncio.create_task(http.put("/tasks/x/prefix", **upload(1)))
    await entered.wait()
    second = await asyncio.wait_for(http.put("/tasks/x/prefix", **upload(1)), 10)
    gate.set()

    assert (second.status_code, second.json()["code"]) == (409, "request_in_progress")
    assert (await first).status_code == 201
    again = await http.put("/tasks/x/prefix", **upload(1))
    assert again.content == (await first).content


async def test_swaps_and_deletes_that_come_again_count_once(http: httpx.AsyncClient) -> None:
    for seed in (1, 2, 3):
        await push(http, "x", seed)

    async def twice(method: str, path: str, **kwargs: Any) -> list[httpx.Response]:
        return [await http.request(method, path, headers=KEY, **kwargs) for _ in range(2)]

    backs = await twice("POST", "/tasks/x/rollback")
    swaps = await twice("POST", "/tasks/x/activate", json={"version": 1})
    splits = await twice("PUT", "/tasks/x/traffic", json={"weights": {"1": 1, "2": 3}})
    wholes = await twice("DELETE", "/tasks/x/traffic")
    one_less = await twice("DELETE", "/tasks/x/versions/3")
    history = (await http.get("/tasks/x/versions")).json()["history"]
    none_left = await twice("DELETE", "/tasks/x")

    assert [r.json()["active_version"] for r in backs] == [2, 2]
    assert [r.json()["active_version"] for r in swaps] == [1, 1]
    assert [r.json()["weights"] for r in splits] == [{"1": 1, "2": 3}] * 2
    assert [r.json()["weights"] for r in wholes] == [None] * 2
    assert [r.status_code for r in (*one_less, *none_left)] == [204] * 4
    assert [line["version"] for line in history] == [1, 1, 1, 2, 3, 2, 1]


async def test_a_request_that_failed_may_come_again(http: httpx.AsyncClient) -> None:
    before = await http.post("/tasks/x/rollback", headers=KEY)
    for seed in (1, 2):
        await push(http, "x", seed)
    after = await http.post("/tasks/x/rollback", headers=KEY)

    assert (before.status_code, after.status_code) == (404, 200)


@pytest.mark.parametrize("key", ["", "k" * 256, "a b", "\u00e9"])
async def test_a_bad_key_is_refused(http: httpx.AsyncClient, key: str) -> None:
    headers = [(b"Idempotency-Key", key.encode())]
    response = await http.post("/tasks/x/rollback", headers=headers)

    assert response.status_code == 422


async def test_answers_that_nobody_waits_for_are_forgotten(
    http: httpx.AsyncClient, services: Services
) -> None:
    await http.put("/tasks/x/prefix", **upload(1))
    services.store.blocking.registry.forget_answers(0.0)
    again = await http.put("/tasks/x/prefix", **upload(1))

    assert (again.status_code, again.json()["version"]) == (200, 2)


async def test_a_task_says_its_state_and_takes_changes_of_that_state_only(
    http: httpx.AsyncClient,
) -> None:
    for seed in (1, 2):
        await push(http, "x", seed)
    old = (await http.get("/tasks/x")).headers["ETag"]
    changed = await http.patch("/tasks/x", json={"chat": True}, headers={"If-Match": old})
    new = changed.headers["ETag"]
    body = {"content": artifact.dump(make_prefix(3)), "headers": ARTIFACT}

    async def attempt(tags: str) -> list[int]:
        match = {"If-Match": tags}
        return [
            response.status_code
            for response in (
                await http.put("/tasks/x", json={}, headers=match),
                await http.patch("/tasks/x", json={}, headers=match),
                await http.put("/tasks/x/prefix", **body | {"headers": ARTIFACT | match}),
                await http.post("/tasks/x/versions", **body | {"headers": ARTIFACT | match}),
                await http.post("/tasks/x/activate", json={"version": 1}, headers=match),
                await http.post("/tasks/x/rollback", headers=match),
                await http.put("/tasks/x/traffic", json={"weights": {"1": 1}}, headers=match),
                await http.delete("/tasks/x/traffic", headers=match),
                await http.delete("/tasks/x/versions/1", headers=match),
                await http.delete("/tasks/x", headers=match),
            )
        ]

    assert changed.status_code == 200
    assert (await http.get("/tasks/x")).headers["ETag"] == new != old
    for tags in (old, f"W/{new}", '"other"', f'{old}, "0"'):
        assert await attempt(tags) == [412] * 10
    for tags in ("x", '"', new.strip('"'), f"{new},"):
        assert await attempt(tags) == [400] * 10
    replaced = await http.put("/tasks/x", json={}, headers={"If-Match": f"{old}, {new}"})
    assert replaced.status_code == 200
    assert replaced.headers["ETag"] not in (old, new)


async def test_if_match_never_creates(http: httpx.AsyncClient) -> None:
    body = artifact.dump(make_prefix(1))
    for tags in ("*", '"1"'):
        headers = ARTIFACT | {"If-Match": tags}
        assert (await http.put("/tasks/x", json={}, headers={"If-Match": tags})).status_code == 404
        put = await http.put("/tasks/x/prefix", content=body, headers=headers)
        assert put.status_code == 404
    await http.put("/tasks/x", json={})

    assert (await http.put("/tasks/x", json={}, headers={"If-Match": "*"})).status_code == 200


async def test_of_two_uploads_for_one_state_one_is_taken(http: httpx.AsyncClient) -> None:
    state = (await http.put("/tasks/x", json={})).headers["ETag"]
    uploads = [
        http.post(
            "/tasks/x/versions",
            content=artifact.dump(make_prefix(seed)),
            headers=ARTIFACT | {"If-Match": state},
        )
        for seed in range(6)
    ]

    statuses = sorted([response.status_code for response in await asyncio.gather(*uploads)])

    assert statuses == [201] + [412] * 5
    assert (await http.get("/tasks/x")).json()["num_versions"] == 1
