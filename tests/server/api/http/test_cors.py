"""Web pages that the operator has listed, and all others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from prefix_store.registry.audit import AuditLog
from prefix_store.registry.keys import Grant, KeyStore
from prefix_store.store import PrefixStore
from server.app import create_app
from server.metrics import Metrics
from server.settings import Settings
from server.text.tokenizer import Tokenizer
from tests.server.fakes import FakeEngine, push
from tests.server.live import serve

PAGE = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
OTHER = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
ALLOWED = "access-control-allow-origin"
PROMPT = {"prompt": "x", "max_tokens": 1}


def asks_for(method: str, headers: str = "authorization,content-type") -> dict[str, str]:
    return {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}


@pytest.fixture
def make_app(
    settings: Settings,
    store: PrefixStore,
    keys: KeyStore,
    audit: AuditLog,
    engine: FakeEngine,
    tokenizer: Tokenizer,
) -> Callable[[str], FastAPI]:
    def make(origins: str) -> FastAPI:
        listed = settings.model_copy(update={"cors_origins": origins})
        return create_app(listed, store, keys, audit, engine, tokenizer, "tiny")

    return make


@pytest.fixture
async def shared(make_app: Callable[[str], FastAPI]) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app("https://App.example:443, http://localhost:3000")
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


@pytest.mark.parametrize("origin", ["https://app.example", "http://localhost:3000"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_a_listed_page_may_send_what_a_client_sends(
    shared: httpx.AsyncClient, origin: str, method: str
) -> None:
    asked = asks_for(method, "authorization,content-type,if-match,x-stainless-lang")
    answer = await shared.options("/tasks/a/prefix", headers={"Origin": origin} | asked)

    assert answer.status_code == 200
    assert answer.headers[ALLOWED] == origin
    assert method in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert "x-stainless-lang" in answer.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in answer.headers


async def test_a_listed_page_uploads_generates_and_reads_the_headers(
    shared: httpx.AsyncClient,
) -> None:
    await push(shared, "a")
    shared.headers.update(PAGE)
    answers = [
        await shared.post("/generate?task=a", json=PROMPT),
        await shared.post("/generate?task=a", json=PROMPT | {"stream": True}),
        await shared.post("/tasks/a/versions/1/pin"),
        await shared.get("/tasks/a"),
    ]

    for answer in answers:
        assert answer.status_code in (200, 204), answer.text
        assert answer.headers[ALLOWED] == "https://app.example"
        assert "Origin" in answer.headers["vary"]
        for name in ("X-Task-Version", "X-Prefix-Digest", "X-Request-Id", "ETag", "Retry-After"):
            assert name in answer.headers["access-control-expose-headers"]


async def test_a_listed_page_reads_why_it_was_refused(
    shared: httpx.AsyncClient,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    shared.headers.update(PAGE)
    too_large = b" " * (settings.max_body_bytes + 1)
    answers = [
        await shared.get("/tasks/none"),
        await shared.get("/nowhere"),
        await shared.post("/generate", json={}),
        await shared.post("/generate", content=too_large),
        await shared.get("/tasks", headers={f"x-{i}": "x" for i in range(200)}),
        await shared.get("/tasks", headers={"Host": "evil.example"}),
    ]
    monkeypatch.setattr(Metrics, "render", fail)
    answers.append(await shared.get("/metrics"))

    statuses = [answer.status_code for answer in answers]
    assert statuses == [404, 404, 422, 413, 431, 403, 500]
    assert [answer.headers.get(ALLOWED) for answer in answers] == ["https://app.example"] * 7


async def test_a_page_that_is_not_listed_is_refused_as_ever(
    shared: httpx.AsyncClient, engine: FakeEngine
) -> None:
    preflight = await shared.options("/generate", headers=OTHER | asks_for("POST"))
    simple = await shared.post("/generate", json=PROMPT, headers=OTHER)
    both = [*PAGE.items(), ("Origin", OTHER["Origin"])]
    disguised = await shared.post("/generate", json=PROMPT, headers=both)
    read = await shared.get("/tasks", headers=OTHER)

    assert preflight.status_code == 400
    assert (simple.status_code, disguised.status_code) == (403, 403)
    assert ALLOWED not in preflight.headers
    assert ALLOWED not in simple.headers
    assert ALLOWED not in read.headers
    assert engine.submitted == []


async def test_without_the_setting_no_page_is_allowed_anything(http: httpx.AsyncClient) -> None:
    preflight = await http.options("/generate", headers=PAGE | asks_for("POST"))
    read = await http.get("/tasks", headers=PAGE)

    assert preflight.status_code >= 400
    assert not [name for name in (*preflight.headers, *read.headers) if "access-control" in name]


async def test_any_page_needs_a_key(make_app: Callable[[str], FastAPI], keys: KeyStore) -> None:
    while_open = await post(make_app("*"), OTHER)
    _, key = keys.create(Grant(name="app", scopes=("generate", "admin")))
    without = await post(make_app("*"), OTHER)
    with_key = await post(make_app("*"), OTHER | {"Authorization": f"Bearer {key}"})

    statuses = [answer.status_code for answer in (while_open, without, with_key)]
    assert statuses == [403, 401, 200]
    assert with_key.headers[ALLOWED] == "*"


async def post(app: FastAPI, headers: dict[str, str]) -> httpx.Response:
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        return await client.post("/generate", json=PROMPT, headers=headers)


def test_a_stream_carries_the_headers(make_app: Callable[[str], FastAPI]) -> None:
    with serve(make_app("https://app.example")) as live:
        url, body = f"{live.url}/v1/completions", PROMPT | {"model": "tiny", "stream": True}
        with httpx.stream("POST", url, json=body, headers=PAGE) as answer:
            assert answer.status_code == 200
            assert answer.headers[ALLOWED] == "https://app.example"
            assert "[DONE]" in answer.read().decode()


@pytest.mark.parametrize(
    "origins", ["app.example", "https://app.example/", "https://a.example/x", "null", "https://*"]
)
def test_what_no_browser_sends_is_not_an_origin(origins: str) -> None:
    with pytest.raises(ValidationError, match="a scheme and a host"):
        Settings(_cli_parse_args=False, cors_origins=origins)
