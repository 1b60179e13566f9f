"""What a key allows: its tasks and its scopes."""

from __future__ import annotations

import json

import httpx
import pytest

from prefix_store import artifact
from prefix_store.registry.keys import Grant, KeyStore
from server.api.http import access
from tests.server.api.http.keyed import CHAT, GENERATE, SCOPES, Make
from tests.server.fakes import ARTIFACT, FakeEngine, make_prefix


async def test_a_task_of_others_is_as_one_that_is_not_there(
    http: httpx.AsyncClient, make: Make, tasks: None
) -> None:
    header = make(*SCOPES[:-1], tasks=("a-*",))
    upload = artifact.dump(make_prefix(9))
    for method, path, body in (
        ("GET", "/tasks/{}", None),
        ("PUT", "/tasks/{}", {}),
        ("PATCH", "/tasks/{}", {}),
        ("DELETE", "/tasks/{}", None),
        ("POST", "/tasks/{}/activate", {"version": 1}),
        ("POST", "/tasks/{}/activate", {"nonsense": 1}),
        ("POST", "/tasks/{}/rollback", None),
        ("GET", "/tasks/{}/versions", None),
        ("GET", "/tasks/{}/versions/1", None),
        ("GET", "/tasks/{}/versions/99", None),
        ("DELETE", "/tasks/{}/versions/1", None),
        ("GET", "/tasks/{}/versions/1/prefix", None),
        ("GET", "/tasks/{}/versions/1/prefix?format=peft", None),
        ("PUT", "/tasks/{}/prefix", upload),
        ("POST", "/tasks/{}/versions", upload),
        ("POST", "/generate?task={}", GENERATE),
        ("POST", "/generate?task={}&version=1", GENERATE),
        ("POST", "/v1/completions", {"model": "{}", "prompt": "hi"}),
        ("POST", "/v1/completions", {"model": "{}@2", "prompt": "hi"}),
        ("POST", "/v1/chat/completions", {"model": "{}", "messages": CHAT}),
        ("GET", "/v1/models/{}", None),
        ("GET", "/v1/models/{}@1", None),
    ):  # fmt: skip
        seen = []
        for task in ("b-secret", "b-nope"):
            content = body
            headers = header
            if isinstance(body, dict):
                content = json.dumps(body).replace("{}", task).encode()
                headers = header | {"Content-Type": "application/json"}
            elif isinstance(body, bytes):
                headers = header | ARTIFACT
            url = path.replace("{}", task)
            response = await http.request(method, url, content=content, headers=headers)  # type: ignore[arg-type]
            told = response.text.replace(task, "TASK")
            told = told.replace(response.headers["x-request-id"], "")
            names = set(response.headers) - {"x-request-id"}
            seen.append((response.status_code, told, names))
        assert seen[0] == seen[1], (method, path)
        assert seen[0][0] == 404, (method, path)
        code = "model_not_found" if path.startswith("/v1/") else "unknown_task"
        assert code in seen[0][1]


async def test_lists_show_only_what_the_key_is_for(
    http: httpx.AsyncClient, make: Make, tasks: None
) -> None:
    header = make("read", "generate", tasks=("a-*", "?-on?"))

    page = (await http.get("/tasks?limit=1", headers=header)).json()
    models = (await http.get("/v1/models", headers=header)).json()
    rest = (await http.get("/tasks?after=a-one", headers=header)).json()

    assert [task["name"] for task in page["tasks"]] == ["a-one"]
    assert page["next_after"] is None
    assert rest["tasks"] == []
    assert [model["id"] for model in models["data"]] == ["tiny", "a-one"]
    assert (await http.get("/metrics", headers=header)).status_code == 403
    assert (await http.get("/metrics", headers=make("read"))).status_code == 200


async def test_the_bare_base_model_is_for_keys_of_all_tasks(
    http: httpx.AsyncClient, make: Make, tasks: None
) -> None:
    some, all_tasks = make("generate", tasks=("a-*",)), make("generate", tasks=("a-*", "*"))
    completion = {"model": "tiny", "prompt": "hi"}

    for header, status in ((some, 403), (all_tasks, 200)):
        bare = await http.post("/generate", json=GENERATE, headers=header)
        openai = await http.post("/v1/completions", json=completion, headers=header)
        task = await http.post("/generate?task=a-one", json=GENERATE, headers=header)
        assert (bare.status_code, openai.status_code, task.status_code) == (status, status, 200)


