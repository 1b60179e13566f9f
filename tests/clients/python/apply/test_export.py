"""`foreword export`: a file that `apply` reads, and with the prefixes beside it another server that
answers alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword_client.apply import export, files
from tests.clients.python.apply.conftest import Run, Server, save_peft

TASKS = """
tasks:
  tuned:
    prefix: run
    description: "Sorts mail: yes"
    weight: 2
    limits: {max_tokens: 16}
    golden: []
    template: "Q: {prompt}\\nA:"
    defaults: {max_tokens: 7, stop: ["\\n"], choice: [yes, no]}
  brief: {messages: [{role: system, content: Be brief.}], chat: true, pinned: true}
  split:
    rollback_if: {error_rate_above: 0.5, min_requests: 9}
    versions:
      - {text: stable, traffic: 90, template: "A {prompt}"}
      - {text: new, traffic: 10, template: "B {prompt}"}
      - {text: next, traffic: 0, pinned: true}
  empty: {template: "{prompt}?", defaults: {seed: 3}}
"""


@pytest.fixture
def filled(apply: Run, server: Server) -> Server:
    """A server with tasks of all kinds; one has an old version too."""
    save_peft(Path("run"))
    apply("tasks: {brief: {text: old}}")
    apply(TASKS)
    body = {"prompt": "hi", "return_token_ids": True}
    [first, *_] = server.send("POST", "/generate?task=tuned", body)["token_ids"]
    apply(TASKS.replace("golden: []", f"golden: [{{prompt: hi, expect: [{first}]}}]"))
    return server


def test_an_export_is_what_the_server_has_already(filled: Server, run: Run) -> None:
    before, writes = filled.state(), list(filled.writes)

    for name, options in {"digests.yaml": (), "folder": ("--output", "folder")}.items():
        exported = run("export", *options)
        assert exported.exit_code == 0, exported.output
        if not options:
            Path(name).write_text(exported.stdout)
        done = run("apply", "-f", name)
        assert done.stdout == "0 created, 0 changed, 4 unchanged\n", done.stderr

    assert (filled.state(), filled.writes) == (before, writes)


def test_an_export_gives_another_server_the_same_answers(
    filled: Server, run: Run, start: Callable[[str], Server]
) -> None:
    run("export", "--output", "folder")
    other = start("other")

    done = run("--url", other.url, "apply", "-f", "folder")

    assert done.stdout == "4 created, 0 changed, 0 unchanged\n", done.stderr
    for task in ("tuned", "brief"):
        assert other.answer(task) == filled.answer(task)
    for number in (1, 2, 3):
        assert other.answer(f"split&version={number}") == filled.answer(f"split&version={number}")
    for task in ("tuned", "brief", "split", "empty"):
        assert other.get(f"/tasks/{task}")["profile"] == filled.get(f"/tasks/{task}")["profile"]
    for name in ("weights", "rollback_if"):
        theirs, ours = (one.get("/tasks/split/traffic")[name] for one in (other, filled))
        assert theirs == ours is not None
    assert (other.pinned("split"), other.pinned("brief")) == ([3], [1])
    again = run("--url", other.url, "apply", "-f", "folder")
    assert again.stdout == "0 created, 0 changed, 4 unchanged\n"


def test_an_export_of_some_tasks_does_not_replace_that_of_all(filled: Server, run: Run) -> None:
    assert run("export", "--output", "backup").exit_code == 0
    before = Path("backup/tasks.yaml").read_text()

    refused = run("export", "mood", "--output", "backup")

    assert (refused.exit_code, Path("backup/tasks.yaml").read_text()) == (2, before)
    assert "choose another folder" in refused.output


def test_an_export_is_readable(filled: Server, run: Run) -> None:
    shown = run("export", "tuned", "empty").stdout

    assert shown.startswith(
        "tasks:\n  tuned:\n    description: 'Sorts mail: yes'\n    weight: 2.0\n"
    )
    assert "    template: |-\n      Q: {prompt}\n      A:\n" in shown
    assert "brief" not in shown
    document = json.loads(run("export", "--json").stdout)
    assert list(document["tasks"]) == ["brief", "empty", "split", "tuned"]
    assert [v["traffic"] for v in document["tasks"]["split"]["versions"]] == [90, 10, 0]


def test_a_task_that_does_not_exist_is_refused(server: Server, run: Run) -> None:
    done = run("export", "nobody", "--output", "folder")

    assert done.exit_code == 1
    assert "[unknown_task]" in done.stderr
    assert not Path("folder").exists()


scalars = st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False))
values = st.recursive(
    scalars,
    lambda below: st.one_of(st.lists(below), st.dictionaries(st.text(), below)),
    max_leaves=8,
)


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.text(), values, min_size=1))
def test_whatever_is_exported_is_read_back_unchanged(document: dict[str, Any]) -> None:
    [read] = files._documents("x", export.to_yaml(document))

    assert read == document


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(alphabet="ab \n\t:#-'\"{}é")))
def test_texts_of_several_lines_are_read_back_unchanged(texts: list[str]) -> None:
    [read] = files._documents("x", export.to_yaml({"a": texts}))

    assert read == {"a": texts}
