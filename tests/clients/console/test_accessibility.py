"""WCAG A and AA by axe on every page, light and dark; and a release by keyboard alone."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.clients.console.conftest import Open
from tests.clients.console.pushes import push
from tests.clients.console.test_frame import tab_to
from tests.clients.console.test_keys import enter
from tests.server.live import wait_until

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
VIEWS = {
    "/tasks": "beta",
    "/task/alpha": "Use this task",
    "/task/nothing": "there is no task",
    "/upload": "Check only",
    "/playground": "Copy as curl",
    "/live": "KV pool",
    "/keys": "No keys yet",
}
"""And a text that is there when it is."""


def violations(page: Page) -> list[tuple[str, str]]:
    """Return what axe finds: the rule, and where it is broken."""
    package = pytest.importorskip("axe_playwright_python")
    page.evaluate((files(package) / "axe.min.js").read_text("utf-8"))
    options = {"runOnly": RULES, "resultTypes": ["violations"]}
    found: dict[str, Any] = page.evaluate("(options) => axe.run(document, options)", options)
    return [(one["id"], node["html"]) for one in found["violations"] for node in one["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_breaks_a_rule(open_page: Open, http: httpx.Client, scheme: str) -> None:
    push(http, "alpha", 1, 2)
    push(http, "beta", 3)
    http.put("/tasks/alpha/traffic", json={"weights": {"1": 9, "2": 1}}).raise_for_status()
    page = open_page(color_scheme=scheme)
    for view, text in VIEWS.items():
        page.goto(f"#{view}")
        page.get_by_text(text).first.wait_for()
        page.evaluate("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
        if view == "/task/alpha":
            page.get_by_role("button", name="v2", exact=True).click()
        if view == "/upload":
            page.get_by_label("Set how it is asked").check()
        assert violations(page) == [], view


def test_no_dialog_report_or_answer_breaks_a_rule(open_page: Open, http: httpx.Client) -> None:
    page = open_page("/upload", viewport={"width": 375, "height": 700})
    page.get_by_label("Task").fill("alpha")
    page.get_by_role("radio", name="Text").check()
    page.locator("textarea:visible").fill("go -> went")
    page.get_by_role("button", name="Upload", exact=True).click()
    page.get_by_role("heading", name="v1 of alpha is active").wait_for()
    assert violations(page) == []

    page.goto("#/playground")
    expect(page.get_by_label("Task A")).to_have_value("alpha")
    page.get_by_label("Prompt").fill("hi")
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".stats").nth(0)).to_contain_text("Total")
    assert violations(page) == []

    page.goto("#/task/alpha")
    page.get_by_role("button", name="Delete task").click()
    page.get_by_role("button", name="Delete the task").wait_for()
    assert violations(page) == []


def test_the_page_of_keys_breaks_no_rule(
    open_page: Open, http: httpx.Client, make_key: Callable[..., str]
) -> None:
    key = make_key("admin")
    wait_until(lambda: http.get("/tasks").status_code == 401)
    page = open_page("/keys")
    page.get_by_label("Key", exact=True).wait_for()
    assert violations(page) == []  # the question for a key

    enter(page, key)
    page.get_by_label("Name", exact=True).fill("ci")
    page.get_by_role("button", name="Create the key").click()
    page.get_by_role("heading", name="The key ci").wait_for()
    assert violations(page) == []


def test_a_release_by_keyboard_alone(open_page: Open, http: httpx.Client) -> None:
    """Upload, canary, activation, rollback."""
    push(http, "alpha", 1)
    page = open_page("/upload?task=alpha")
    page.get_by_role("heading", name="Upload a prefix").wait_for()
    keyboard = page.keyboard

    tab_to(page, "File or folder")
    keyboard.press("ArrowRight")  # to Text
    tab_to(page, "Text")
    keyboard.type("go -> went")
    tab_to(page, "Upload")
    keyboard.press("Enter")
    expect(page.get_by_role("heading", name="v2 of alpha is stored")).to_be_focused()
    tab_to(page, "Activate it or give it traffic")
    keyboard.press("Enter")
    page.get_by_role("button", name="Activate v2").wait_for()
    tab_to(page, "Share of the traffic")
    for _ in range(10):
        keyboard.press("ArrowRight")
    keyboard.press("Enter")
    expect(page.locator(".splitting")).to_have_text("v1 90 % · v2 10 %")
    tab_to(page, "Activate v2")
    keyboard.press("Enter")
    expect(page.locator(".splitting")).to_have_text("v2 100 %")
    tab_to(page, "Roll back")
    keyboard.press("Enter")
    expect(page.get_by_text("rolled back to v1")).to_be_visible()
    assert http.get("/tasks/alpha").json()["active_version"] == 1
