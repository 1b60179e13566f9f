"""Keys and scopes against the real app: who may call what."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Mount

from prefix_store import artifact
from prefix_store.registry.audit import AuditLog
from prefix_store.registry.keys import Grant, Key, KeyStore
from prefix_store.registry.registry import Registry
from server.api.http import access
from server.api.http.access import PUBLIC, required_scopes
from server.api.http.deps import Services
from server.api.http.limits import TokenBucket
from server.app import create_app
from tests.server.fakes import ARTIFACT, FakeEngine, make_prefix
from tests.server.live import LiveServer, connect, read_all, serve

CONSOLE = {"/console", "/console/", "/console/{name}"}
"""Files of a page that hold no data: what the page asks for, it asks with a key."""
OPEN = {"/livez", "/readyz", "/health"}
SCOPES = ("generate", "read", "write", "promote", "delete", "admin")
GENERATE = {"prompt": "hi", "max_tokens": 2}
CHAT = [{"role": "user", "content": "hi"}]

Make = Callable[..., dict[str, str]]


@pytest.fixture
def make(keys: KeyStore) -> Make:
    """Makes a key and returns its header."""

    def make(*scopes: str, **grant: object) -> dict[str, str]:
        _, text = keys.create(Grant(name="test", scopes=scopes or SCOPES, **grant))  # type: ignore[arg-type]
        return {"Authorization": f"Bearer {text}"}

    return make


@pytest.fixture
def everything(make: Make) -> dict[str, str]:
    """The header of a key that may do everything. From here on the server is closed."""
    return make()


@pytest.fixture
async def tasks(http: httpx.AsyncClient, everything: dict[str, str]) -> None:
    """Tasks `a-one` and `b-secret`, two versions each."""
    for task in ("a-one", "b-secret"):
        for seed in (1, 2):
            response = await http.put(
                f"/tasks/{task}/prefix",
                content=artifact.dump(make_prefix(seed)),
                headers=ARTIFACT | everything,
            )
            assert response.status_code in (200, 201)


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every path with every method, and with one that it does not have."""
    for route in app.routes:
        if isinstance(route, Mount):
            yield "GET", f"{route.path}/swagger-ui.css"
            continue
        path = re.sub(r"\{\w+\}", "1", route.path)  # type: ignore[attr-defined]
        for method in {*(route.methods or ()), "OPTIONS"}:  # type: ignore[attr-defined]
            yield method, path


# --- every route, A8 ---


async def test_every_route_but_health_checks_and_console_files_wants_a_key(
    app: FastAPI, http: httpx.AsyncClient, everything: dict[str, str]
) -> None:
    found = {(method, path) for method, path in routes(app)}
    assert len(found) > 30
    assert {"/openapi.json", "/docs", "/metrics", "/keys", "/audit"} <= {path for _, path in found}

    for method, path in sorted(found):
        status = (await http.request(method, path)).status_code
        if path in OPEN:
            assert status in (200, 405), (method, path)
        elif path.startswith("/console"):
            assert status in (200, 307, 404, 405), (method, path)
        else:
            assert status in (401, 405), (method, path)
            assert method == "OPTIONS" or status == 401, (method, path)


async def test_every_route_wants_a_scope(
    app: FastAPI, http: httpx.AsyncClient, make: Make, tasks: None
) -> None:
    """Of each route: refused with every scope that is not declared beside it, let in by each."""
    headers = {scope: make(scope) for scope in SCOPES}
    for route in app.routes:
        needed = required_scopes(route)
        if needed in (None, PUBLIC):
            continue
        assert isinstance(route, APIRoute)
        path = route.path.format(task="a-one", model="a-one", version=9, id="x" * 12)
        for method in route.methods:
            for scope in SCOPES:
                status = (await http.request(method, path, headers=headers[scope])).status_code
                is_enough = scope in needed and method + path != "PUT/tasks/a-one/prefix"
                assert (status == 403) != is_enough, (method, path, scope, status)


