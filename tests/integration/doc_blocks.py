"""The code blocks of a page, and how each is run, as a reader would, against a running server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PAGES = (
    *("README.md", "docs/quickstart.md", "docs/http-api.md", "docs/prefix-format.md"),
    *("docs/coming-from.md", "docs/operations.md", "docs/benchmarks.md", "docs/promises.md"),
    *("docs/glossary.md", "docs/architecture.md", "docs/features.md", "docs/tuning.md"),
    *("docs/prefix-or-lora.md", "docs/console.md", "docs/faq.md", "docs/troubleshooting.md"),
    "docs/integrations.md",
    *(
        "clients/python/README.md",
        "clients/bench/README.md",
        "clients/tuner/README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
    ),
)
"""Every page for readers. Decisions and the change log have no commands."""
REASONS = {
    "another environment": "it has a virtual environment of its own; its last run stands there",
    "another server": "it is what is typed into that server, or to it, today",
    "installs": "it changes the environment that the tests run in",
    "minutes": "it measures, or tests, and takes minutes or hours",
    "needs a key": "the server of the tests is open",
    "needs an engine for containers": "there is none here",
    "starts it": "the server that the other blocks talk to is started so",
}
"""Why a block is not run: after its language it says `not-run="..."`, with one of these."""
SHELL = {"console", "sh"}
DRAWN = {"", "text"}

_FENCE = re.compile(r"^```(\w*)(?: not-run=\"([^\"]*)\")?\n(.*?)^```$", re.M | re.S)
_PREAMBLE = """set -euo pipefail
curl() { command curl --fail-with-body --silent --show-error "$@"; }
"""


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    not_run: str | None
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str, text: str) -> list[Block]:
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2], found[3])
        for found in _FENCE.finditer(text)
    ]


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page, (ROOT / page).read_text("utf-8"))]


def run(block: Block, port: int, model: Path, folder: Path) -> str:
    """What it writes. Raises `AssertionError` for a block that fails, with the end of its output.

    The port, and the name of the model on the hub, are replaced by what is here.
    """
    if block.language == "json":
        return json.dumps(json.loads(block.text))
    if block.language == "toml":
        return str(tomllib.loads(block.text))
    if block.language == "yaml":
        return str(yaml.safe_load(block.text))
    text = block.text.replace(":8000", f":{port}")
    text = text.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(model))
    is_python = block.language == "python"
    assert is_python or block.language in SHELL, f"{block.name}: what is {block.language!r}?"
    command = [sys.executable, "-c"] if is_python else ["bash", "-c"]
    done = subprocess.run(
        [*command, text if is_python else _PREAMBLE + text],
        cwd=folder,
        env=_environment(port, folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
        text=True,
    )
    assert done.returncode == 0, f"{block.name} ended with {done.returncode}: {done.stdout[-2000:]}"
    return done.stdout


def _environment(port: int, folder: Path) -> dict[str, str]:
    """Our commands first on the path; a server's store and a client's server are those here."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "FOREWORD_URL": f"http://127.0.0.1:{port}",
        "FOREWORD_STORE": str(folder / "store"),
        "NO_COLOR": "1",
        "HF_HUB_OFFLINE": "1",
    }
