"""Versions that share a task's traffic, over HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from server.errors import StepFailed
from tests.server.api.uploads import TAR, peft_tar
from tests.server.fakes import FakeEngine, push


async def split(http: httpx.AsyncClient, weights: dict[str, int]) -> None:
    for seed in (1, 2):
        await push(http, "x", seed)
    answer = await http.put("/tasks/x/traffic", json={"weights": weights})
    assert answer.status_code == 200, answer.text


async def versions_of(
    http: httpx.AsyncClient, num_requests: int, headers: dict[str, str] | None = None, **body: Any
) -> set[int]:
    found = set()
    for _ in range(num_requests):
        answer = await http.post(
            "/generate?task=x", json={"prompt": "hi", "max_tokens": 1, **body}, headers=headers
        )
        assert answer.json()["version"] == int(answer.headers["X-Task-Version"])
        found.add(answer.json()["version"])
    return found


async def test_versions_share_the_traffic_and_are_loaded_before(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await split(http, {"1": 1, "2": 1})

    shared = (await http.get("/tasks/x/traffic")).json()
    described = (await http.get("/tasks/x")).json()
    listed = (await http.get("/tasks/x/versions")).json()

    assert shared["weights"] == described["weights"] == {"1": 1, "2": 1}
    assert (shared["active_version"], shared["warning"]) == (2, None)
    assert (listed["history"][0]["action"], listed["history"][0]["weights"]) == (
        "traffic",
        {"1": 1, "2": 1},
    )
    assert len(set(engine.loaded)) == 2
    assert await versions_of(http, 30) == {1, 2}


async def test_the_same_key_gets_the_same_version(http: httpx.AsyncClient) -> None:
    await split(http, {"1": 1, "2": 1})

    by_body = [await versions_of(http, 4, traffic_key=f"user {i}") for i in range(12)]
    by_header = [await versions_of(http, 1, {"X-Traffic-Key": f"user {i}"}) for i in range(12)]

    assert all(len(found) == 1 for found in by_body)
    assert by_body == by_header
    assert set.union(*by_body) == {1, 2}


async def test_openais_doors_stick_by_the_header(http: httpx.AsyncClient) -> None:
    await split(http, {"1": 1, "2": 1})
    chat = {"model": "x", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    plain = {"model": "x", "prompt": ["a", "b"], "max_tokens": 1}

    for i in range(6):
        key = {"X-Traffic-Key": f"user {i}"}
        [expected] = await versions_of(http, 1, key)
        for path, body in (("/v1/chat/completions", chat), ("/v1/completions", plain)):
            answer = await http.post(path, json=body, headers=key)
            assert answer.headers["X-Task-Version"] == str(expected)


async def test_a_version_that_is_asked_for_is_not_drawn(http: httpx.AsyncClient) -> None:
    await split(http, {"2": 1})

    answer = await http.post("/generate?task=x&version=1", json={"prompt": "hi"})

    assert answer.json()["version"] == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "left"),
    [
        ("DELETE", "/tasks/x/traffic", None, 2),
        ("POST", "/tasks/x/activate", {"version": 1}, 1),
        ("POST", "/tasks/x/activate", {"version": 2}, 2),
        ("POST", "/tasks/x/rollback", None, 2),
    ],
)
async def test_what_ends_a_split(
    http: httpx.AsyncClient, method: str, path: str, body: Any, left: int
) -> None:
    await split(http, {"1": 1, "2": 1})

    answer = await http.request(method, path, json=body)

    assert answer.status_code == 200, answer.text
    assert (await http.get("/tasks/x/traffic")).json()["weights"] is None
    assert await versions_of(http, 10) == {left}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"weights": {}}, 422, "validation_failed"),
        ({"weights": {"1": 0}}, 422, "validation_failed"),
        ({"weights": {"1": -1, "2": 2}}, 422, "validation_failed"),
        ({"weights": {"1": 1.5}}, 422, "validation_failed"),
        ({"weights": {"one": 1}}, 422, "validation_failed"),
        ({"weights": {"0": 1}}, 422, "validation_failed"),
        ({"weights": {str(n): 1 for n in range(1, 18)}}, 422, "validation_failed"),
        ({"weights": [1, 2]}, 422, "validation_failed"),
        ({"weights": {"9": 1}}, 404, "unknown_version"),
    ],
)
async def test_a_split_that_makes_no_sense_is_refused(
    http: httpx.AsyncClient, body: Any, status: int, code: str
) -> None:
    await push(http, "x")

    answer = await http.put("/tasks/x/traffic", json=body)

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert (await http.get("/tasks/x/traffic")).json()["weights"] is None


async def test_a_key_has_a_bound(http: httpx.AsyncClient) -> None:
    await push(http, "x")
    body = {"prompt": "hi"}

    by_body = await http.post("/generate?task=x", json=body | {"traffic_key": "k" * 257})
    by_header = await http.post("/generate?task=x", json=body, headers={"X-Traffic-Key": "k" * 257})

    assert (by_body.status_code, by_header.status_code) == (422, 422)


# --- figures of versions ---


async def test_versions_are_shown_side_by_side(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    measured = {"num_examples": 40, "scores": {"exact_match": 0.75}}
    body = peft_tar(beside={"evaluation.json": json.dumps(measured).encode()})
    await push(http, "x", 1)
    await http.post("/tasks/x/versions", content=body, headers=TAR)
    split = await http.put("/tasks/x/traffic", json={"weights": {"1": 3, "2": 1}})
    assert split.status_code == 200, split.text
    for version in (1, 1, 2):
        await http.post(f"/generate?task=x&version={version}", json={"prompt": "a"})
    await http.post("/generate?task=x&version=2", json={"prompt": "a" * 300})
    engine.fail_after = (1, StepFailed("no"))
    await http.post("/generate?task=x&version=2", json={"prompt": "a"})

    report = (await http.get("/tasks/x/traffic")).json()
    first, second = report["versions"]
    assert report["window_s"] == 900
    assert (first["version"], first["share"], first["requests"]) == (1, 0.75, 2)
    assert (first["errors"], first["error_rate"], first["refused"]) == (0, 0.0, 0)
    assert (second["version"], second["share"], second["requests"]) == (2, 0.25, 2)
    assert (second["errors"], second["error_rate"], second["refused"]) == (1, 0.5, 1)
    assert (first["evaluation"], second["evaluation"]) == (None, measured)
    for times in (first["first_token_ms"], first["total_ms"], second["total_ms"]):
        assert 0 < times["p50"] <= times["p95"]


async def test_without_a_split_the_active_version_is_shown(http: httpx.AsyncClient) -> None:
    await http.put("/tasks/x", json={})
    assert (await http.get("/tasks/x/traffic")).json()["versions"] == []
    await push(http, "x")

    report = (await http.get("/tasks/x/traffic")).json()
    [only] = report["versions"]
    assert (report["active_version"], report["weights"]) == (1, None)
    assert (only["version"], only["share"], only["requests"]) == (1, 1.0, 0)
    assert (only["error_rate"], only["first_token_ms"], only["total_ms"]) == (None, None, None)
