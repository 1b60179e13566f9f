"""The console in front of the real model."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.clients.console.conftest import watched
from tests.running_server import RunningServer

pytestmark = pytest.mark.smollm2


@pytest.fixture(scope="module")
def server(demo_server: RunningServer) -> RunningServer:
    return demo_server


def test_a_text_becomes_a_task_that_answers_beside_the_base_model(
    browser: Browser, server: RunningServer
) -> None:
    with watched(browser, server.url) as page:
        page.goto("#/upload")
        page.get_by_label("Task").fill("antonyms")
        page.get_by_role("radio", name="Text").check()
        page.locator("textarea:visible").fill("hot -> cold\nbig -> small\nday -> night\n")
        page.get_by_role("button", name="Upload", exact=True).click()
        expect(page.get_by_role("heading", name="v1 of antonyms is active")).to_be_visible(
            timeout=30_000
        )
        expect(page.locator(".checks")).to_contain_text("30 layers of")

        page.get_by_role("link", name="Try it").click()
        page.get_by_text("Sampling").click()
        page.get_by_label("Max tokens").fill("8")
        page.get_by_label("Stop sequences").fill("\\n")
        page.get_by_label("Prompt").fill("fast ->")
        page.get_by_role("button", name="Run").click()
        expect(page.locator(".stats").nth(1)).to_contain_text("Total", timeout=30_000)
        body = {"prompt": "fast ->", "max_tokens": 8, "stop": "\n"}
        answer = httpx.post(f"{server.url}/generate?task=antonyms", json=body, timeout=30).json()
        expect(page.get_by_label("Completion A")).to_have_text(answer["text"])
        assert "slow" in answer["text"]
