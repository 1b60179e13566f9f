"""What is accepted as a key, and what is not."""

from __future__ import annotations

import asyncio
from contextlib import closing
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from prefix_store.registry.keys import Grant, Key, KeyStore
from prefix_store.registry.registry import Registry
from server.api.http import access
from server.api.http.deps import Services
from tests.server.api.http.keyed import GENERATE, Make
from tests.server.live import LiveServer, connect


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
        assert (await http.request("POST", "/generate", **place)).status_code == 401


async def test_nobody_reads_a_body_before_the_key(live: LiveServer, keys: KeyStore) -> None:
    keys.create(Grant(name="x", scopes=("admin",)))
    for path in ("PUT /tasks/x/prefix", "POST /generate", "POST /keys", "PATCH /tasks/x"):
        lines = [f"{path} HTTP/1.1", "Content-Type: application/json", "Content-Length: 60000"]
        connection = await asyncio.to_thread(connect, live, *lines)
        with closing(connection):
            assert (await asyncio.to_thread(connection.recv, 100)).startswith(b"HTTP/1.1 401 ")


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
