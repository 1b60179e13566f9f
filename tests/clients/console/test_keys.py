"""A server with keys: asked for once, kept in the tab, and what a key may not do is said."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.clients.console.conftest import Open
from tests.clients.console.pushes import push
from tests.server.fakes import FakeEngine

MakeKey = Callable[..., str]


@pytest.fixture
def http(http: httpx.Client, make_key: MakeKey) -> httpx.Client:
    """A key for everything but keys, created first, so that the server is never open."""
    key = make_key("read", "write", "promote", "generate", "delete")
    http.headers["Authorization"] = f"Bearer {key}"
    return http


def enter(page: Page, key: str) -> None:
    page.get_by_label("Key", exact=True).fill(key)
    page.keyboard.press("Enter")


def test_a_key_is_asked_for_once_and_sent_as_a_bearer(
    open_page: Open, http: httpx.Client, make_key: MakeKey
) -> None:
    push(http, "alpha", 1)
    key = make_key("read", "generate")
    page = open_page()
    sent: list[str | None] = []
    page.on("request", lambda request: sent.append(request.headers.get("authorization")))

    enter(page, key)

    expect(page.get_by_role("link", name="alpha")).to_be_visible()
    expect(page.locator(".requests")).to_have_text("0")  # /metrics came too
    page.reload()
    expect(page.get_by_role("link", name="alpha")).to_be_visible()
    assert f"Bearer {key}" in sent
    assert page.evaluate("JSON.stringify(localStorage)").count("fwd_") == 0
    assert page.context.cookies() == []
    assert key not in page.url
    assert key not in page.content()


def test_another_tab_does_not_have_the_key(
    open_page: Open, http: httpx.Client, make_key: MakeKey
) -> None:
    key = make_key("read")
    page = open_page()
    enter(page, key)
    expect(page.get_by_text("No tasks yet")).to_be_visible()

    other = page.context.new_page()
    other.goto("")

    expect(other.get_by_label("Key", exact=True)).to_be_visible()


def test_a_wrong_key_is_not_kept_and_can_be_replaced_and_forgotten(
    open_page: Open, http: httpx.Client, make_key: MakeKey
) -> None:
    key = make_key("read")
    page = open_page()
    enter(page, "fwd_nonsense")

    expect(page.locator("dialog")).to_contain_text("does not accept this key")
    assert page.evaluate("sessionStorage.length") == 0
    enter(page, key)
    expect(page.get_by_text("No tasks yet")).to_be_visible()
    page.get_by_role("button", name="Key set").click()
    page.get_by_role("button", name="Remove the key").click()
    expect(page.locator(".problem")).to_contain_text("Unauthenticated")


def test_cancelling_the_question_does_not_bring_it_back(
    open_page: Open, http: httpx.Client
) -> None:
    page = open_page()

    page.get_by_role("button", name="Cancel").click()

    expect(page.get_by_role("button", name="Enter a key")).to_be_visible()
    page.get_by_role("link", name="Live").click()
    expect(page.locator(".problem").first).to_contain_text("Unauthenticated")
    expect(page.locator("dialog")).to_have_count(0)


def test_what_a_reader_may_not_do_is_explained(
    open_page: Open, http: httpx.Client, make_key: MakeKey
) -> None:
    push(http, "alpha", 1, 2)
    page = open_page("/task/alpha")
    enter(page, make_key("read"))

    page.get_by_role("button", name="Activate v2").click()

    problem = page.locator(".problem")
    expect(problem).to_contain_text("Insufficient scope")
    expect(problem).to_contain_text("this needs a key with the scope promote")
    expect(problem).to_contain_text("insufficient_scope · request ")


def test_a_key_that_only_generates_has_the_playground(
    open_page: Open, http: httpx.Client, make_key: MakeKey, engine: FakeEngine
) -> None:
    push(http, "alpha", 1)
    key = make_key("generate")
    page = open_page("/playground")
    enter(page, key)
    expect(page.get_by_label("Task A")).to_have_value("alpha")

    page.get_by_label("Prompt").fill("hi")
    page.keyboard.press("Control+Enter")

    expect(page.locator(".stats").nth(0)).to_contain_text("Total")
    page.get_by_role("link", name="Tasks").click()
    expect(page.locator(".problem")).to_contain_text("scope read")


def test_a_key_for_some_tasks_sees_these_and_why_there_are_no_rates(
    open_page: Open, http: httpx.Client, make_key: MakeKey
) -> None:
    push(http, "alpha", 1)
    push(http, "beta", 2)
    key = make_key("read", tasks=("a*",))
    page = open_page()
    enter(page, key)

    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.get_by_text("Rates are not shown")).to_be_visible()


def test_the_files_are_there_without_a_key(http: httpx.Client) -> None:
    del http.headers["Authorization"]

    assert http.get("/console/").status_code == 200
    assert http.get("/console/main.js").status_code == 200
    assert http.get("/tasks").status_code == 401
