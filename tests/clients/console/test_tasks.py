"""The list of tasks and the page of one: what is shown, and what can be done."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
from playwright.sync_api import expect

from prefix_store.digest import Digest
from prefix_store.formats import tar
from server.errors import PrefixUnavailable, UnusablePrefix
from tests.clients.console.conftest import Open
from tests.clients.console.pushes import artifact_bytes, push
from tests.server.fakes import FakeEngine
from tests.server.live import wait_until

HOSTILE = "<img src=x onerror=\"document.title='pwned'\"><script>alert(1)</script>{{7*7}}"


def test_an_empty_server_says_what_to_do_next(open_page: Open) -> None:
    page = open_page()

    expect(page.get_by_text("No tasks yet")).to_be_visible()
    page.locator(".empty a").click()
    expect(page.get_by_role("heading", name="Upload a prefix")).to_be_visible()


def test_tasks_are_listed_with_residency_split_and_live_rates(
    open_page: Open, http: httpx.Client, engine: FakeEngine
) -> None:
    push(http, "alpha", 1, 2)
    push(http, "beta", 3)
    http.put("/tasks/alpha/traffic", json={"weights": {"1": 75, "2": 25}}).raise_for_status()
    engine.stats.prefixes_on_device = [http.get("/tasks/beta").json()["digest"]]
    page = open_page()
    rows = page.locator("tbody tr")

    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text("v1 75 % · v2 25 %")
    expect(rows.nth(0)).to_contain_text("on disk")
    expect(rows.nth(1)).to_contain_text("on the device")
    expect(rows.nth(1).locator(".requests")).to_have_text("0")
    for _ in range(10):
        http.post("/generate?task=beta", json={"prompt": "hi", "max_tokens": 7}).raise_for_status()
    expect(rows.nth(1).locator(".requests")).to_have_text(re.compile(r"^[1-9]|0\.[1-9]"))
    expect(rows.nth(1).locator(".said")).to_have_text(re.compile(r"^[1-9]"))
    assert rows.nth(0).locator(".requests").inner_text() == "0"


def test_a_version_is_activated_and_rolled_back(open_page: Open, http: httpx.Client) -> None:
    push(http, "alpha", 1, 2)
    page = open_page("/task/alpha")

    page.get_by_role("button", name="Activate v2").click()
    expect(
        page.locator("article", has_text="active").get_by_role("button", name="v2")
    ).to_be_visible()
    assert http.get("/tasks/alpha").json()["active_version"] == 2
    expect(page.locator("#toast")).to_have_text("v2 is now live.")

    page.get_by_role("button", name="Roll back").click()
    expect(page.get_by_text("rolled back to v1")).to_be_visible()
    assert http.get("/tasks/alpha").json()["active_version"] == 1


def test_the_slider_gives_a_canary_its_part_and_takes_it_back(
    open_page: Open, http: httpx.Client
) -> None:
    push(http, "alpha", 1, 2)
    page = open_page("/task/alpha")
    slider = page.get_by_label("Share of the traffic")

    slider.fill("30")
    expect(page.locator(".canary output")).to_have_text("30 % to v2, 70 % to v1")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator(".splitting")).to_have_text("v1 70 % · v2 30 %")
    assert http.get("/tasks/alpha/traffic").json()["weights"] == {"1": 70, "2": 30}
    expect(slider).to_have_value("30")

    page.get_by_role("button", name="All to v1").click()
    expect(page.locator(".splitting")).to_have_text("v1 100 %")
    assert http.get("/tasks/alpha/traffic").json()["weights"] is None


def test_a_change_of_somebody_else_is_not_overwritten(open_page: Open, http: httpx.Client) -> None:
    push(http, "alpha", 1, 2)
    page = open_page("/task/alpha")
    button = page.get_by_role("button", name="Activate v2")
    button.wait_for()
    page.route("**/tasks/alpha", lambda route: route.abort())  # it does not see the change
    http.patch("/tasks/alpha", json={"description": "new"}).raise_for_status()

    button.click()

    expect(page.locator(".problem", has_text="Precondition failed")).to_be_visible()
    assert http.get("/tasks/alpha").json()["active_version"] == 1


def test_a_prefix_is_warmed_pinned_verified_evicted_and_fetched(
    open_page: Open, http: httpx.Client, engine: FakeEngine
) -> None:
    push(http, "alpha", 1)
    digest = Digest(http.get("/tasks/alpha").json()["digest"])
    engine.loaded.clear()
    page = open_page("/task/alpha")
    page.get_by_role("button", name="v1", exact=True).click()

    page.get_by_role("button", name="warm v1").click()
    wait_until(lambda: engine.loaded == [digest])
    page.get_by_role("button", name="pin v1", exact=True).click()
    expect(page.locator("article")).to_contain_text("pinned")
    page.get_by_role("button", name="evict v1").click()
    expect(page.locator(".problem")).to_contain_text("Prefix in use")
    page.get_by_role("button", name="unpin v1").click()
    page.get_by_role("button", name="pin v1", exact=True).wait_for()
    page.get_by_role("button", name="evict v1").click()
    expect(page.locator("#toast")).to_have_text("v1 was evicted.")
    assert engine.unloaded == [digest]

    page.get_by_role("button", name="Verify again").click()
    expect(page.locator("#toast")).to_have_text("v1 passed every check.")
    engine.effect = UnusablePrefix("the logits are not finite")
    page.get_by_role("button", name="Verify again").click()
    expect(page.locator("#toast")).to_have_text("v1 failed a check.")
    engine.stats.prefixes_on_device = [str(digest)]
    expect(page.locator("article")).to_contain_text("on the device")  # drawn anew
    expect(page.locator("article")).to_contain_text("the logits are not finite")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download", exact=True).click()
    assert download.value.suggested_filename == "alpha-1.tar"
    files = tar.read_files(
        Path(download.value.path()).read_bytes(), frozenset({"prefix.safetensors", "foreword.json"})
    )
    assert files["prefix.safetensors"] == artifact_bytes(1)
    assert json.loads(bytes(files["foreword.json"]))["chat"] is False


def test_a_delete_needs_confirmation(open_page: Open, http: httpx.Client) -> None:
    push(http, "alpha", 1, 2)
    page = open_page("/task/alpha")

    page.get_by_role("button", name="v2", exact=True).click()
    page.get_by_role("button", name="Delete v2").click()
    page.get_by_role("button", name="Delete the version").click()
    expect(page.locator("article")).to_have_count(1)
    page.get_by_role("button", name="Delete task").click()
    page.get_by_role("button", name="Cancel").click()
    assert http.get("/tasks/alpha").status_code == 200
    page.get_by_role("button", name="Delete task").click()
    page.get_by_role("button", name="Delete the task").click()
    expect(page.get_by_text("No tasks yet")).to_be_visible()
    assert http.get("/tasks/alpha").status_code == 404


def test_a_task_that_others_deleted_is_reported(open_page: Open, http: httpx.Client) -> None:
    push(http, "alpha", 1)
    page = open_page("/task/alpha")
    page.get_by_role("button", name="v1", exact=True).wait_for()

    http.delete("/tasks/alpha").raise_for_status()

    expect(page.locator(".problem")).to_contain_text("there is no task alpha")
    expect(page.locator(".card:visible")).to_have_count(0)


def test_an_unknown_task_has_no_empty_cards(open_page: Open) -> None:
    page = open_page("/task/nothing")

    expect(page.locator(".problem")).to_contain_text("there is no task nothing")
    expect(page.locator(".card:visible")).to_have_count(0)


def test_no_canary_is_preselected_and_another_split_is_not_passed_over(
    open_page: Open, http: httpx.Client
) -> None:
    push(http, "alpha", 1, 2, 3)
    page = open_page("/task/alpha")
    expect(page.get_by_label("Share of the traffic")).to_have_value("0")

    weights = {"1": 1, "2": 1, "3": 1}
    http.put("/tasks/alpha/traffic", json={"weights": weights}).raise_for_status()

    expect(page.get_by_text("Apply replaces the split")).to_be_visible()


def test_a_warning_of_the_server_is_passed_on(
    open_page: Open, http: httpx.Client, engine: FakeEngine
) -> None:
    push(http, "alpha", 1, 2)
    engine.load_error = PrefixUnavailable("no room on the device")
    page = open_page("/task/alpha")

    page.get_by_role("button", name="Activate v2").click()

    expect(page.locator("#toast")).to_contain_text("no room on the device")


def test_what_others_write_is_text(open_page: Open, http: httpx.Client) -> None:
    push(http, "alpha", 1)
    profile = {"description": HOSTILE, "template": "{prompt}" + HOSTILE.replace("{{7*7}}", "")}
    http.put("/tasks/alpha", json=profile).raise_for_status()
    page = open_page()

    expect(page.locator(".description")).to_have_text(HOSTILE)
    page.get_by_role("link", name="alpha").click()
    expect(page.locator(".heading .description")).to_have_text(HOSTILE)
    expect(page.locator("dd pre")).to_contain_text("<script>")
    expect(page).to_have_title("alpha · Foreword")
    assert page.locator("main img, main script").count() == 0


def test_the_history_shows_the_latest_changes(open_page: Open, http: httpx.Client) -> None:
    push(http, "alpha", 1, 2)
    for number in range(14):
        http.post("/tasks/alpha/activate", json={"version": number % 2 + 1}).raise_for_status()
    http.post("/tasks/alpha/rollback").raise_for_status()
    page = open_page("/task/alpha")

    expect(page.locator(".history li")).to_have_count(12)
    expect(page.locator(".history li").first).to_contain_text("rolled back to v1")