def test_the_library_routes_are_guarded_too(app: FastAPI) -> None:
    undeclared = [route for route in app.routes if required_scopes(route) is None]

    assert {getattr(route, "path", "") for route in undeclared} == {
        "/openapi.json", "/docs", "/docs/oauth2-redirect", "/static-offline-docs",
    }  # fmt: skip
    assert all(isinstance(route.app, access._GuardedRoute) for route in app.routes)  # type: ignore[attr-defined]
    public = {route.path for route in app.routes if required_scopes(route) == PUBLIC}  # type: ignore[attr-defined]
    assert public == OPEN | CONSOLE


def test_a_route_that_declares_nothing_keeps_the_server_from_starting(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    routes = request.getfixturevalue("app").routes
    route = next(route for route in routes if required_scopes(route) == {"promote"})
    monkeypatch.delattr(route.endpoint, "needs")
    parts = [
        request.getfixturevalue(name)
        for name in ("settings", "store", "keys", "audit", "engine", "tokenizer")
    ]

    with pytest.raises(RuntimeError, match="declares neither"):
        create_app(*parts, "tiny")


# --- what is no key, A1 to A4 and A10 ---


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer    ", "Basic Zm9vOmJhcg==", "fwd_", "Bearer ключ", "Bearer a\0b",
     b"Bearer \xff\xfe", "Bearer fwd_aaaaaaaaaaaa_" + "b" * 43 + "_00000000",
     "Bearer " + "k" * 20_000, "Digest {key}", "{key}", "Bearer {cut}", "Bearer {flipped}",
     "Bearer {key} x", "Bearer {key},"],
)  # fmt: skip
async def test_what_is_no_key_gets_the_same_401(
    http: httpx.AsyncClient, everything: dict[str, str], header: str | bytes | None
) -> None:
    key = everything["Authorization"].removeprefix("Bearer ")
    flipped = key[:40] + ("A" if key[40] != "A" else "B") + key[41:]
    if isinstance(header, str):
        header = header.format(key=key, cut=key[:-1], flipped=flipped).encode()
    headers = {} if header is None else {b"Authorization": header}

    wrong = await http.post("/generate", json=GENERATE, headers=headers)
    none = await http.post("/generate", json=GENERATE)

    assert wrong.status_code == 401
    assert wrong.headers["WWW-Authenticate"] == "Bearer"
    without_id = [response.json() | {"request_id": ""} for response in (wrong, none)]
    assert without_id[0] == without_id[1]
    assert without_id[0]["code"] == "unauthenticated"


async def test_a_key_of_a_megabyte_is_refused(
    http: httpx.AsyncClient, everything: dict[str, str]
) -> None:
    headers = {"Authorization": "Bearer " + "k" * (1 << 20)}

    assert (await http.get("/tasks", headers=headers)).status_code == 431


async def test_two_authorization_headers_are_malformed(
    http: httpx.AsyncClient, everything: dict[str, str]
) -> None:
    twice = [("Authorization", everything["Authorization"])] * 2

    assert (await http.get("/tasks", headers=twice)).status_code == 400


async def test_the_scheme_is_bearer_in_any_case(
    http: httpx.AsyncClient, everything: dict[str, str]
) -> None:
    key = everything["Authorization"].removeprefix("Bearer ")

    for scheme in ("bearer", "BEARER", "Bearer "):
        headers = {"Authorization": f"{scheme} {key}"}
        assert (await http.get("/tasks", headers=headers)).status_code == 200


