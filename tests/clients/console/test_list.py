"""The list of tasks: searched, filtered and sorted by the server, and kept in the address."""

from __future__ import annotations

import re

import httpx
from playwright.sync_api import Page, expect

from tests.clients.console.conftest import Open
from tests.clients.console.pushes import push


def create(http: httpx.Client, *names: str) -> None:
    for name in names:
        http.put(f"/tasks/{name}", json={"description": f"About {name}"}).raise_for_status()


def listed(page: Page, *names: str) -> None:
    expect(page.locator("tbody th a")).to_have_text(list(names))


def test_many_tasks_come_in_pages_that_have_addresses(open_page: Open, http: httpx.Client) -> None:
    create(http, *(f"task-{number:02}" for number in range(27)))
    page = open_page()

    expect(page.locator("tbody tr")).to_have_count(25)
    page.get_by_role("link", name="Next").click()
    listed(page, "task-25", "task-26")
    create(http, "a-new-one")  # on the first page: it moves nothing here
    page.reload()
    listed(page, "task-25", "task-26")
    page.get_by_role("link", name="First page").click()
    expect(page.get_by_role("link", name="a-new-one")).to_be_visible()
    page.get_by_role("link", name="Next").click()
    expect(page.locator("tbody tr")).to_have_count(3)
    page.get_by_role("link", name="Previous").click()
    expect(page.get_by_role("link", name="a-new-one")).to_be_visible()


def test_a_search_is_done_by_the_server_and_kept_in_the_address(
    open_page: Open, http: httpx.Client
) -> None:
    create(http, *(f"task-{number:02}" for number in range(40)))
    push(http, "other-task-39", 1)
    page = open_page()

    search = page.get_by_label("Search by name or description")
    search.press_sequentially("TASK-39")
    listed(page, "other-task-39", "task-39")
    expect(search).to_be_focused()
    page.get_by_label("State").select_option("No active version")
    listed(page, "task-39")
    expect(page).to_have_url(re.compile(r"#/tasks\?search=TASK-39&state=inactive$"))
    page.reload()
    listed(page, "task-39")
    search.fill("nothing has this")
    expect(page.get_by_text("No such task")).to_be_visible()
    page.get_by_role("link", name="Show all tasks").click()
    expect(page.locator("tbody tr")).to_have_count(25)


def test_tasks_are_sorted_by_their_last_change(open_page: Open, http: httpx.Client) -> None:
    create(http, "a", "b", "c")
    http.patch("/tasks/b", json={"weight": 2}).raise_for_status()
    page = open_page()
    listed(page, "a", "b", "c")

    page.get_by_label("Order").select_option("Last changed first")

    listed(page, "b", "c", "a")


def test_the_list_stays_when_the_server_is_unreachable(open_page: Open, http: httpx.Client) -> None:
    create(http, "alpha")
    page = open_page()
    listed(page, "alpha")

    page.route("**/tasks?*", lambda route: route.abort())

    expect(page.locator(".problem")).to_contain_text("The server is unreachable")
    listed(page, "alpha")
    page.unroute("**/tasks?*")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".problem")).to_have_count(0)


def test_a_phone_says_the_servers_state_in_words(open_page: Open) -> None:
    page = open_page(viewport={"width": 375, "height": 700})

    expect(page.locator("#server")).to_contain_text("ready")
    expect(page.get_by_text("ready", exact=True)).to_be_visible()
