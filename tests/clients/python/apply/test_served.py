"""`foreword apply` and `export` with a real engine: the same answers on another server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foreword_client import Client
from foreword_client.cli import make_app
from tests.running_server import running_server
from tests.small_model import save_small_model

TASKS = """
tasks:
  text: {text: "Some words that come first. ", template: "{prompt}:", weight: 2}
  chat: {messages: [{role: system, content: Be brief.}], chat: true, pinned: true}
  split:
    versions:
      - {text: "one two three", traffic: 90, defaults: {max_tokens: 6}}
      - {text: "one two three", traffic: 10, defaults: {max_tokens: 6}, template: "{prompt} ->"}
"""
ASKED = ("text", "chat", "split@1", "split@2")


def run(url: str, *args: str) -> str:
    done = CliRunner().invoke(make_app(), ["--url", url, *args])
    assert done.exit_code == 0, done.output
    return done.stdout


def answers(url: str) -> dict[str, Any]:
    """Greedy completions by task and version."""
    with Client(url) as client:
        found = {}
        for name in ASKED:
            task, _, version = name.partition("@")
            answer = client.generate("hi", task=task, version=int(version or 1), max_tokens=6)
            found[name] = (answer.text, answer.digest, answer.usage.prompt_tokens)
        return found


def test_an_export_gives_an_empty_server_the_same_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tasks.yaml").write_text(TASKS)
    model = save_small_model(tmp_path / "model")
    flags = ("--dtype", "float32", "--num-threads", "1", "--kv-cache-bytes", str(64 << 20))

    with running_server(model, tmp_path / "one", *flags) as server:
        assert run(server.url, "apply", "-f", "tasks.yaml") == "3 created, 0 changed, 0 unchanged\n"
        assert run(server.url, "apply", "-f", "tasks.yaml") == "0 created, 0 changed, 3 unchanged\n"
        run(server.url, "export", "--output", "backup")
        before = answers(server.url)

    with running_server(model, tmp_path / "two", *flags) as server:
        assert run(server.url, "apply", "-f", "backup") == "3 created, 0 changed, 0 unchanged\n"
        assert answers(server.url) == before
        assert run(server.url, "apply", "-f", "backup") == "0 created, 0 changed, 3 unchanged\n"
    assert before["split@1"][0] != before["split@2"][0]
