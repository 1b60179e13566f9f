"""The console's files as they are served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from prefix_store.registry.keys import Grant, KeyStore
from server.api.http.assets import load_assets
from server.api.http.deps import Services

FOLDER = Path(__file__).parents[4] / "clients" / "console"


async def test_the_console_is_a_folder(http: httpx.AsyncClient) -> None:
    moved = await http.get("/console")

    assert (moved.status_code, moved.headers["Location"]) == (307, "console/")
    assert (await http.get("/console/")).content == (FOLDER / "index.html").read_bytes()


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


async def test_the_root_leads_a_browser_to_the_console(http: httpx.AsyncClient) -> None:
    moved = await http.get("/", headers={"Accept": BROWSER})

    assert (moved.status_code, moved.headers["Location"]) == (307, "console/")
    assert moved.headers["Vary"] == "Accept"


async def test_the_root_tells_a_program_where_things_are(
    http: httpx.AsyncClient, keys: KeyStore
) -> None:
    keys.create(Grant(name="x", scopes=("read",)))
    answer = await http.get("/")
    places = answer.json()

    assert set(places) == {"console", "docs", "openapi", "livez"}
    assert "Location" not in answer.headers
    for place in places.values():
        assert (await http.get(f"/{place}")).status_code != 404


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
async def test_every_file_is_served_as_what_it_is(http: httpx.AsyncClient, path: Path) -> None:
    answer = await http.get(f"/console/{path.name}")

    kinds = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
    assert answer.content == path.read_bytes()
    assert answer.headers["Content-Type"].partition(";")[0] == kinds.get(
        path.suffix, "image/svg+xml"
    )
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'; script-src 'self';" in answer.headers["Content-Security-Policy"]


async def test_a_file_that_is_known_is_not_sent_again(http: httpx.AsyncClient) -> None:
    first = await http.get("/console/main.js")
    again = await http.get("/console/main.js", headers={"If-None-Match": first.headers["ETag"]})
    other = await http.get("/console/main.js", headers={"If-None-Match": '"other"'})

    assert first.headers["Cache-Control"] == "no-cache"
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    assert other.status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "..%2fapi.js", "%2e%2e%2f%2e%2e%2fpyproject.toml"])
async def test_nothing_else_is_served(http: httpx.AsyncClient, name: str) -> None:
    assert (await http.get(f"/console/{name}")).status_code == 404


async def test_the_console_can_be_switched_off(
    app: FastAPI, services: Services, http: httpx.AsyncClient
) -> None:
    app.state.services = replace(services, console={})

    for path in ("/", "/console", "/console/", "/console/main.js"):
        assert (await http.get(path)).status_code == 404


def test_the_page_asks_for_nothing_that_is_not_there() -> None:
    """No address of another host in any file, and every import is one of the files."""
    import re

    assets = load_assets()
    for name, asset in assets.items():
        text = asset.body.decode()
        assert re.findall(r"https?://(?!www\.w3\.org/)", text) == [], name
        for wanted in re.findall(r"from \"\./([\w.]+)\"|(?:src|href)=\"([\w.]+)\"", text):
            assert "".join(wanted) in assets, name