async def test_an_expired_or_revoked_key_is_no_key(
    http: httpx.AsyncClient, make: Make, keys: KeyStore, everything: dict[str, str]
) -> None:
    expired = make("read", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    soon = make("read", expires_at=datetime.now(UTC) + timedelta(hours=1))
    assert (await http.get("/tasks", headers=expired)).status_code == 401
    assert (await http.get("/tasks", headers=soon)).status_code == 200

    revoked = await http.delete(f"/keys/{keys.list()[-1].id}", headers=everything)

    assert revoked.status_code == 204
    assert (await http.get("/tasks", headers=soon)).status_code == 401


async def test_a_revocation_elsewhere_holds_within_ten_seconds(
    http: httpx.AsyncClient, make: Make, keys: KeyStore, registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    header = make("read")
    elsewhere = KeyStore(registry.database, b"pepper" * 8)
    assert (await http.get("/tasks", headers=header)).status_code == 200
    elsewhere.revoke(keys.list()[0].id)

    later_s = access.time.monotonic() + 10
    monkeypatch.setattr("prefix_store.registry.keys.time.monotonic", lambda: later_s)
    assert (await http.get("/tasks", headers=header)).status_code == 401


async def test_a_key_anywhere_else_is_ignored(
    http: httpx.AsyncClient, everything: dict[str, str]
) -> None:
    key = everything["Authorization"].removeprefix("Bearer ")

    for place in (
        {"params": {"api_key": key, "access_token": key, "key": key, "Authorization": key}},
        {"headers": {"Cookie": f"Authorization=Bearer {key}; api_key={key}"}},
        {"json": {"api_key": key, "Authorization": f"Bearer {key}"}},
        {"headers": {"X-API-Key": key, "Proxy-Authorization": f"Bearer {key}", "api-key": key}},
        {"auth": httpx.BasicAuth("key", key)},
    ):
        assert (await http.request("POST", "/generate", **place)).status_code == 401  # type: ignore[arg-type]


async def test_nobody_reads_a_body_before_the_key(live: LiveServer, keys: KeyStore) -> None:
    keys.create(Grant(name="x", scopes=("admin",)))
    for path in ("PUT /tasks/x/prefix", "POST /generate", "POST /keys", "PATCH /tasks/x"):
        lines = [f"{path} HTTP/1.1", "Content-Type: application/json", "Content-Length: 60000"]
        connection = await asyncio.to_thread(connect, live, *lines)
        with closing(connection):
            assert (await asyncio.to_thread(connection.recv, 100)).startswith(b"HTTP/1.1 401 ")


# --- ways around, A9 ---


@pytest.mark.parametrize(
    "target",
    ["/tasks", "//tasks", "/./tasks", "/livez/../tasks", "/livez/%2e%2e/tasks", "/%2ftasks",
     "/tasks/", "/TASKS", "/tasks;x", "/livez;/tasks", "/tasks%00", "/tasks%3f",
     "/livez%2f..%2ftasks", "/tasks#/livez", "http://x/tasks", "/metrics/", "/openapi.json",
     "/docs/", "/v1/models",
     "/static-offline-docs/../tasks", "/static-offline-docs/swagger-ui.css", "*"],
)  # fmt: skip
@pytest.mark.parametrize(
    "header",
    ["X-Nothing: 1", "X-Original-URL: /livez", "X-Rewrite-URL: /livez",
     "X-Forwarded-Prefix: /livez", "X-HTTP-Method-Override: OPTIONS", "X-Forwarded-For: 127.0.0.1",
     "Forwarded: for=127.0.0.1"],
)  # fmt: skip
def test_no_spelling_of_a_path_gets_around_the_key(
    closed: LiveServer, target: str, header: str
) -> None:
    with closing(connect(closed, f"GET {target} HTTP/1.1", header, "Connection: close")) as sent:
        status = int(read_all(sent).split(b" ", 2)[1])
    assert status in (400, 401, 404, 405), status


@pytest.mark.parametrize("host", ["a/?x=", "127.0.0.1/livez?", "livez", "a\tb", ""])
def test_a_host_header_gets_nobody_in(closed: LiveServer, host: str) -> None:
    with socket.create_connection(("127.0.0.1", closed.port), timeout=5) as connection:
        head = f"GET /tasks HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        assert int(read_all(connection).split(b" ", 2)[1]) in (400, 401)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with a key, for all the requests that bring none."""
    from prefix_store.blobs.blobs import FileBlobStore
    from prefix_store.store import PrefixStore
    from server.settings import Settings
    from server.text.tokenizer import Tokenizer
    from tests.server.fakes import make_transformers_tokenizer

    path = tmp_path_factory.mktemp("closed")
    registry = Registry(f"sqlite:///{path / 'registry.db'}")
    keys = KeyStore(registry.database, b"pepper" * 8)
    keys.create(Grant(name="x", scopes=("admin",)))
    app = create_app(
        Settings(_cli_parse_args=False, store=path),
        PrefixStore(FileBlobStore(path / "blobs"), registry),
        keys,
        AuditLog(registry.database),
        FakeEngine(),  # type: ignore[arg-type]
        Tokenizer(make_transformers_tokenizer()),
        "tiny",
    )
    with serve(app) as running:
        yield running
    registry.close()


# --- tasks, A7 ---


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


# --- scopes, A6 and A13 ---


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


# --- limits, A11 ---


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


async def test_wrong_keys_are_slowed_down_and_right_ones_are_not(
    http: httpx.AsyncClient, app: FastAPI, make: Make, keys: KeyStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    good, wrong = make("read"), {"Authorization": f"Bearer fwd_{'a' * 12}_wrong"}
    assert (await http.get("/tasks", headers=good)).status_code == 200
    lookups: list[object] = []
    monkeypatch.setattr(keys, "find", lambda attempt: lookups.append(attempt))

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


# --- what is written down, A14 and A15 ---


async def test_every_change_is_audited_with_who_and_what(
    http: httpx.AsyncClient,
    audit: AuditLog,
    keys: KeyStore,
    everything: dict[str, str],
    tasks: None,
) -> None:
    num_before = len(audit.entries())
    headers = everything | {"X-Request-Id": "req-7"}
    json_headers = headers | {"Content-Type": "application/json"}
    upload = artifact.dump(make_prefix(5))
    changes: list[tuple[str, str, object, str]] = [
        ("PUT", "/tasks/new", {}, "create_task"),
        ("PUT", "/tasks/new", {}, "set_profile"),
        ("PATCH", "/tasks/new", {"description": "secret words"}, "set_profile"),
        ("POST", "/tasks/a-one/versions", upload, "push"),
        ("POST", "/tasks/a-one/versions?activate=true", upload, "push_and_activate"),
        ("PUT", "/tasks/a-two/prefix", upload, "push_and_activate"),
        ("POST", "/tasks/a-one/activate", {"version": 3}, "activate"),
        ("POST", "/tasks/a-one/rollback", None, "rollback"),
        ("DELETE", "/tasks/a-one/versions/1", None, "delete_version"),
        ("DELETE", "/tasks/new", None, "delete_task"),
        ("POST", "/keys", {"name": "x", "scopes": ["read"]}, "create_key"),
        ("DELETE", "/keys/{}", None, "revoke_key"),
    ]
    for method, path, body, _ in changes:
        is_upload = isinstance(body, bytes)
        content = body if is_upload or body is None else json.dumps(body).encode()
        response = await http.request(
            method, path.replace("{}", keys.list()[-1].id), content=content,  # type: ignore[arg-type]
            headers=headers | ARTIFACT if is_upload else json_headers,
        )  # fmt: skip
        assert response.is_success, (method, path, response.text)
    # What reads, generates or is refused leaves no row.
    await http.post("/generate?task=a-one", json=GENERATE, headers=headers)
    await http.delete("/tasks/nope", headers=headers)
    await http.put("/tasks/x", json={})

    page = (await http.get("/audit?limit=1000", headers=headers)).json()
    rows = page["entries"][num_before:]
    assert [row["action"] for row in rows] == [action for *_, action in changes]
    admin = keys.list()[0].id
    assert {(row["by"], row["peer"], row["request_id"]) for row in rows} == {
        (admin, "127.0.0.1", "req-7")
    }
    assert audit.verify() is None
    assert "secret words" not in json.dumps(rows)
    first = (await http.get("/audit?limit=2", headers=headers)).json()
    assert ([row["seq"] for row in first["entries"]], first["next_after"]) == ([1, 2], 2)
    history = (await http.get("/tasks/a-one/versions", headers=headers)).json()
    assert {line["by"] for line in history["history"]} == {admin}
    assert {manifest["created_by"] for manifest in history["versions"]} == {admin}


async def test_a_key_is_written_nowhere(
    http: httpx.AsyncClient, make: Make, tmp_path: Path, everything: dict[str, str],
    caplog: pytest.LogCaptureFixture, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(engine, "unload", lambda digest: 1 / 0)  # a bug, with its traceback
    key, upload = everything["Authorization"].removeprefix("Bearer "), artifact.dump(make_prefix(1))
    answers = [
        await http.get("/tasks", headers=everything),
        await http.get("/tasks", params={"api_key": key}),
        await http.get(f"/tasks/{key}", headers=everything),
        await http.get("/tasks", headers={"Authorization": f"Bearer {key}x"}),
        await http.post("/generate", json={"prompt": 3, "api_key": key}, headers=everything),
        await http.get("/keys", headers=everything),
        await http.get("/audit", headers=everything),
        await http.put("/tasks/x/prefix", content=upload, headers=ARTIFACT | everything),
        await http.delete("/tasks/x", headers=everything),
        await http.get("/metrics", headers=everything),
    ]  # fmt: skip
    assert [a.status_code for a in answers] == [200, 401, 404, 401, 422, 200, 200, 201, 500, 200]

    secret = key.split("_", 2)[2][:43]
    said = "".join(answer.text for answer in answers) + str([a.headers for a in answers])
    ours = [record for record in caplog.records if record.name != "httpx"]
    logged = "".join(caplog.handler.format(record) + str(record.__dict__) for record in ours)
    dump = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert "ZeroDivisionError" in logged
    assert key.split("_")[1] in logged  # the id says who it was
    assert secret not in said + logged
    assert secret.encode() not in dump
    assert 'foreword_access_denied_total{code="unauthenticated"} 2.0' in answers[-1].text


async def test_denied_writes_are_counted_and_not_chained(
    http: httpx.AsyncClient, make: Make, audit: AuditLog, everything: dict[str, str]
) -> None:
    num_rows = len(audit.entries())
    reader = make("read")
    for _ in range(3):
        await http.put("/tasks/x", json={}, headers=reader)
    upload = artifact.dump(make_prefix(1))  # refused by the route itself
    await http.put("/tasks/x/prefix", content=upload, headers=ARTIFACT | make("write"))

    metrics = (await http.get("/metrics", headers=reader)).text
    assert 'foreword_access_denied_total{code="insufficient_scope"} 4.0' in metrics
    assert len(audit.entries()) == num_rows + 2  # the two keys


async def test_the_end_of_the_audit_is_logged_at_the_end(
    app: FastAPI, audit: AuditLog, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.maintenance")
    async with app.router.lifespan_context(app):
        make("read")

    (line,) = [record for record in caplog.records if record.msg == "audit head"]
    head = audit.head()
    assert (line.__dict__["seq"], line.__dict__["hash"]) == (head.seq, head.hash) != (0, "0" * 64)


async def test_openai_clients_authenticate_as_they_do(
    http: httpx.AsyncClient, make: Make, services: Services
) -> None:
    completion = {"model": "tiny", "prompt": "hi"}
    refused = await http.post("/v1/completions", json=completion, headers=make("read"))
    nobody = await http.post("/v1/completions", json=completion)
    served = await http.post("/v1/completions", json=completion, headers=make("generate"))

    assert (refused.status_code, nobody.status_code, served.status_code) == (403, 401, 200)
    assert nobody.json()["error"]["code"] == "invalid_api_key"


def test_a_key_shows_as_little_as_it_must(keys: KeyStore) -> None:
    key, text = keys.create(Grant(name="x", scopes=("read",)))

    assert isinstance(key, Key)
    assert text.split("_", 2)[2] not in repr(key) + key.model_dump_json()
