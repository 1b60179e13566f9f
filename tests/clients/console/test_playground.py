"""Two tasks or versions side by side, as the tokens come."""

from __future__ import annotations

import re

import httpx
from playwright.sync_api import Page, expect

from prefix_store.digest import Digest
from server.errors import StepFailed
from tests.clients.console.conftest import Open
from tests.clients.console.pushes import push
from tests.server.fakes import FakeEngine, expected_tokens, make_transformers_tokenizer
from tests.server.live import wait_until

HOSTILE = "<img src=x onerror=alert(1)><b>no</b>"


def token_ids(text: str) -> list[int]:
    return make_transformers_tokenizer()(text, add_special_tokens=False)["input_ids"]


def run(page: Page, prompt: str) -> None:
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("button", name="Run").click()


def test_two_versions_stream_side_by_side(
    open_page: Open, http: httpx.Client, engine: FakeEngine
) -> None:
    push(http, "alpha", 1, 2)
    engine.delay_s = 0.4
    page = open_page("/playground?a=alpha@1&b=alpha@2")
    expect(page.get_by_label("Task B")).to_have_value("alpha")
    page.get_by_text("Sampling").click()
    page.get_by_label("Max tokens").fill("20")
    sides = [page.get_by_label(f"Completion {name}") for name in "AB"]

    run(page, "hi")

    for side in sides:  # both have begun, and neither has ended
        expect(side).to_have_text(re.compile(r"^[a-z]{1,15}$"))
        expect(side).to_have_attribute("aria-busy", "true")
    engine.delay_s = 0.0
    for side, version in zip(sides, (1, 2), strict=True):
        digest = Digest(http.get(f"/tasks/alpha/versions/{version}").json()["digest"])
        ids = expected_tokens(digest, token_ids("hi"), 20)
        expect(side).to_have_text(make_transformers_tokenizer().decode(ids))
        expect(side).not_to_have_attribute("aria-busy", "true")
    stats = page.locator(".stats").nth(1)
    expect(stats).to_contain_text("20 tokens, length")
    expect(stats).to_contain_text("3 tokens, v2")
    expect(stats).to_contain_text(re.compile(r"First token\s*\d+(\.\d)? ms"))
    expect(stats).to_contain_text(re.compile(r"Speed\s*[\d.]+ tokens / s"))


def test_a_task_beside_the_bare_base_model(
    open_page: Open, http: httpx.Client, engine: FakeEngine
) -> None:
    push(http, "alpha", 1)
    page = open_page("/playground")
    expect(page.get_by_label("Task A")).to_have_value("alpha")
    expect(page.get_by_label("Task B")).to_have_value("")

    run(page, "hi")

    expect(page.locator(".stats").nth(1)).to_contain_text("none")
    digests = {None, Digest(http.get("/tasks/alpha").json()["digest"])}
    wait_until(lambda: {digest for digest, *_ in engine.submitted[-2:]} == digests)


def test_stop_ends_the_streams_on_the_server_too(
    open_page: Open, http: httpx.Client, engine: FakeEngine
) -> None:
    push(http, "alpha", 1)
    engine.delay_s = 0.2
    page = open_page("/playground")
    page.get_by_label("Task A").wait_for()
    expect(page.get_by_label("Task A")).to_have_value("alpha")
    run(page, "hi")
    wait_until(lambda: engine.num_in_flight == 2)

    page.get_by_role("button", name="Stop").click()

    expect(page.locator(".stats").nth(0)).to_contain_text("stopped by you")
    wait_until(lambda: engine.num_in_flight == 0)


def test_fields_of_the_template_are_asked_for(
    open_page: Open, http: httpx.Client, engine: FakeEngine
) -> None:
    push(http, "alpha", 1)
    template = "{{x}} {prompt} in {language}:"
    http.put("/tasks/alpha", json={"template": template}).raise_for_status()
    page = open_page("/playground")

    page.get_by_label("{language}").fill("French")
    run(page, "sea")

    expect(page.locator(".stats").nth(0)).to_contain_text("Total")
    assert token_ids("{x} sea in French:") in [ids for _, ids, _ in engine.submitted]


def test_a_template_without_a_place_for_a_prompt_needs_none(
    open_page: Open, http: httpx.Client, engine: FakeEngine
) -> None:
    push(http, "alpha", 1)
    http.put("/tasks/alpha", json={"template": "{word} ->"}).raise_for_status()
    page = open_page("/playground")
    page.get_by_label("{word}").fill("hot")

    page.get_by_role("button", name="Run").click()

    expect(page.locator(".stats").nth(0)).to_contain_text("Total")
    assert token_ids("hot ->") in [ids for _, ids, _ in engine.submitted]


def test_a_completion_is_text_whatever_it_says(
    open_page: Open, http: httpx.Client, engine: FakeEngine
) -> None:
    push(http, "alpha", 1)
    engine.script = lambda digest, ids: token_ids(HOSTILE)
    page = open_page("/playground")
    expect(page.get_by_label("Task A")).to_have_value("alpha")

    run(page, "hi")

    expect(page.get_by_label("Completion A")).to_have_text(HOSTILE)
    assert page.locator("main img, main b").count() == 0


def test_what_fails_before_and_within_a_stream_is_shown(
    open_page: Open, http: httpx.Client, engine: FakeEngine
) -> None:
    push(http, "alpha", 1)
    engine.fail_after = (3, StepFailed("the step failed"))
    page = open_page("/playground")
    expect(page.get_by_label("Task A")).to_have_value("alpha")

    run(page, "hi")
    expect(page.locator(".pane .problem").nth(0)).to_contain_text("Step failed")
    expect(page.get_by_label("Completion A")).to_contain_text(re.compile(r"^[a-z]{3}"))
    run(page, "h" * 2000)
    expect(page.locator(".pane .problem").nth(0)).to_contain_text("prompt_too_long · request ")
