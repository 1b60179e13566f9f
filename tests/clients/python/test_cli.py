from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from foreword_client.cli import make_app
from tests.clients.python.fake_foreword import FakeForeword

Run = Callable[..., Result]


@pytest.fixture
def run(server: FakeForeword, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command against the fake server."""
    monkeypatch.setenv("FOREWORD_URL", server.url)
    return lambda *args, **options: CliRunner().invoke(make_app(), args, **options)


def test_generate_writes_the_text(run: Run, server: FakeForeword) -> None:
    done = run("generate", "hi", "--task", "x", "--max-tokens", "5", "--stop", "a", "--stop", "b")

    assert (done.exit_code, done.stdout) == (0, "one two three\n")
    assert server.bodies() == [{"prompt": "hi", "max_tokens": 5, "stop": ["a", "b"]}]
    assert server.seen[0][1] == "/generate?task=x"


def test_a_key_is_given_or_taken_from_the_environment(
    run: Run, server: FakeForeword, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("--api-key", "fwd_typed", "tasks")
    monkeypatch.setenv("FOREWORD_API_KEY", "fwd_set")
    run("generate", "hi")

    sent = [headers["authorization"] for _, _, headers, _ in server.seen]
    assert sent == ["Bearer fwd_typed"] * 2 + ["Bearer fwd_set"]


def test_generate_streams_and_prints_usage_and_times(run: Run, server: FakeForeword) -> None:
    done = run("generate", "hi", "-t", "x", "--stream", "-v")

    assert done.stdout == "one two three\n"
    assert "x v3 · 20 prefix + 2 prompt + 3 completion tokens" in done.stderr
    assert server.bodies() == [{"prompt": "hi", "stream": True}]


def test_generate_sends_sampling_parameters(run: Run, server: FakeForeword) -> None:
    run("generate", "hi", "--min-p", "0.25", "--stop-token-id", "7", "--stop-token-id", "9")

    assert server.bodies() == [{"prompt": "hi", "min_p": 0.25, "stop_token_ids": [7, 9]}]


def test_generate_reads_standard_input(run: Run, server: FakeForeword) -> None:
    run("generate", input="from a pipe\n")
    run("generate", "-", input="two\nlines\n")

    assert [body["prompt"] for body in server.bodies()] == ["from a pipe", "two\nlines"]


def test_generate_takes_fields_and_messages(run: Run, server: FakeForeword, tmp_path: Path) -> None:
    chat = tmp_path / "chat.json"
    chat.write_text('[{"role": "user", "content": "hi"}]')

    run("generate", "--field", "name=Jo=Ann", "--field", "empty=")
    run("generate", "--messages", str(chat))

    assert server.bodies() == [
        {"fields": {"name": "Jo=Ann", "empty": ""}},
        {"messages": [{"role": "user", "content": "hi"}]},
    ]


def test_generate_says_what_the_answer_has_to_be(
    run: Run, server: FakeForeword, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')

    run("generate", "hi", "--json-schema", str(schema))
    run("generate", "hi", "--regex", "[a-z]+")
    chosen = run("generate", "hi", "--rank", "yes", "--rank", "no", "--rank-by", "mean", "-v")
    run("generate", "hi", "--choice", "yes", "--choice", "no")

    form = {"name": "answer", "schema": {"type": "object"}}
    assert server.bodies() == [
        {"prompt": "hi", "response_format": {"type": "json_schema", "json_schema": form}},
        {"prompt": "hi", "regex": "[a-z]+"},
        {"prompt": "hi", "rank": {"texts": ["yes", "no"], "by": "mean"}},
        {"prompt": "hi", "choice": ["yes", "no"]},
    ]
    assert chosen.stdout == "yes\n"
    assert [line.split()[0] for line in chosen.stderr.splitlines()[:2]] == ["0.750", "0.250"]
    assert run("generate", "hi", "--rank-by", "mean").exit_code == 2
    for wrong in ("[1]", "{"):
        schema.write_text(wrong)
        assert run("generate", "hi", "--json-schema", str(schema)).exit_code == 2


def test_json_is_for_programs(run: Run) -> None:
    whole = json.loads(run("generate", "hi", "--json").stdout)
    lines = run("generate", "hi", "--json", "--stream").stdout.splitlines()

    assert whole["text"] == "one two three"
    assert [json.loads(line)["text"] for line in lines] == ["one", " two", " three", whole["text"]]
    assert [task["name"] for task in json.loads(run("tasks", "--json").stdout)] == ["a", "b", "c"]
    for command in (
        ["task", "x"],
        ["versions", "x"],
        ["activate", "x", "2"],
        ["rollback", "x"],
        ["push", "x", "--text", "t"],
        ["info"],
        ["delete", "x", "--yes"],
    ):
        assert isinstance(json.loads(run(*command, "--json").stdout), dict)


def test_tasks_are_found_on_the_server(run: Run, server: FakeForeword) -> None:
    asked = ("--search", "a b", "--state", "split", "--sort", "-updated")
    assert "no such task" in run("tasks", *asked).stderr
    assert server.seen[-1][1] == "/tasks?search=a+b&state=split&sort=-updated"
    assert run("tasks", "--sort", "size").exit_code == 2


def test_tables_show_all_rows_and_no_markup(run: Run) -> None:
    tasks = run("tasks").stdout.splitlines()
    versions = run("versions", "x").stdout.splitlines()

    assert tasks[0].split() == ["TASK", "ACTIVE", "VERSIONS", "CHANGED", "DESCRIPTION"]
    assert tasks[1].split()[:3] == ["a", "v3", "3"]
    assert tasks[1].endswith("[bold]a[/bold]")
    assert [line.split()[0] for line in versions[1:]] == ["v1", "v2", "*"]
    assert "1.5 MB" in versions[1]
    _, ended, split, first = run("versions", "x", "--history").stdout.splitlines()
    assert ended.rstrip().endswith("v1       rollback  -   v2: 13 of 130 requests failed")
    assert split.rstrip().endswith("v1       traffic   -   v1=90, v2=10")
    assert first.split()[-4:] == ["v1", "activate", "-", "-"]


def test_a_task_is_shown_and_changed(run: Run, server: FakeForeword) -> None:
    shown = run("task", "x", "--no-chat", "--template", "Q: {prompt}", "--description", "d")

    assert "active" in shown.stdout
    assert server.bodies() == [{"description": "d", "template": "Q: {prompt}", "chat": False}]


def test_push_says_what_is_live(run: Run, server: FakeForeword) -> None:
    done = run("push", "x", "--text", "Translate.")
    stored = run("push", "x", "--text", "Translate.", "--no-activate")

    assert done.stdout.startswith("x: v4 is now live (20 virtual tokens from peft, 1.5 MB")
    assert "is stored, but not active" in stored.stdout
    assert [s[:2] for s in server.seen] == [
        ("GET", "/tasks/x"),
        ("PUT", "/tasks/x/prefix"),
        ("POST", "/tasks/x/versions"),
    ]


def test_activate_rollback_and_delete_say_what_they_did(run: Run) -> None:
    assert "x: v2 is now live" in run("activate", "x", "2").stdout
    assert "x: v2 is now live" in run("rollback", "x").stdout
    assert "deleted task x with all its versions" in run("delete", "x", "--yes").stdout


def test_nothing_is_deleted_without_confirmation(run: Run, server: FakeForeword) -> None:
    done = run("delete", "x")

    assert done.exit_code == 2
    assert "--yes" in done.stderr
    assert server.seen == []


def test_download_writes_a_file_or_standard_output(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"

    done = run("download", "x", "1", "-o", str(path), "--peft")

    assert done.exit_code == 0
    assert path.read_bytes() == b"bytes of peft"
    assert list(tmp_path.iterdir()) == [path]
    assert run("download", "x", "1", "-o", "-").stdout_bytes == b"bytes of tar"
    assert run("download", "x", "1", "-o", "-", "--bare").stdout_bytes == b"bytes of artifact"
    assert run("download", "x", "1", "--bare", "--peft").exit_code == 2
    bare = run("download", "x", "1", "-o", str(tmp_path / "x.safetensors"))
    assert "the prefix only" in bare.stderr
    assert (tmp_path / "x.safetensors").read_bytes() == b"bytes of artifact"


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["generat", "hi"], 2, "No such command 'generat'. Did you mean 'generate'?"),
        (["generate", "hi", "--max-token", "3"], 2, "did you mean --max-tokens?"),
        (["generate", "hi", "--max-tokens", "0"], 2, "--max-tokens"),
        (["generate", "hi", "--field", "name"], 2, "NAME=VALUE"),
        (["push", "x"], 2, "exactly one"),
        (["push", "x", "/nowhere"], 1, "no such file or folder: /nowhere"),
        (["generate", "hi", "-t", "nope"], 1, "there is no such task [unknown_task]"),
        (["generate", "hi", "-t", "failing", "--stream"], 1, "it failed [step_failed, request r1]"),
        (["delete", "x", "--version", "3", "-y"], 1, "[version_active]"),
        (["download", "x", "1", "-o", "/nowhere/x"], 1, "/nowhere"),
        (["--url", "ftp://h", "tasks"], 1, "ftp://h"),
        (["--url", "http://127.0.0.1:1", "tasks"], 1, "start one with `foreword serve`"),
    ],
)
def test_an_error_is_one_line(run: Run, args: list[str], code: int, said: str) -> None:
    done = run(*args)

    last = done.stderr.removeprefix("\n").splitlines()
    assert (done.exit_code, len(last)) == (code, 1)
    assert last[0].startswith("error: ")
    assert said in last[0]


@pytest.mark.parametrize(("target", "remembers"), [((), True), (("-t", "x"), False)])
def test_a_chat_remembers_unless_the_task_answers_single_prompts(
    run: Run, server: FakeForeword, target: tuple[str, ...], remembers: bool
) -> None:
    done = run("chat", *target, input="hi\nand now?\n")

    first, second = (body["messages"] for body in server.bodies())
    line = {"role": "user", "content": "and now?"}
    answer = {"role": "assistant", "content": "one two three"}
    assert second == ([*first, answer, line] if remembers else [line])
    assert ("does not remember" in done.stderr) != remembers


def test_a_system_message_for_a_task_that_answers_single_prompts_is_refused(
    run: Run, server: FakeForeword
) -> None:
    done = run("chat", "-t", "x", "--system", "Be brief.", input="hi\n")

    assert (done.exit_code, "answers single prompts" in done.stderr) == (2, True)
    assert server.bodies() == []


def test_a_chat_that_the_server_refuses_goes_on_with_single_prompts(
    run: Run, server: FakeForeword
) -> None:
    """A key for `generate` alone cannot look whether a task is a chat."""
    done = run("chat", "-t", "hidden", input="hi\nand now?\nbye\n")

    asked = [[message["content"] for message in body["messages"]] for body in server.bodies()]
    assert asked == [["hi"], ["hi", "one two three", "and now?"], ["and now?"], ["bye"]]
    assert (done.exit_code, done.stdout) == (0, "one two three\n" * 3)
    assert done.stderr.count("does not remember") == 1


def test_a_chat_fills_in_the_fields_of_a_template(run: Run, server: FakeForeword) -> None:
    done = run("chat", "-t", "x", "--field", "tone=kind", input="hi\n")
    wrong = run("chat", "-t", "x", "--field", "tone", input="hi\n")

    assert done.exit_code == 0
    assert [body["fields"] for body in server.bodies()] == [{"tone": "kind"}]
    assert (wrong.exit_code, "NAME=VALUE" in wrong.stderr) == (2, True)


def test_files_without_a_chat_are_refused(run: Run, tmp_path: Path) -> None:
    for content in ("{", "{}", '[{"role": "user"}]', "[3]"):
        path = tmp_path / "chat.json"
        path.write_text(content)
        assert run("generate", "--messages", str(path)).exit_code == 2


def test_help_names_every_command(run: Run) -> None:
    named = [
        "generate",
        "push",
        "tasks",
        "task",
        "versions",
        "activate",
        "rollback",
        "download",
        "delete",
        "info",
        "serve",
    ]

    for shown in (run("--help"), run()):
        assert shown.exit_code == 0
        assert all(name in shown.stdout for name in named)
    for name in named[:-1]:
        assert run(name, "--help").exit_code == 0
        assert run(name, "-h").exit_code == 0
    assert run("--version").stdout.startswith("foreword-client ")
