"""Finds the code blocks of a page, and runs each as a reader would, against a running server."""

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
    *("docs/integrations.md", "docs/tasks-as-code.md"),
    *(
        "clients/python/README.md",
        "clients/bench/README.md",
        "clients/tuner/README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
    ),
)
"""Every page with commands: all but the decisions and the change log."""
REASONS = {
    "another environment": "it has its own virtual environment; the page has its last result",
    "another server": "it is for another server",
    "installs": "it changes the environment that the tests run in",
    "minutes": "it measures, or tests, and takes minutes or hours",
    "needs a key": "the tests' server has no keys",
    "needs an engine for containers": "the tests have none",
    "starts it": "the tests have started the server that the other blocks use",
}
"""Reasons for not running a block, which names one after its language: `not-run="..."`."""
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
    """Run a block, and return its output. Raises `AssertionError` with the end of it on failure.

    The port is replaced by `port`, and the name of the model on the hub by the folder `model`.
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
    """Our commands first on the path, this server for clients, this folder for stores."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "FOREWORD_URL": f"http://127.0.0.1:{port}",
        "FOREWORD_STORE": str(folder / "store"),
        "NO_COLOR": "1",
        "HF_HUB_OFFLINE": "1",
    }
