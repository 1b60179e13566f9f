"""Web pages of other sites, and names that are not the server's, while there is no key."""

from __future__ import annotations

import httpx
import pytest

from prefix_store.registry.keys import Grant, KeyStore
from server.api.http.allowed_hosts import AllowedHosts
from server.api.http.deps import Services
from tests.server.fakes import FakeEngine, push

PAGE = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
HOST = {"Host": "evil.example:8000"}


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        (PAGE, "foreign_origin"),
        ({"Origin": "https://evil.example"}, "foreign_origin"),
        ({"Origin": "null"}, "foreign_origin"),
        ({"Origin": ""}, "foreign_origin"),
        ({"Origin": "http://test:3000"}, "foreign_origin"),
        ({"Sec-Fetch-Site": "cross-site"}, "foreign_origin"),
        ({"Sec-Fetch-Site": "same-site"}, "foreign_origin"),
        (HOST, "unknown_host"),
        (HOST | {"Origin": "http://evil.example:8000"}, "unknown_host"),
        ({"Host": "127.0.0.1.evil.example"}, "unknown_host"),
        ({"Host": "localhost.evil.example"}, "unknown_host"),
        ({"Host": "192.168.0.7:8000"}, "unknown_host"),
    ],
)
async def test_what_another_site_sends_changes_and_generates_nothing(
    http: httpx.AsyncClient, engine: FakeEngine, headers: dict[str, str], code: str
) -> None:
    before = await push(http, "a")
    calls = [
        ("POST", "/tasks/a/versions?activate=true", b"not even read"),
        ("PUT", "/tasks/b/prefix", b"nor this"),
        ("POST", "/tasks/a/rollback", b""),
        ("POST", "/tasks/a/versions/1/pin", b""),
        ("DELETE", "/tasks/a", b""),
        ("POST", "/generate?task=a", b'{"prompt": "x"}'),
        ("POST", "/v1/completions", b'{"model": "a", "prompt": "x"}'),
    ]

    for method, path, body in calls:
        response = await http.request(method, path, content=body, headers=headers)

        assert response.status_code == 403, path
        found = response.json()
        assert found.get("code", found.get("error", {}).get("code")) == code
    assert engine.submitted == []
    assert engine.pinned == set()
    assert (await http.get("/tasks/a")).json()["active_version"] == before["version"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://test", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Host": "localhost:8000", "Origin": "http://localhost:8000"},
        {"Host": "LOCALHOST:8000", "Origin": "http://localhost:8000"},
        {"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:8000"},
        {"Host": "127.1.2.3"},
        {"Host": "[::1]:8000", "Origin": "http://[::1]:8000"},
        {"Host": "127.0.0.1:8000", "Origin": "https://test"},
    ],
    ids=range(9),
)
async def test_programs_and_its_own_page_are_answered(
    http: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    response = await http.post("/generate", json={"prompt": "x", "max_tokens": 1}, headers=headers)

    assert response.status_code == 200, response.text


async def test_a_name_that_is_not_the_servers_reads_nothing_either(http: httpx.AsyncClient) -> None:
    for path in ("/tasks", "/info", "/console", "/docs", "/livez"):
        response = await http.get(path, headers=HOST)

        assert (response.status_code, response.json()["code"]) == (403, "unknown_host")


async def test_a_link_from_another_site_leads_to_the_console(http: httpx.AsyncClient) -> None:
    response = await http.get("/console/", headers={"Sec-Fetch-Site": "cross-site"})

    assert response.status_code == 200


async def test_with_keys_only_the_key_counts(http: httpx.AsyncClient, keys: KeyStore) -> None:
    _, key = keys.create(Grant(name="app", scopes=("generate", "admin")))
    bearer = {"Authorization": f"Bearer {key}"}

    answered = await http.post("/generate", json={"prompt": "x"}, headers=bearer | HOST | PAGE)
    refused = await http.post("/generate", json={"prompt": "x"}, headers=HOST | PAGE)

    assert (answered.status_code, refused.status_code) == (200, 401)


async def test_a_refusal_is_counted(http: httpx.AsyncClient, services: Services) -> None:
    await http.post("/generate", json={"prompt": "x"}, headers=PAGE)

    assert b'foreword_access_denied_total{code="foreign_origin"} 1.0' in services.metrics.render()


def test_an_open_server_on_every_address_is_called_by_any_but_not_by_any_name() -> None:
    hosts = AllowedHosts("0.0.0.0", ["server", " Models.LAN "])

    assert all(
        hosts.allows(host)
        for host in ("192.168.0.7:8000", "[fe80::1]:80", "server:8000", "models.lan", "models.lan.")
    )
    assert not any(hosts.allows(host) for host in ("evil.example", "0x7f.1", ""))
    assert AllowedHosts("::1", ["*"]).allows("anything:1")
    assert not AllowedHosts("::1", ["*"]).is_same_origin("https://evil.example", "anything:1")
    assert AllowedHosts("10.0.0.5").allows("10.0.0.5:80")
    assert not AllowedHosts("10.0.0.5").allows("10.0.0.6")
