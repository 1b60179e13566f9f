"""Every route declares its scopes, and no way leads around them."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Mount

from prefix_store.registry.keys import Grant
from server.api.http import access
from server.api.http.access import PUBLIC, required_scopes
from server.app import create_app
from tests.server.api.http.keyed import SCOPES, Make
from tests.server.fakes import FakeEngine
from tests.server.live import LiveServer, connect, read_all, serve
from tests.server.stores import open_store

CONSOLE = {"/console", "/console/", "/console/{name}"}
"""Files of a page that hold no data: what the page asks for, it asks with a key."""
OPEN = {"/", "/livez", "/readyz", "/health"}
"""From `/` a browser is sent to the console, and a program gets addresses."""


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every path with every method, and with one that it does not have."""
    for route in app.routes:
        if isinstance(route, Mount):
            yield "GET", f"{route.path}/swagger-ui.css"
            continue
        path = re.sub(r"\{\w+\}", "1", route.path)  # type: ignore[attr-defined]
        for method in {*(route.methods or ()), "OPTIONS"}:  # type: ignore[attr-defined]
            yield method, path


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
    """Each route accepts each of its declared scopes and rejects all others."""
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
    from server.settings import Settings
    from server.text.tokenizer import Tokenizer
    from tests.server.fakes import make_transformers_tokenizer

    path = tmp_path_factory.mktemp("closed")
    settings = Settings(_cli_parse_args=False, store=path)
    tokenizer = Tokenizer(make_transformers_tokenizer())
    with open_store(path) as stored:
        stored.keys.create(Grant(name="x", scopes=("admin",)))
        app = create_app(settings, *stored, FakeEngine(), tokenizer, "tiny")
        with serve(app) as running:
            yield running
