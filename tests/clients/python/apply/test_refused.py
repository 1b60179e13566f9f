"""Tasks that `foreword apply` does not change: refused, or changed by somebody else meanwhile."""

from __future__ import annotations

import httpx
import pytest

from foreword_client.apply import execute
from foreword_client.apply.run import Applied
from prefix_store.registry.preconditions import UNCONDITIONAL
from tests.clients.python.apply.conftest import Run, Server


def test_a_split_that_its_rule_has_ended_is_not_started_again(apply: Run, server: Server) -> None:
    text = """
    tasks:
      x:
        rollback_if: {error_rate_above: 0.1}
        versions: [{text: stable, traffic: 9}, {text: new, traffic: 1}]
    """
    apply(text)
    registry = server.store.registry
    registry.end_split("x", "error_rate", "too many errors", UNCONDITIONAL)

    refused = apply(text, code=1)

    assert "its split was ended by its rule: too many errors; take" in refused.stderr
    assert server.get("/tasks/x/traffic")["weights"] is None
    better = apply(text.replace("text: new", "text: better"))
    assert better.stdout == "0 created, 1 changed, 0 unchanged\n"
    assert server.get("/tasks/x/traffic")["weights"] == {"1": 9, "3": 1}


def test_a_task_that_fails_stops_neither_the_others_nor_is_anything_deleted(
    apply: Run, server: Server
) -> None:
    apply("tasks: {old: {text: one}}")
    text = "tasks: {bad: {text: x, defaults: {regex: '('}}, good: {text: y}}"

    done = apply(text, "--prune", "--yes", "--json", code=1)

    applied = Applied.model_validate_json(done.stdout)
    assert (applied.created, applied.failed, applied.left_out) == (1, 1, 1)
    assert {task.task: (task.status, task.code) for task in applied.tasks} == {
        "bad": ("failed", "invalid_grammar"),
        "good": ("done", None),
        "old": ("left_out", None),
    }
    assert set(server.num_versions()) >= {"good", "old"}


def test_a_change_of_somebody_else_is_not_overwritten(
    apply: Run, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another client changes the task after it was read."""
    apply("tasks: {x: {text: one}, y: {text: one}}")
    executed = execute.execute

    async def late(*args: object, **options: object) -> object:
        httpx.patch(f"{server.url}/tasks/x", json={"weight": 5})
        return await executed(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(execute, "execute", late)
    done = apply("tasks: {x: {text: two}, y: {text: three}}", code=1)

    assert "error: [" in done.stderr, done.stderr
    assert "x: x has changed: it is at revision 3 [precondition_failed]" in done.stderr
    assert done.stdout == "0 created, 1 changed, 0 unchanged, 1 failed\n"
    assert server.get("/tasks/x")["profile"]["weight"] == 5
    assert server.num_versions() == {"x": 1, "y": 2}


def test_a_task_that_somebody_creates_meanwhile_is_not_overwritten(
    apply: Run, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    executed = execute.execute

    async def late(*args: object, **options: object) -> object:
        httpx.put(f"{server.url}/tasks/x", json={"description": "theirs"})
        return await executed(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(execute, "execute", late)
    done = apply("tasks: {x: {text: two, description: ours}}", code=1)

    assert "the task was created by somebody else meanwhile" in done.stderr
    assert server.get("/tasks/x")["profile"]["description"] == "theirs"


def test_a_mistake_anywhere_is_found_before_the_first_write(apply: Run, server: Server) -> None:
    for text in (
        "tasks: {a: {text: one}, b: {prefix: missing}}",
        "tasks: {a: {text: one}, b: {prefix: 'sha256:" + "0" * 64 + "'}}",
        "tasks: {a: {text: one}, b: {text: two, weight: 0}}",
        "tasks: {a: {text: one}, b: {pinned: true}}",
        "tasks: {a: {text: one}, b: {versions: [{text: x, traffic: 1}, {text: x, traffic: 1}]}}",
    ):
        assert "error: tasks.yaml: tasks.b" in apply(text, code=1).stderr
    assert server.num_versions() == {}
