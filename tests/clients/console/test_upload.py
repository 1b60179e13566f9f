"""Prefixes that are dropped, chosen or written, and the report on them."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.clients.console.conftest import Open
from tests.clients.console.pushes import artifact_bytes, push
from tests.server.fakes import INFO, FakeEngine


def drop(page: Page, *paths: Path) -> None:
    """Drop files or folders as if from the desktop."""
    page.get_by_role("heading", name="Upload a prefix").wait_for()
    client = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": 300, "y": 300, "data": data}
        client.send("Input.dispatchDragEvent", event)
    client.detach()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def peft_folder(path: Path) -> Path:
    """A prefix saved by PEFT that fits the fake engine's model, with a trainer's other files."""
    import torch
    from safetensors.torch import save_file

    width = 2 * INFO.num_layers * INFO.num_kv_heads * INFO.head_dim
    config = {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": 3,
        "num_layers": INFO.num_layers,
        "token_dim": INFO.hidden_size,
    }
    (path / "checkpoint-10").mkdir(parents=True)
    for folder in (path, path / "checkpoint-10"):
        save_file({"prompt_embeddings": torch.ones(3, width)}, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(config))
    (path / "README.md").write_text("card")
    (path / "training_args.bin").write_bytes(b"a pickle that stays at home")
    return path


def test_a_dropped_file_is_uploaded_and_its_report_shown(
    open_page: Open, http: httpx.Client, tmp_path: Path
) -> None:
    page = open_page("/upload")
    page.get_by_label("Task").fill("alpha")
    drop(page, written(tmp_path / "alpha.safetensors", artifact_bytes(1)))
    expect(page.locator(".chosen")).to_contain_text("alpha.safetensors")

    page.get_by_role("button", name="Upload", exact=True).click()

    heading = page.get_by_role("heading", name="v1 of alpha is active")
    expect(heading).to_be_focused()
    found = http.get("/tasks/alpha/versions/1").json()
    expect(page.locator(".outcome-place")).to_contain_text(found["digest"])
    rows = page.locator(".checks tr")
    expect(rows).to_have_count(len(found["verification"]))
    for row, check in zip(rows.all(), found["verification"], strict=True):
        assert check["detail"] in row.inner_text()
        assert "passed" in row.inner_text()


@pytest.mark.parametrize("how", ["dropped", "chosen"])
def test_a_peft_folder_becomes_a_tar_without_its_checkpoints(
    open_page: Open, http: httpx.Client, tmp_path: Path, how: str
) -> None:
    page = open_page("/upload")
    page.get_by_label("Task").fill("alpha")
    folder = peft_folder(tmp_path / "out")
    if how == "dropped":
        drop(page, folder)
    else:
        page.get_by_label("Folder", exact=True).set_input_files(folder)
    expect(page.locator(".chosen")).to_contain_text(
        "adapter_config.json, adapter_model.safetensors"
    )

    page.get_by_role("button", name="Upload", exact=True).click()

    expect(page.get_by_role("heading", name="v1 of alpha is active")).to_be_visible()
    assert http.get("/tasks/alpha/versions/1").json()["source_format"] == "peft-prefix-tuning"


def test_a_folder_without_weights_says_how_to_save_them(open_page: Open, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.bin"):
        (tmp_path / name).write_bytes(b"{}")
    page = open_page("/upload")

    page.get_by_label("Files").set_input_files(list(tmp_path.glob("adapter*")))

    expect(page.locator(".chosen")).to_contain_text("safe_serialization=True")


def test_a_file_that_would_be_left_out_is_named(open_page: Open, tmp_path: Path) -> None:
    names = ("adapter_model.safetensors", "evaluation.json", "README.md")
    page = open_page("/upload")

    page.get_by_label("Files").set_input_files([written(tmp_path / n, b"{}") for n in names])

    expect(page.locator(".chosen")).to_contain_text("no adapter_config.json")
    expect(page.locator(".chosen")).to_contain_text("evaluation.json cannot be sent")


@pytest.mark.parametrize(
    ("kind", "words"),
    [("Text", "go -> went\n"), ("Chat messages", '[{"role": "system", "content": "Be brief."}]')],
)
def test_text_and_messages_are_computed_by_the_server(
    open_page: Open, engine: FakeEngine, kind: str, words: str
) -> None:
    page = open_page("/upload")
    page.get_by_label("Task").fill("alpha")
    page.get_by_role("radio", name=kind).check()
    page.locator("textarea:visible").fill(words)

    page.get_by_role("button", name="Upload", exact=True).click()

    expect(page.get_by_role("heading", name="v1 of alpha is active")).to_be_visible()
    assert len(engine.compiled) == 1


def test_checking_only_changes_nothing(open_page: Open, http: httpx.Client, tmp_path: Path) -> None:
    push(http, "alpha", 1)
    page = open_page("/upload?task=alpha")
    drop(page, written(tmp_path / "two.safetensors", artifact_bytes(2)))

    page.get_by_role("button", name="Check only").click()

    expect(page.get_by_role("heading", name="It would become v2 of alpha")).to_be_visible()
    expect(page.locator(".outcome-place")).to_contain_text("fits: yes")
    assert len(http.get("/tasks/alpha/versions").json()["versions"]) == 1


def test_a_version_may_be_stored_first_of_a_new_task_too(
    open_page: Open, http: httpx.Client, tmp_path: Path
) -> None:
    page = open_page("/upload")
    page.get_by_label("Task").fill("alpha")
    page.get_by_label("Activate it right away").uncheck()
    drop(page, written(tmp_path / "one.safetensors", artifact_bytes(1)))

    page.get_by_role("button", name="Upload", exact=True).click()

    expect(page.get_by_role("heading", name="v1 of alpha is stored")).to_be_visible()
    assert http.get("/tasks/alpha").json()["active_version"] is None


def test_a_refusal_is_shown_as_the_server_put_it(
    open_page: Open, http: httpx.Client, tmp_path: Path
) -> None:
    page = open_page("/upload")
    page.get_by_label("Task").fill("alpha")
    drop(page, written(tmp_path / "bad.safetensors", artifact_bytes(1)[:-5]))

    page.get_by_role("button", name="Upload", exact=True).click()

    problem = page.locator(".problem")
    expect(problem).to_contain_text("Invalid artifact")
    expect(problem).to_contain_text("invalid_artifact · request ")
    assert http.get("/tasks/alpha").status_code == 404


def test_an_upload_whose_answer_was_lost_counts_once(open_page: Open, http: httpx.Client) -> None:
    page = open_page("/upload")
    page.get_by_label("Task").fill("alpha")
    page.get_by_role("radio", name="Text").check()
    page.locator("textarea:visible").fill("go -> went")

    def lose(route: Route) -> None:
        route.fetch()
        route.abort()

    page.route("**/tasks/alpha/prefix", lose)
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.locator(".problem")).to_contain_text("The connection was lost")
    page.unroute("**/tasks/alpha/prefix")
    page.get_by_role("button", name="Upload", exact=True).click()

    expect(page.get_by_role("heading", name="v1 of alpha is active")).to_be_visible()
    assert len(http.get("/tasks/alpha/versions").json()["versions"]) == 1


def test_a_large_upload_shows_its_progress_and_can_be_cancelled(
    open_page: Open, http: httpx.Client, tmp_path: Path
) -> None:
    page = open_page("/upload")
    page.get_by_label("Task").fill("alpha")
    drop(page, written(tmp_path / "large.safetensors", artifact_bytes(1, num_tokens=2000)))
    client = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 60_000}
    client.send("Network.emulateNetworkConditions", slow)

    page.get_by_role("button", name="Upload", exact=True).click()

    expect(page.locator("progress")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#toast")).to_have_text("The upload was cancelled.")
    expect(page.get_by_role("button", name="Upload", exact=True)).to_be_enabled()
    client.send("Network.emulateNetworkConditions", slow | {"uploadThroughput": -1})
    assert http.get("/tasks/alpha").status_code == 404
