"""The page of keys: made with scopes, patterns and an expiry, shown once, listed, revoked."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import httpx
from playwright.sync_api import Page, expect

from tests.clients.console.conftest import Open
from tests.clients.console.test_keys import enter
from tests.server.live import wait_until

MakeKey = Callable[..., str]


def open_with(open_page: Open, http: httpx.Client, key: str) -> Page:
    """Open the page with a key, once the server knows that there is one."""
    wait_until(lambda: http.get("/tasks").status_code == 401)
    page = open_page("/keys")
    enter(page, key)
    return page


def test_an_open_server_says_how_to_make_the_first_key(open_page: Open) -> None:
    page = open_page("/keys")

    expect(page.locator(".empty")).to_contain_text("foreword keys create --name me")
    expect(page.get_by_role("button", name="Create the key")).to_be_hidden()


def test_a_key_is_made_shown_once_used_and_revoked(
    open_page: Open, http: httpx.Client, make_key: MakeKey
) -> None:
    key = make_key("admin")
    page = open_with(open_page, http, key)
    http.headers["Authorization"] = f"Bearer {key}"
    page.get_by_label("Name", exact=True).fill("ci-runner")
    page.get_by_role("checkbox", name="generate completions").uncheck()
    page.get_by_role("checkbox", name="read see").check()
    page.get_by_role("checkbox", name="write create").check()
    page.get_by_label("Tasks", exact=True).fill("support-*, word")
    page.get_by_label("Expires").select_option("In 30 days")
    page.get_by_label("Requests at once").fill("2")

    page.get_by_role("button", name="Create the key").click()

    expect(page.get_by_role("heading", name="The key ci-runner")).to_be_focused()
    text = page.locator(".secret").inner_text()
    found = next(key for key in http.get("/keys").json()["keys"] if key["name"] == "ci-runner")
    assert (found["scopes"], found["tasks"]) == (["read", "write"], ["support-*", "word"])
    assert found["max_concurrency"] == 2
    lifetime = datetime.fromisoformat(found["expires_at"]) - datetime.fromisoformat(
        found["created_at"]
    )
    assert timedelta(days=29) < lifetime < timedelta(days=31)
    theirs = {"Authorization": f"Bearer {text}"}
    assert http.get("/tasks", headers=theirs).status_code == 200

    row = page.locator("tbody tr", has_text="ci-runner")
    expect(row).to_contain_text("read, write")
    page.get_by_role("button", name="Revoke ci-runner").click()
    page.get_by_role("button", name="Revoke the key").click()
    expect(row).to_contain_text("revoked")
    assert http.get("/tasks", headers=theirs).status_code == 401
    page.reload()
    expect(row).to_be_visible()
    assert text not in page.content()


def test_a_refusal_of_the_server_is_shown(
    open_page: Open, http: httpx.Client, make_key: MakeKey
) -> None:
    page = open_with(open_page, http, make_key("admin"))
    page.get_by_label("Name", exact=True).fill("x")
    page.get_by_role("checkbox", name="admin manage").check()
    page.get_by_label("Tasks", exact=True).fill("a*")

    page.get_by_role("button", name="Create the key").click()
    expect(page.locator(".problem")).to_contain_text("a key with the scope admin is for all tasks")
    page.get_by_role("button", name="Revoke test").click()
    page.get_by_role("button", name="Revoke the key").click()
    expect(page.locator(".problem")).to_contain_text("this is the last valid admin key")


def test_a_key_that_is_not_an_admins_sees_which_scope_is_missing(
    open_page: Open, http: httpx.Client, make_key: MakeKey
) -> None:
    page = open_with(open_page, http, make_key("read"))

    expect(page.locator(".problem")).to_contain_text("this needs a key with the scope admin")
    expect(page.locator(".card:visible")).to_have_count(0)
