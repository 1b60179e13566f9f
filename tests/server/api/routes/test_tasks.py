from __future__ import annotations

import httpx
import pytest

from server.errors import PrefixUnavailable
from tests.server.fakes import FakeEngine, push


async def test_a_task_is_created_replaced_changed_and_deleted(http: httpx.AsyncClient) -> None:
    created = await http.put("/tasks/x", json={"description": "d", "template": "{prompt}!"})
    replaced = await http.put("/tasks/x", json={"template": "{prompt}?"})
    changed = await http.patch("/tasks/x", json={"defaults": {"max_tokens": 9, "top_k": 2}})
    cleared = await http.patch(
        "/tasks/x", json={"template": None, "defaults": {"max_tokens": None}}
    )
    deleted = await http.delete("/tasks/x")

    assert [r.status_code for r in (created, replaced, changed, cleared)] == [201, 200, 200, 200]
    assert replaced.json()["profile"]["description"] == ""
    assert changed.json()["profile"]["template"] == "{prompt}?"
    profile = cleared.json()["profile"]
    assert profile["template"] is None
    assert (profile["defaults"]["max_tokens"], profile["defaults"]["top_k"]) == (None, 2)
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert (await http.get("/tasks/x")).status_code == 404


async def test_tasks_are_listed_a_page_at_a_time(http: httpx.AsyncClient) -> None:
    for name in ("c", "a", "b"):
        await http.put(f"/tasks/{name}", json={})

    first = (await http.get("/tasks?limit=2")).json()
    second = (await http.get("/tasks", params={"limit": 2, "after": first["next_after"]})).json()

    assert [task["name"] for task in first["tasks"]] == ["a", "b"]
    assert [task["name"] for task in second["tasks"]] == ["c"]
    assert (first["next_after"], second["next_after"]) == ("b", None)


async def test_tasks_are_found_and_sorted_a_page_at_a_time(http: httpx.AsyncClient) -> None:
    for name in ("c", "a", "b"):
        await http.put(f"/tasks/{name}", json={"description": f"About {name} + more"})
    await push(http, "d")
    asked = {"limit": 2, "search": "about", "state": "inactive", "sort": "-created"}

    first = (await http.get("/tasks", params=asked)).json()
    second = (await http.get("/tasks", params=asked | {"after": first["next_after"]})).json()

    assert [task["name"] for task in first["tasks"] + second["tasks"]] == ["b", "a", "c"]
    assert second["next_after"] is None
    found = (await http.get("/tasks?search=b%20%2B")).json()["tasks"]
    assert [task["name"] for task in found] == ["b"]


@pytest.mark.parametrize(
    "query",
    [
        "sort=size",
        "state=on",
        "search=%00",
        f"search={'x' * 101}",
        "find=x",
        "sort=-created&after=a",
    ],
)
async def test_a_query_that_cannot_be_answered_is_refused(
    http: httpx.AsyncClient, query: str
) -> None:
    assert (await http.get(f"/tasks?{query}")).status_code in (400, 422)


async def test_a_description_says_what_is_active_and_where_it_lies(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await http.put("/tasks/empty", json={})
    digest = (await push(http, "x"))["digest"]

    on_disk = (await http.get("/tasks/x")).json()
    engine.stats = type(engine.stats)(prefixes_on_device=[str(digest)])
    on_device = (await http.get("/tasks/x")).json()
    empty = (await http.get("/tasks/empty")).json()

    assert (on_disk["active_version"], on_disk["num_versions"]) == (1, 1)
    assert on_disk["digest"] == digest
    assert (on_disk["residency"], on_device["residency"]) == ("disk", "device")
    assert (empty["digest"], empty["residency"]) == (None, None)


async def test_activation_and_rollback_swap_and_load(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    first = await push(http, "x", seed=1)
    second = await push(http, "x", seed=2)

    back = await http.post("/tasks/x/rollback")
    forth = await http.post("/tasks/x/activate", json={"version": 2})

    assert (back.json()["active_version"], back.json()["digest"]) == (1, first["digest"])
    assert (forth.json()["active_version"], forth.json()["warning"]) == (2, None)
    loaded = [str(digest) for digest in engine.loaded]
    assert loaded == [first["digest"], second["digest"], first["digest"], second["digest"]]


async def test_a_load_that_fails_is_told_and_undoes_nothing(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await push(http, "x", seed=1)
    await push(http, "x", seed=2)
    engine.load_error = PrefixUnavailable("the bytes cannot be read")

    response = await http.post("/tasks/x/activate", json={"version": 1})

    assert response.status_code == 200
    assert response.json()["warning"] == "the bytes cannot be read"
    assert (await http.get("/tasks/x")).json()["active_version"] == 1


async def test_a_deleted_task_leaves_the_device(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    manifest = await push(http, "x")

    await http.delete("/tasks/x")

    assert [str(digest) for digest in engine.unloaded] == [manifest["digest"]]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/tasks/nope", None, 404, "unknown_task"),
        ("PATCH", "/tasks/nope", {}, 404, "unknown_task"),
        ("DELETE", "/tasks/nope", None, 404, "unknown_task"),
        ("GET", "/tasks/NOT-A-NAME", None, 404, "unknown_task"),
        ("PUT", "/tasks/NOT-A-NAME", {}, 422, "invalid_name"),
        ("PUT", "/tasks/x%0Ay", {}, 422, "invalid_name"),
        ("PUT", "/tasks/x%0A", {}, 422, "invalid_name"),
        ("PUT", "/tasks/..%2f..%2fx", {}, 404, "not_found"),
        ("POST", "/tasks/nope/activate", {"version": 1}, 404, "unknown_task"),
        ("POST", "/tasks/x/activate", {"version": 9}, 404, "unknown_version"),
        ("POST", "/tasks/x/activate", {"version": 0}, 422, "validation_failed"),
        ("POST", "/tasks/x/rollback", None, 409, "nothing_to_roll_back"),
        ("PUT", "/tasks/x", {"template": "{prompt.x}"}, 422, "template_mismatch"),
        ("PATCH", "/tasks/x", {"template": "{"}, 422, "template_mismatch"),
        ("PATCH", "/tasks/x", {"defaults": {"top_p": 7}}, 422, "validation_failed"),
        ("PATCH", "/tasks/x", {"colour": "red"}, 422, "validation_failed"),
        ("PATCH", "/tasks/x", [1], 422, "validation_failed"),
        ("PUT", "/tasks/x", {"defaults": {"max_tokens": 10**30}}, 422, "validation_failed"),
        ("PUT", "/tasks/x", {"defaults": {"stop_token_ids": [10**6]}}, 422, "invalid_request"),
        ("GET", "/tasks?limit=0", None, 422, "validation_failed"),
        ("GET", "/tasks?limit=1001", None, 422, "validation_failed"),
    ],
)
async def test_what_cannot_be_is_refused_with_its_code(
    http: httpx.AsyncClient, method: str, path: str, body: object, status: int, code: str
) -> None:
    await http.put("/tasks/x", json={})

    response = await http.request(method, path, **({} if body is None else {"json": body}))

    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("depth", [99, 240, 400, 900])
async def test_a_deeply_nested_profile_is_refused(http: httpx.AsyncClient, depth: int) -> None:
    for inner in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        form = f'{{"type": "json_schema", "json_schema": {{"schema": {{"default": {inner}}}}}}}'
        body = f'{{"defaults": {{"response_format": {form}}}}}'
        for method in ("PUT", "PATCH"):
            answer = await http.request(
                method, "/tasks/x", content=body, headers={"Content-Type": "application/json"}
            )
            assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
            assert "nested more than" in answer.json()["detail"]
