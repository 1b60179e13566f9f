"""The traffic of a task: its versions side by side, and the rule by which a split ends."""

from __future__ import annotations

import json

import httpx
from playwright.sync_api import expect

from server.errors import StepFailed
from tests.clients.console.conftest import Open
from tests.clients.console.pushes import push
from tests.server.api.uploads import TAR, peft_tar
from tests.server.fakes import FakeEngine


def ask(http: httpx.Client, version: int) -> None:
    http.post(f"/generate?task=alpha&version={version}", json={"prompt": "a", "max_tokens": 3})


def test_two_versions_are_shown_side_by_side(
    open_page: Open, http: httpx.Client, engine: FakeEngine
) -> None:
    push(http, "alpha", 1)
    measured = {"num_examples": 40, "scores": {"exact_match": 0.75}}
    body = peft_tar(beside={"evaluation.json": json.dumps(measured).encode()})
    http.post("/tasks/alpha/versions", content=body, headers=TAR).raise_for_status()
    http.put("/tasks/alpha/traffic", json={"weights": {"1": 9, "2": 1}}).raise_for_status()
    for version in (1, 1, 1, 2):
        ask(http, version)
    engine.fail_after = (1, StepFailed("no"))
    ask(http, 2)
    page = open_page("/task/alpha")
    rows = page.locator(".compared tbody tr")

    expect(rows).to_have_count(2)
    expect(rows.nth(0).locator("th")).to_have_text("v1, active")
    expect(rows.nth(0).locator("td")).to_contain_text(
        ["3", "0", "0", "ms", "ms", "ms", "ms", "\N{EN DASH}"]
    )
    expect(rows.nth(1).locator("td").nth(1)).to_have_text("1 (50 %)")
    expect(rows.nth(1)).to_contain_text("exact_match 0.75")
    engine.fail_after = None
    ask(http, 2)
    expect(rows.nth(1).locator("td").nth(1)).to_have_text("1 (33.3 %)")  # it is kept up to date


def test_a_rule_is_set_kept_and_removed(open_page: Open, http: httpx.Client) -> None:
    push(http, "alpha", 1, 2)
    page = open_page("/task/alpha")
    apply = page.get_by_role("button", name="Apply")
    errors, total = (
        page.get_by_label("Roll back if errors"),
        page.get_by_label("or total p95 exceeds"),
    )

    def rule() -> object:
        return http.get("/tasks/alpha/traffic").json()["rollback_if"]

    expect(apply).to_be_disabled()
    page.get_by_label("Share of the traffic").fill("10")
    errors.fill("7")
    total.fill("2500")
    apply.click()
    expect(page.get_by_text("if another version has errors above 7 %, or a p95")).to_be_visible()
    found = http.get("/tasks/alpha/traffic").json()["rollback_if"]
    assert (found["error_rate_above"], found["total_p95_ms_above"]) == (0.07, 2500)

    expect(errors).to_have_value("7")
    page.get_by_label("Share of the traffic").fill("40")
    apply.click()
    expect(page.locator(".splitting")).to_have_text("v1 60 % · v2 40 %")
    assert rule() == found

    errors.fill("")
    total.fill("")
    apply.click()
    expect(page.get_by_text("if another version has errors")).to_have_count(0)
    assert rule() is None


def test_conditions_that_the_form_does_not_show_stay(open_page: Open, http: httpx.Client) -> None:
    push(http, "alpha", 1, 2)
    rule = {"first_token_p95_ms_above": 800, "min_requests": 7}
    asked = {"weights": {"1": 1, "2": 1}, "rollback_if": rule}
    http.put("/tasks/alpha/traffic", json=asked).raise_for_status()
    page = open_page("/task/alpha")

    page.get_by_label("Share of the traffic").fill("20")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator(".splitting")).to_have_text("v1 80 % · v2 20 %")
    found = http.get("/tasks/alpha/traffic").json()["rollback_if"]
    assert (found["first_token_p95_ms_above"], found["min_requests"]) == (800, 7)
