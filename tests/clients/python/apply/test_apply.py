"""`foreword apply` against a server: what it changes, and that it changes nothing twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import pytest

from foreword_client.apply import execute
from foreword_client.apply.run import Applied
from tests.clients.python.apply.conftest import Run, Server, save_peft

FOLDER = """
tasks:
  tuned:
    prefix: run
    description: Sorts mail
    weight: 2
    limits: {max_tokens: 16}
    template: "Q: {prompt}\\nA:"
    defaults: {max_tokens: 7, temperature: 0, stop: ["\\n"]}
"""
TEXTS = """
tasks:
  french: {text: "Translate to French.\\n", template: "{prompt} ->", defaults: {max_tokens: 5}}
  brief: {messages: [{role: system, content: Be brief.}], chat: true}
"""


def test_a_folder_becomes_a_task_as_the_file_says(apply: Run, server: Server) -> None:
    save_peft(Path("run"), definition={"template": "ignored {prompt}", "chat": False})

    done = apply(FOLDER)

    assert done.stdout == "1 created, 0 changed, 0 unchanged\n"
    assert done.stderr == "[1/1] tuned: created\n"
    task = server.get("/tasks/tuned")
    profile = task["profile"]
    assert (task["active_version"], task["num_versions"]) == (1, 1)
    assert (profile["description"], profile["weight"]) == ("Sorts mail", 2)
    assert profile["limits"]["max_tokens"] == 16
    assert profile["template"] == "Q: {prompt}\nA:"
    assert profile["defaults"]["max_tokens"] == 7


@pytest.mark.parametrize("text", [FOLDER, TEXTS], ids=["folder", "texts"])
def test_the_second_time_nothing_is_written(apply: Run, server: Server, text: str) -> None:
    save_peft(Path("run"))
    apply(text)
    before, writes = server.state(), list(server.writes)

    done = apply(text)

    assert done.stdout.startswith("0 created, 0 changed, ")
    assert server.state() == before
    assert list(server.writes) == writes


def test_a_folder_that_was_pushed_is_known(run: Run, apply: Run, server: Server) -> None:
    save_peft(Path("run"), definition={"template": "Q: {prompt}", "defaults": {"max_tokens": 7}})
    assert run("push", "tuned", "run").exit_code == 0

    done = apply("tasks: {tuned: {prefix: run}}")

    assert done.stdout == "0 created, 0 changed, 1 unchanged\n"
    assert server.num_versions() == {"tuned": 1}


def test_a_new_definition_shares_the_prefix(apply: Run, server: Server) -> None:
    save_peft(Path("run"))
    apply(FOLDER)

    done = apply(FOLDER.replace("Q: {prompt}", "Question: {prompt}"))

    assert done.stdout == "0 created, 1 changed, 0 unchanged\n"
    first, second = server.get("/tasks/tuned/versions")["versions"]
    assert first["digest"] == second["digest"]
    assert server.get("/tasks/tuned")["profile"]["template"] == "Question: {prompt}\nA:"

    back = apply(FOLDER)

    assert back.stdout == "0 created, 1 changed, 0 unchanged\n"
    assert server.get("/tasks/tuned")["active_version"] == 1
    assert server.num_versions() == {"tuned": 2}


def test_new_weights_become_a_version_with_its_definition(apply: Run, server: Server) -> None:
    save_peft(Path("run"))
    apply(FOLDER)
    shutil.rmtree("run")
    save_peft(Path("run"), seed=1)

    apply(FOLDER)

    assert server.get("/tasks/tuned")["active_version"] == 2
    assert server.get("/tasks/tuned")["profile"]["template"] == "Q: {prompt}\nA:"


def test_what_the_file_leaves_out_has_its_default(apply: Run, server: Server) -> None:
    save_peft(Path("run"))
    apply(FOLDER)

    apply("tasks: {tuned: {prefix: run}}")

    profile = server.get("/tasks/tuned")["profile"]
    assert profile["description"] == ""
    assert profile["weight"] == 1
    assert profile["limits"]["max_tokens"] is None
    assert profile["template"] is None


def test_a_version_is_named_by_digest(apply: Run, server: Server) -> None:
    apply("tasks: {x: {text: one}}")
    apply("tasks: {x: {text: two}}")
    one, two = server.get("/tasks/x/versions")["versions"]

    apply(f"tasks: {{x: {{prefix: '{one['digest']}'}}}}")
    assert server.get("/tasks/x")["active_version"] == 1

    apply(f"tasks: {{x: {{prefix: '{two['source_digest']}'}}}}")
    assert server.get("/tasks/x")["active_version"] == 2
    assert server.num_versions() == {"x": 2}


def test_traffic_and_pins_are_as_the_file_says(apply: Run, server: Server) -> None:
    split = """
    tasks:
      x:
        versions:
          - {text: stable, traffic: 90, pinned: true}
          - {text: new, traffic: 10}
    """
    apply("tasks: {x: {text: stable}}")

    assert apply(split).stdout == "0 created, 1 changed, 0 unchanged\n"
    assert server.get("/tasks/x/traffic")["weights"] == {"1": 90, "2": 10}
    assert server.pinned("x") == [1]
    assert apply(split).stdout == "0 created, 0 changed, 1 unchanged\n"

    apply("tasks: {x: {text: new, pinned: true}}")
    assert server.get("/tasks/x/traffic")["weights"] is None
    assert server.get("/tasks/x")["active_version"] == 2
    assert server.pinned("x") == [2]
    assert server.num_versions() == {"x": 2}


def test_a_task_without_a_prefix_keeps_its_versions(apply: Run, server: Server) -> None:
    apply("tasks: {x: {text: one, template: 'Q: {prompt}'}}")

    apply("tasks: {x: {description: d}, empty: {template: 'E: {prompt}'}}")
    assert server.get("/tasks/x")["profile"]["template"] == "Q: {prompt}"
    assert server.get("/tasks/x")["profile"]["description"] == "d"
    assert server.get("/tasks/empty")["profile"]["template"] == "E: {prompt}"
    assert server.num_versions() == {"empty": 0, "x": 1}

    text = "tasks: {x: {description: d, chat: true, pinned: true}, empty: {chat: true}}"
    apply(text)
    profile = server.get("/tasks/x")["profile"]
    assert (profile["template"], profile["chat"]) == ("Q: {prompt}", True)
    assert server.pinned("x") == [2]
    assert apply(text).stdout == "0 created, 0 changed, 2 unchanged\n"


def test_a_dry_run_shows_a_diff_and_changes_nothing(apply: Run, server: Server) -> None:
    apply("tasks: {x: {text: one, weight: 2}, old: {text: one}}")
    before = server.state()
    text = "tasks: {x: {text: two, weight: 3}, y: {text: new}}"

    shown = apply(text, "--dry-run", "--prune")

    assert shown.stdout.splitlines() == [
        "~ x",
        "    ~ weight: 2.0 -> 3.0",
        '    ~ prefix: "v1" -> "new: text \\"two\\""',
        "+ y",
        '    + prefix: "new: text \\"new\\""',
        "- old",
        "1 to create, 1 to change, 1 to delete, 0 unchanged",
    ]
    assert server.state() == before
    apply(text, "--dry-run", "--detailed-exitcode", code=2)
    apply("tasks: {x: {text: one, weight: 2}}", "--dry-run", "--detailed-exitcode", code=0)
    apply("tasks: {x: {text: one, wait: 2}}", "--dry-run", "--detailed-exitcode", code=1)


def test_pruning_deletes_what_no_file_names_and_asks_first(
    apply: Run, run: Run, server: Server
) -> None:
    apply("tasks: {x: {text: one}, old: {text: one}}")

    asked = apply("tasks: {x: {text: one}}", "--prune", code=2)
    assert "not a terminal; pass --yes" in asked.stderr
    assert server.num_versions() == {"old": 1, "x": 1}

    done = apply("tasks: {x: {text: one}}", "--prune", "--yes")
    assert done.stdout == "0 created, 0 changed, 1 deleted, 1 unchanged\n"
    assert server.num_versions() == {"x": 1}


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
    done = apply("tasks: {x: {text: two}, y: {text: two}}", code=1)

    assert "error: [" in done.stderr
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


def test_twelve_tasks_are_applied_twice(apply: Run, server: Server) -> None:
    for number in range(6):
        save_peft(Path(f"runs/{number}"), seed=number)
    tuned = [f"  tuned-{n}: {{prefix: runs/{n}, template: '{n} {{prompt}}'}}" for n in range(6)]
    texts = [f"  text-{n}: {{text: 'Text {n}', weight: {n + 1}}}" for n in range(6)]
    text = "\n".join(["tasks:", *tuned, *texts])

    done = apply(text, "--json")
    before, writes = server.state(), list(server.writes)
    again = apply(text)

    assert json.loads(done.stdout)["created"] == 12
    assert again.stdout == "0 created, 0 changed, 12 unchanged\n"
    assert (server.state(), list(server.writes)) == (before, writes)
