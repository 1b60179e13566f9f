"""Pages of the console in a real browser, served by the real app with a fake engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from prefix_store.registry.keys import Grant, KeyStore
from tests.clients.console.chromium import chromium, find
from tests.server.conftest import (
    app,
    audit,
    engine,
    keys,
    live,
    registry,
    settings,
    store,
    stored,
    tokenizer,
)
from tests.server.live import LiveServer

expect.set_options(timeout=20_000)  # a slow machine is not a broken page

__all__ = [
    "app", "audit", "engine", "keys", "live",
    "registry", "settings", "store", "stored", "tokenizer",
]  # fmt: skip

_REPORT = "addEventListener('securitypolicyviolation', (e) => console.error('CSP', e.blockedURI))"
Open = Callable[..., Page]
"""Opens a page. Errors of the page are collected and fail the test."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Not for the session: while Playwright runs in a thread, asyncio's own tests cannot."""
    if find() is None:
        pytest.skip("no chromium: apt-get install chromium")
    with chromium() as running:
        yield running


@contextmanager
def watched(browser: Browser, url: str, **options: object) -> Iterator[Page]:
    """A page in a context of its own. Fails if the page errs, or asks any other server."""
    context = browser.new_context(base_url=f"{url}/console/", reduced_motion="reduce", **options)
    context.set_default_timeout(20_000)
    page = context.new_page()
    found: list[str] = []
    page.found = found
    page.add_init_script(_REPORT)
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("console", lambda said: found.append(said.text) if _is_wrong(said) else None)
    page.on("request", lambda sent: _is_ours(sent.url, url) or found.append(sent.url))
    try:
        yield page
        assert found == []
    finally:
        context.close()


def _is_wrong(said: ConsoleMessage) -> bool:
    """Refusals of the API are part of the tests, and logged by the browser itself."""
    is_refusal = said.text.startswith("Failed to load resource") and "/console" not in (
        said.location.get("url", "")
    )
    return said.type in ("error", "warning") and not is_refusal


def _is_ours(address: str, url: str) -> bool:
    return address.startswith((f"{url}/", f"blob:{url}/"))


@pytest.fixture
def open_page(browser: Browser, live: LiveServer, request: pytest.FixtureRequest) -> Open:
    """Return a function that opens a view of the console by its address after the `#`."""

    def open_page(view: str = "/tasks", **options: object) -> Page:
        block = watched(browser, live.url, **options)
        page = block.__enter__()
        request.addfinalizer(lambda: block.__exit__(None, None, None))
        page.goto(f"#{view}")
        return page

    return open_page


@pytest.fixture
def http(live: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url) as client:
        yield client


@pytest.fixture
def make_key(keys: KeyStore) -> Callable[..., str]:
    """Makes a key. From the first one on, the server asks for keys."""

    def make_key(*scopes: str, **grant: object) -> str:
        return keys.create(Grant(name="test", scopes=scopes, **grant))[1]

    return make_key
