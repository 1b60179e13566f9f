"""What belongs to a task: its settings, live rates, and code that uses it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.clients.console.conftest import Open
from tests.clients.console.pushes import push
from tests.server.fakes import FakeEngine

RISING = re.compile(r" (?!156\.0)\d+\.\d(?=L|$)")
"""A line that leaves the bottom of its chart."""


def snippet(page: Page, kind: str) -> str:
    page.get_by_role("radio", name=kind, exact=True).check()
    return page.locator(".snippet").inner_text()


def test_settings_change_in_place(open_page: Open, http: httpx.Client) -> None:
    push(http, "alpha", 1)
    page = open_page("/task/alpha")
    page.get_by_text("Change the settings").click()
    page.get_by_label("Description").fill("Sorts reviews")
    page.get_by_label("Max prompt tokens").fill("500")
    page.get_by_label("Weight").fill("2")
    page.get_by_label("Golden prompts").fill('{"prompt": "a", "expect": [1, 2]}\n')

    page.get_by_role("button", name="Save the settings").click()

    expect(page.locator(".heading .description")).to_have_text("Sorts reviews")
    expect(page.locator("[aria-label=Settings]")).to_contain_text("max_prompt_tokens 500")
    found = http.get("/tasks/alpha").json()
    assert (found["active_version"], found["num_versions"]) == (1, 1)
    profile = found["profile"]
    assert profile["golden"] == [{"prompt": "a", "expect": [1, 2]}]
    assert (profile["weight"], profile["limits"]["max_prompt_tokens"]) == (2, 500)

    page.get_by_text("Change the settings").click()
    page.get_by_label("Max prompt tokens").fill("")
    page.get_by_label("Golden prompts").fill("")
    page.get_by_role("button", name="Save the settings").click()
    expect(page.locator("[aria-label=Settings]")).not_to_contain_text("max_prompt_tokens")
    profile = http.get("/tasks/alpha").json()["profile"]
    assert (profile["golden"], profile["limits"]["max_prompt_tokens"]) == ([], None)


def test_golden_prompts_that_are_no_json_are_not_sent(open_page: Open, http: httpx.Client) -> None:
    push(http, "alpha", 1)
    page = open_page("/task/alpha")
    page.get_by_text("Change the settings").click()
    page.get_by_label("Golden prompts").fill('{"prompt": "a", "expect": "b"}\nrich -> poor')

    page.get_by_role("button", name="Save the settings").click()

    expect(page.locator(".problem")).to_contain_text("Line 2 of the golden prompts is not JSON")
    expect(page.get_by_label("Golden prompts")).to_have_value(
        '{"prompt": "a", "expect": "b"}\nrich -> poor'
    )


@pytest.mark.parametrize("kind", ["curl", "Python", "openai"])
def test_code_that_is_shown_runs(
    open_page: Open, http: httpx.Client, engine: FakeEngine, kind: str
) -> None:
    push(http, "alpha", 1)
    template = "{prompt} isn't {word}:"
    http.patch("/tasks/alpha", json={"template": template}).raise_for_status()
    page = open_page("/task/alpha")

    code = snippet(page, kind)

    command = ["sh", "-c", code] if kind == "curl" else [sys.executable, "-c", code]
    engine.submitted.clear()
    environment = os.environ | {"NO_PROXY": "127.0.0.1"}
    ran = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
    assert len(engine.submitted) == 1


def test_code_for_langchain_names_the_task_and_compiles(
    open_page: Open, http: httpx.Client
) -> None:
    push(http, "alpha", 1)
    page = open_page("/task/alpha")

    code = snippet(page, "LangChain")

    compile(code, "snippet", "exec")
    assert 'model="alpha"' in code
    assert f'base_url="{http.base_url}/v1"' in code.replace("/v1/v1", "/v1")


def test_rates_of_both_versions_are_drawn(open_page: Open, http: httpx.Client) -> None:
    push(http, "alpha", 1, 2)
    http.put("/tasks/alpha/traffic", json={"weights": {"1": 1, "2": 1}}).raise_for_status()
    page = open_page("/task/alpha")
    chart = page.locator("figure", has_text="Requests per second")
    expect(chart.locator("li").nth(1)).to_contain_text("v2")
    expect(chart.locator(".value").nth(1)).to_have_text("0")

    for _ in range(30):
        http.post("/generate?task=alpha&version=2", json={"prompt": "a", "max_tokens": 2})

    expect(chart.locator("path.line.series-1")).to_have_attribute("d", RISING)
