"""Chats, up to four sides, sampling, the form of an answer, and requests to copy."""

from __future__ import annotations

import json
import os
import subprocess

import httpx
from playwright.sync_api import Page, expect

from tests.clients.console.conftest import Open
from tests.clients.console.pushes import push
from tests.clients.console.test_playground import run, token_ids
from tests.server.fakes import FakeEngine


def chatty(http: httpx.Client) -> None:
    """Push a version of alpha that answers chats."""
    push(http, "alpha", 1)
    http.patch("/tasks/alpha", json={"chat": True}).raise_for_status()


def bodies(page: Page) -> list[dict[str, object]]:
    """Collect the bodies of the page's requests for completions."""
    sent: list[dict[str, object]] = []
    page.on("request", lambda r: sent.append(r.post_data_json) if "/generate" in r.url else None)
    return sent


def test_a_chat_goes_on_and_begins_anew(
    open_page: Open, http: httpx.Client, engine: FakeEngine
) -> None:
    chatty(http)
    engine.script = lambda digest, ids: token_ids("aye")
    page = open_page("/playground?a=alpha")
    page.get_by_role("button", name="Remove side B").click()
    page.get_by_role("radio", name="Chat").check()
    sent = bodies(page)
    turns = page.get_by_label("Completion A").locator(".turn p")

    for number, message in enumerate(("one", "two")):
        page.get_by_label("Message").fill(message)
        page.keyboard.press("Control+Enter")
        expect(turns).to_have_count(2 * number + 2)
        expect(turns.last).to_have_text("aye")
        expect(page.get_by_role("button", name="Run")).to_be_enabled()

    roles = [(one["role"], one["content"]) for one in sent[1]["messages"]]
    assert roles == [("user", "one"), ("assistant", "aye"), ("user", "two")]
    expect(page.get_by_label("Message")).to_have_value("")
    page.get_by_role("button", name="New chat").click()
    expect(turns).to_have_count(0)
    page.get_by_label("Message").fill("three")
    page.keyboard.press("Control+Enter")
    expect(turns).to_have_count(2)
    assert len(sent[2]["messages"]) == 1


def test_one_to_four_sides(open_page: Open, http: httpx.Client) -> None:
    push(http, "alpha", 1, 2)
    push(http, "beta", 3)
    page = open_page("/playground?a=alpha@1&b=alpha@2&c=beta")
    expect(page.get_by_label("Task C")).to_have_value("beta")
    add = page.get_by_role("button", name="Add a side")

    add.click()
    expect(page.get_by_label("Task D")).to_have_value("")
    expect(add).to_be_disabled()
    run(page, "hi")
    for number in range(4):
        expect(page.locator(".stats").nth(number)).to_contain_text("Total")
    for name in "BCD":
        page.get_by_role("button", name=f"Remove side {name}").click()
    expect(page.locator(".pane")).to_have_count(1)
    expect(page.get_by_role("button", name="Remove side A")).to_be_hidden()


def test_what_is_set_is_sent_and_the_rest_is_left_out(open_page: Open, http: httpx.Client) -> None:
    push(http, "alpha", 1)
    page = open_page("/playground?a=alpha")
    page.get_by_role("button", name="Remove side B").click()
    page.get_by_text("Sampling").click()
    page.get_by_label("Top p").fill("0.9")
    page.get_by_label("Top k").fill("5")
    page.get_by_label("Repetition penalty").fill("1.2")
    page.get_by_text("Form of the answer").click()
    page.get_by_label("Answer").select_option("One of several texts")
    page.get_by_label("Form", exact=True).fill("yes\nno\n")
    sent = bodies(page)

    run(page, "hi")

    expect(page.locator(".stats").first).not_to_be_empty()
    asked = {"top_p": 0.9, "top_k": 5, "repetition_penalty": 1.2, "choice": ["yes", "no"]}
    assert sent[0] == {"prompt": "hi", "stream": True} | asked

    page.get_by_label("Answer").select_option("JSON of a schema")
    page.get_by_label("Form", exact=True).fill("{")
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".problem")).to_contain_text("The schema is not JSON")
    page.get_by_label("Form", exact=True).fill('{"type": "object"}')
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".problem")).to_have_count(0)
    form = {"name": "answer", "schema": {"type": "object"}}
    assert sent[1]["response_format"] == {"type": "json_schema", "json_schema": form}


def test_a_request_is_copied_as_a_command_that_runs(open_page: Open, http: httpx.Client) -> None:
    push(http, "alpha", 1)
    page = open_page("/playground?a=alpha@1", permissions=["clipboard-read", "clipboard-write"])
    expect(page.get_by_label("Task A")).to_have_value("alpha")
    page.get_by_label("Prompt").fill("it's $HOME")

    page.get_by_role("button", name="Copy as curl").first.click()

    expect(page.locator("#toast")).to_have_text("Copied.")
    command = page.evaluate("navigator.clipboard.readText()")
    environment = os.environ | {"NO_PROXY": "127.0.0.1"}
    ran = subprocess.run(
        ["sh", "-c", command], env=environment, capture_output=True, timeout=120, check=True
    )
    answer = json.loads(ran.stdout)
    assert (answer["task"], answer["version"]) == ("alpha", 1)
    assert answer["usage"]["prompt_tokens"] == len(token_ids("it's $HOME"))