async def test_to_upload_is_not_to_promote(
    http: httpx.AsyncClient, make: Make, tasks: None, engine: FakeEngine
) -> None:
    ci, human = make("write"), make("promote")
    body = {"content": artifact.dump(make_prefix(7))}

    pushed = await http.post("/tasks/a-one/versions", headers=ARTIFACT | ci, **body)  # type: ignore[arg-type]
    at_once = await http.post("/tasks/a-one/versions?activate=true", headers=ARTIFACT | ci, **body)  # type: ignore[arg-type]
    short = await http.put("/tasks/a-one/prefix", headers=ARTIFACT | ci, **body)  # type: ignore[arg-type]
    swap = await http.post("/tasks/a-one/activate", json={"version": 3}, headers=ci)
    promoted = await http.post("/tasks/a-one/activate", json={"version": 3}, headers=human)

    statuses = [r.status_code for r in (pushed, at_once, short, swap, promoted)]
    assert statuses == [201, 403, 403, 403, 200]
    assert swap.json()["code"] == "insufficient_scope"


async def test_an_admin_makes_lists_and_revokes_keys(
    http: httpx.AsyncClient, everything: dict[str, str]
) -> None:
    grant = {
        "name": "ci",
        "scopes": ["read"],
        "tasks": ["a-*"],
        "expires_at": "2100-01-01T00:00:00Z",
    }
    created = await http.post("/keys", json=grant, headers=everything)
    listed = (await http.get("/keys", headers=everything)).json()["keys"]
    header = {"Authorization": f"Bearer {created.json()['key']}"}
    used = await http.get("/tasks", headers=header)
    beyond = await http.post("/keys", json=grant, headers=header)
    revoked = await http.delete(f"/keys/{created.json()['id']}", headers=everything)

    assert (created.status_code, used.status_code, beyond.status_code) == (201, 200, 403)
    assert listed[1] == {k: v for k, v in created.json().items() if k != "key"}
    assert listed[1]["created_by"] == listed[0]["id"]
    assert revoked.status_code == 204
    assert (await http.get("/tasks", headers=header)).status_code == 401
    nobody = await http.delete("/keys/zzz", headers=everything)
    assert (nobody.status_code, nobody.json()["code"]) == (404, "unknown_key")
    for wrong in ({"name": "x"}, grant | {"scopes": ["root"]}, grant | {"scopes": ["admin"]}):
        assert (await http.post("/keys", json=wrong, headers=everything)).status_code == 422


async def test_the_last_admin_cannot_lock_everybody_out(
    http: httpx.AsyncClient, keys: KeyStore, everything: dict[str, str]
) -> None:
    refused = await http.delete(f"/keys/{keys.list()[0].id}", headers=everything)

    assert (refused.status_code, refused.json()["code"]) == (409, "last_admin_key")
    assert (await http.get("/keys", headers=everything)).status_code == 200


async def test_without_keys_everything_is_open_but_their_making(
    http: httpx.AsyncClient, keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = {"name": "first", "scopes": ["admin"]}
    assert (await http.put("/tasks/x", json={})).status_code == 201
    ignored = {"Authorization": "Bearer of a client that has one"}
    assert (await http.get("/tasks", headers=ignored)).status_code == 200
    for method, path in (("GET", "/keys"), ("GET", "/audit"), ("DELETE", "/keys/x")):
        assert (await http.request(method, path)).status_code == 403
    assert "foreword keys create" in (await http.post("/keys", json=grant)).json()["detail"]
    assert not keys.exist()

    keys.create(Grant(name="first", scopes=("admin",)))  # as the command line does
    later_s = access.time.monotonic() + access.CACHE_S + 0.1
    monkeypatch.setattr("server.api.http.access.time.monotonic", lambda: later_s)
    assert (await http.get("/tasks")).status_code == 401
