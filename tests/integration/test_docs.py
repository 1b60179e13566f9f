"""Runs every code block of the documentation against a server that `make serve` started, with the
real SmolLM2."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import io
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.doc_blocks import DRAWN, PAGES, REASONS, ROOT, all_blocks, blocks_of, run
from tests.running_server import free_port

BLOCKS = all_blocks()
TO_RUN = [page for page in PAGES if any(b.page == page and b.language not in DRAWN for b in BLOCKS)]


@pytest.fixture(scope="module")
def port(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run the README's first command with its own port and store; yields the port."""
    port, folder = free_port(), tmp_path_factory.mktemp("docs")
    command = ["make", "--old-file=.venv/.installed", "serve"]
    command += [f"ARGS=--port {port} --store {folder / 'store'} --num-threads 1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            _wait_ready(process, port)
            yield port
        finally:
            process.terminate()
            process.wait(40)


def _wait_ready(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(3000):
        assert process.poll() is None, "the server ended"
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the server was not ready in time")


def prepare_folder(folder: Path, port: int) -> None:
    """Put there what the pages assume: folders that PEFT saved, a text, and what `make serve`
    installed."""
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "article.txt").write_text("The harbour was closed because of a storm.\n")
    url = f"http://127.0.0.1:{port}/tasks/pirate/versions/1/prefix?format=peft"
    with tarfile.open(fileobj=io.BytesIO(httpx.get(url).content)) as saved:
        for name in ("my_peft_folder", "runs/summarize"):
            saved.extractall(folder / name, filter="data")
        saved.extract("adapter_model.safetensors", folder, filter="data")


@pytest.mark.smollm2
@pytest.mark.parametrize("page", TO_RUN)
def test_every_block_of_a_page_runs(
    page: str, port: int, smollm2: Path, tmp_path: Path, note: Callable[[str], None]
) -> None:
    prepare_folder(tmp_path, port)
    printed, began_s, num_run, skipped = "", time.monotonic(), 0, []

    for block in (block for block in BLOCKS if block.page == page):
        if block.not_run is not None:
            skipped.append(f"line {block.line}, {block.not_run}")
        elif block.language in DRAWN:
            assert_printed(block.text, printed)
        else:
            printed = run(block, port, smollm2, tmp_path)
            num_run += 1
    seconds = time.monotonic() - began_s
    note(f"{page}: {num_run} blocks run in {seconds:.1f} s; not run: {skipped}")


def assert_printed(expected: str, printed: str) -> None:
    """Check the lines of a block without a language that begin with `>` against the output of the
    block before it; `...` matches anything. Blocks without such lines are drawings."""
    for line in (line[2:] for line in expected.splitlines() if line.startswith("> ")):
        pattern = ".*".join(re.escape(part) for part in line.split("..."))
        assert re.search(pattern, printed), f"not {line!r} but {printed[-500:]!r}"


def test_blocks_that_are_not_run_say_why() -> None:
    unexplained = [b.name for b in BLOCKS if b.not_run is not None and b.not_run not in REASONS]

    assert unexplained == []
    assert {block.not_run for block in BLOCKS} - {None} == set(REASONS)


def test_no_page_and_no_block_is_forgotten() -> None:
    pages = {str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")}
    fences = {page: len(re.findall(r"^ *```", (ROOT / page).read_text(), re.M)) for page in PAGES}

    assert pages <= set(PAGES)
    assert fences == {page: 2 * sum(b.page == page for b in BLOCKS) for page in PAGES}


def test_the_newcomers_path_takes_three_commands_at_most() -> None:
    """Count the quickstart's commands from `make serve` to a streamed answer of an own task."""
    page = (ROOT / "docs/quickstart.md").read_text("utf-8")
    section = page.partition("## A task of your own")[2].partition("\n## ")[0]
    shell = [block.text for block in blocks_of("", section) if block.language == "console"]

    commands = shell[0].replace("\\\n", "").strip().splitlines()
    assert len(commands) <= 3
    assert "push" in commands[-2]
    assert "--stream" in commands[-1]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("console", "curl localhost:8000/tasks/nobody"),
        ("console", "foreword generate --task nobody hi | cat"),
        ("python", "import foreword_client.nothing"),
        ("json", '{"a": 1,}'),
    ],
)
@pytest.mark.smollm2
def test_a_block_that_fails_is_noticed(
    language: str, text: str, port: int, smollm2: Path, tmp_path: Path
) -> None:
    [block] = blocks_of("page", f"```{language}\n{text}\n```\n")

    with pytest.raises((AssertionError, ValueError)):
        run(block, port, smollm2, tmp_path)


@pytest.mark.smollm2
@pytest.mark.parametrize("module", ["client", "async_client"])
def test_the_examples_in_the_clients_docstrings_are_true(
    module: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREWORD_URL", f"http://127.0.0.1:{port}")
    found = importlib.import_module(f"foreword_client.{module}")

    flags = doctest.IGNORE_EXCEPTION_DETAIL
    results = doctest.testmod(found, extraglobs={"asyncio": asyncio}, optionflags=flags)

    assert results.failed == 0
    assert results.attempted >= 2
