"""How a version is asked: set with an upload, changed for a task, shown for every version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from prefix_store.formats import tar
from tests.clients.console.conftest import Open
from tests.clients.console.pushes import artifact_bytes, push
from tests.clients.console.test_upload import drop, peft_folder, written

TEMPLATE = "Q: {prompt}\nA:"
GOLDEN = {"prompt": "a", "expect": "b"}
EVALUATION = {"num_examples": 3, "scores": {"exact_match": 0.5}}
OWN = {"template": "{prompt}?", "defaults": {"stop": ["\\"], "top_k": 3}}


def definition(http: httpx.Client, version: int = 1) -> dict[str, Any]:
    """The definition of a version of alpha, without what it leaves out."""
    found = http.get(f"/tasks/alpha/versions/{version}").json()["definition"]
    defaults = {name: value for name, value in found["defaults"].items() if value is not None}
    return {"template": found["template"], "chat": found["chat"], "defaults": defaults}


def choose(page: Page, kind: str, tmp_path: Path) -> None:
    """Choose a source, with no definition of its own."""
    if kind == "text":
        page.get_by_role("radio", name="Text").check()
        page.locator("textarea:visible").fill("go -> went")
    elif kind == "file":
        drop(page, written(tmp_path / "x.safetensors", artifact_bytes(1)))
    else:
        drop(page, peft_folder(tmp_path / "x"))
    if kind != "text":
        expect(page.locator(".chosen")).not_to_be_empty()


@pytest.mark.parametrize("kind", ["text", "file", "folder"])
def test_what_is_set_is_part_of_the_upload(
    open_page: Open, http: httpx.Client, tmp_path: Path, kind: str
) -> None:
    page = open_page("/upload")
    page.get_by_label("Task").fill("alpha")
    choose(page, kind, tmp_path)

    page.get_by_label("Set how it is asked").check()
    page.get_by_label("Template", exact=True).fill(TEMPLATE)
    page.get_by_label("Stop sequences").fill("\\n\n.")
    page.get_by_label("Max tokens").fill("5")
    page.get_by_role("button", name="Upload", exact=True).click()

    expect(page.get_by_role("heading", name="v1 of alpha is active")).to_be_visible()
    expect(page.locator(".outcome-place pre")).to_have_text(TEMPLATE)
    assert definition(http) == {
        "template": TEMPLATE,
        "chat": False,
        "defaults": {"max_tokens": 5, "stop": ["\n", "."]},
    }


@pytest.mark.parametrize("kind", ["peft folder", "folder", "tar"])
def test_what_an_upload_says_itself_is_kept_but_for_what_is_changed(
    open_page: Open, http: httpx.Client, tmp_path: Path, kind: str
) -> None:
    source = peft_folder(tmp_path / "x") if kind == "peft folder" else tmp_path / "x"
    source.mkdir(exist_ok=True)
    for name, content in (
        ("foreword.json", OWN), ("golden.jsonl", GOLDEN), ("evaluation.json", EVALUATION),
    ):  # fmt: skip
        (source / name).write_text(json.dumps(content))
    if kind != "peft folder":
        (source / "prefix.safetensors").write_bytes(artifact_bytes(1))
    if kind == "tar":
        files = {f"./{path.name}": path.read_bytes() for path in source.iterdir()}
        source = written(tmp_path / "x.tar", tar.write(files))
    page = open_page("/upload")
    page.get_by_label("Task").fill("alpha")
    page.get_by_label("Activate it right away").uncheck()
    drop(page, source)
    page.get_by_label("Set how it is asked").check()
    expect(page.get_by_label("Template", exact=True)).to_have_value("{prompt}?")
    expect(page.get_by_label("Stop sequences")).to_have_value("\\\\")

    page.get_by_label("Template", exact=True).fill(TEMPLATE)
    page.get_by_role("button", name="Upload", exact=True).click()

    expect(page.get_by_role("heading", name="v1 of alpha is stored")).to_be_visible()
    found = http.get("/tasks/alpha/versions/1").json()
    assert definition(http) == OWN | {"template": TEMPLATE, "chat": False}
    assert (found["golden"], found["evaluation"]) == ([GOLDEN], EVALUATION)


def test_a_new_version_is_asked_like_the_active_one_unless_that_is_changed(
    open_page: Open, http: httpx.Client
) -> None:
    json_body = {"text": "go -> went", "definition": {"template": TEMPLATE}}
    http.put("/tasks/alpha/prefix", json=json_body).raise_for_status()
    page = open_page("/upload?task=alpha")
    page.get_by_role("radio", name="Text").check()
    page.locator("textarea:visible").fill("see -> saw")

    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_role("heading", name="v2 of alpha is stored")).to_be_visible()
    page.get_by_label("Set how it is asked").check()
    expect(page.get_by_label("Template", exact=True)).to_have_value(TEMPLATE)
    page.get_by_label("A prompt is a user message").check()
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_role("heading", name="v3 of alpha is stored")).to_be_visible()

    assert definition(http, 2) == definition(http, 1)
    assert definition(http, 3) == definition(http, 1) | {"chat": True}


def test_a_changed_template_of_a_task_is_a_new_version_that_is_shown_as_one(
    open_page: Open, http: httpx.Client
) -> None:
    push(http, "alpha", 1)
    page = open_page("/task/alpha")

    page.get_by_text("Change how it is asked").click()
    expect(page.locator("[aria-label=Prompts] details")).to_contain_text("with the prefix of v1")
    page.get_by_label("Template", exact=True).fill(TEMPLATE)
    page.get_by_role("button", name="Save").click()

    expect(page.locator("#toast")).to_contain_text("v2 is now live: the prefix of v1")
    expect(page.locator("article")).to_have_count(2)
    second, first = page.locator("article").all()
    expect(second).to_contain_text("other template")
    expect(first).not_to_contain_text("other")
    page.get_by_role("button", name="v2", exact=True).click()
    expect(second.locator("pre")).to_have_text(TEMPLATE)
    expect(second).to_contain_text("template since v1")
    assert definition(http, 2)["template"] == TEMPLATE
    page.get_by_role("button", name="Roll back").click()
    expect(page.get_by_text("rolled back to v1")).to_be_visible()
    expect(page.locator("[aria-label=Prompts] pre")).to_have_count(0)
