"""HEAD is answered like GET, without a body, on every route."""

from __future__ import annotations

import logging

import httpx
import pytest
from fastapi.routing import APIRoute

from prefix_store import artifact
from server.app import ROUTERS
from tests.server.fakes import ARTIFACT, make_prefix
from tests.server.live import LiveServer, connect, read_all

NAMES = {"task": "x", "version": "1", "model": "x", "name": "main.js"}
PATHS = [
    route.path.format_map(NAMES)
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute) and "GET" in route.methods
] + ["/docs", "/openapi.json", "/nope", "/v1/nope"]
CHANGING = ("content-length", "date", "x-request-id")
"""The body of `/metrics` is another one each time, and may have another length."""


def test_head_has_the_status_and_the_headers_of_get(live: LiveServer) -> None:
    with httpx.Client(base_url=live.url) as client:
        client.put("/tasks/x/prefix", content=artifact.dump(make_prefix()), headers=ARTIFACT)
        for path in PATHS:
            got, head = client.get(path), client.head(path)

            assert head.status_code == got.status_code, path
            assert head.content == b""
            for name in CHANGING:
                assert (name in head.headers) == (name in got.headers), path
                del head.headers[name], got.headers[name]
            assert head.headers == got.headers, path
        assert len(PATHS) > 20
        assert client.head("/generate").headers["Allow"] == "POST"


def test_no_byte_of_a_body_follows_the_head(live: LiveServer) -> None:
    answer = read_all(connect(live, "HEAD /info HTTP/1.1", "Connection: close"))

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n")
    assert b"content-length: 0" not in answer.lower()


async def test_the_app_sends_no_body_and_logs_head_with_its_route(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "server.access"):
        response = await http.head("/v1/models")

    assert (response.status_code, response.content) == (200, b"")
    logged = caplog.records[-1].__dict__
    assert (logged["method"], logged["route"], logged["status"]) == ("HEAD", "/v1/models", 200)
