"""From `foreword tune` to a server: what can fail is found before training, and what was trained is
pushed as it was evaluated."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from foreword_client import Client
from foreword_client.cli import make_app
from foreword_tuner.__main__ import distill, tune
from tests.clients.tuner.tiny_base import QUICK, run, save_base, write_lines
from tests.running_server import RunningServer


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Lines that a tiny model learns within seconds."""
    lines = [{"prompt": f"{i} is", "completion": "ab"} for i in range(24)]
    return write_lines(tmp_path / "train.jsonl", lines)


@pytest.fixture
def golden(server: RunningServer) -> Iterator[str]:
    """A task whose golden prompt no version answers."""
    never = {"golden": [{"prompt": "7 is", "expect": "never"}]}
    httpx.put(f"{server.url}/tasks/golden", json=never).raise_for_status()
    yield "golden"
    httpx.delete(f"{server.url}/tasks/golden").raise_for_status()


def refused(*arguments: object, command: object = tune) -> None:
    with pytest.raises(SystemExit, match="1"):
        command([str(argument) for argument in arguments])  # type: ignore[operator]


def foreword(*arguments: object) -> str:
    """Run `foreword`. Returns its output."""
    done = CliRunner().invoke(make_app(), [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_task_name_is_refused_before_the_data_is_read(
    base: Path, server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unread = tmp_path / "data.jsonl"
    unread.write_text("not JSON")

    refused("--data", unread, "--base", base, "--task", "No Name", "--push", server.url)
    refused(
        "--data", unread, "--text", __file__, "--base", base, "--task", "No Name",
        "--push", server.url, command=distill,
    )  # fmt: skip

    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert all("task name" in error for error in errors)


def test_another_base_model_than_the_servers_is_refused_before_training(
    server: RunningServer, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, folder = save_base(tmp_path / "other", "qwen3", bos=True), tmp_path / "run"

    refused(
        "--data", data, "--base", other, "--task", "x", "-o", folder, *QUICK, "--push", server.url
    )

    assert "is not the one that the server runs" in capsys.readouterr().err
    assert not folder.exists()


def test_without_a_base_model_the_servers_is_trained(
    base: Path, server: RunningServer, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    folder = tmp_path / "run"

    out = foreword(
        "--url", server.url, "tune", "--data", data, "--task", "asked", "-o", folder, *QUICK,
        "--epochs", 1, "--push",
    )  # fmt: skip

    assert "asked: v1 is now live" in out
    assert json.loads((folder / "training.json").read_text())["settings"]["base"] == base.name


@pytest.mark.parametrize(
    ("task", "before", "said"),
    [
        (
            "told",
            {"template": "{prompt}\n", "defaults": {"max_tokens": 2}},
            "max_tokens 2 becomes 4",
        ),
        (
            "versionless",
            {"template": "Q: {prompt}"},
            r"template 'Q: {prompt}' becomes '{prompt}\n'",
        ),
    ],
)
def test_a_push_that_changes_the_definition_is_announced(
    base: Path,
    server: RunningServer,
    data: Path,
    tmp_path: Path,
    task: str,
    before: dict[str, Any],
    said: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Client(server.url) as client:
        client.create_task(task, **before)
        if task == "told":
            client.push(task, text="Say: ")

    run(
        tune, "--data", data, "--base", base, "--task", task, "-o", tmp_path / "run", *QUICK,
        "--epochs", 1, "--push", server.url,
    )  # fmt: skip

    told = capfd.readouterr().err
    assert f"the push will change how {task} is asked: " in told
    assert said in told
    with Client(server.url) as client:
        profile = client.task(task).profile
    assert (profile.template, profile.defaults.max_tokens) == ("{prompt}\n", 4)


def test_a_failed_push_prints_the_command_that_does_it(
    base: Path,
    server: RunningServer,
    data: Path,
    golden: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "my run"
    refused(
        "--data", data, "--base", base, "--task", golden, "-o", folder, *QUICK,
        "--epochs", 1, "--push", server.url,
    )  # fmt: skip
    [line] = [line for line in capfd.readouterr().err.splitlines() if "not pushed" in line]
    command = line.partition("this does it: ")[2]

    httpx.patch(f"{server.url}/tasks/{golden}", json={"golden": []}).raise_for_status()
    name, *arguments = shlex.split(command)

    assert (name, arguments[-1]) == ("foreword", str(folder))
    assert f"{golden}: v1 is now live" in foreword(*arguments)


@pytest.mark.parametrize(
    ("task", "options"),
    [("new-chat", ["--chat"]), ("asked-otherwise", ["--template", "Q: {prompt}\\nA:"])],
)
def test_a_folder_is_pushed_as_it_was_evaluated(
    base: Path, server: RunningServer, data: Path, tmp_path: Path, task: str, options: list[str]
) -> None:
    folder = tmp_path / "run"
    run(
        tune, "--data", data, "--base", base, "--task", "x", "-o", folder, *QUICK, *options,
        "--epochs", 25,
    )  # fmt: skip
    with Client(server.url) as client:
        if task == "asked-otherwise":
            client.push(task, text="Say: ", template="Z {prompt}", defaults={"stop": ["a"]})

    foreword("--url", server.url, "push", task, folder)

    with Client(server.url) as client:
        answer = client.generate("7 is", task=task)
        manifest = client.version(task, answer.version or 0)
    assert (answer.text, answer.finish_reason) == ("ab", "stop")
    assert manifest.definition is not None
    written = json.loads((folder / "foreword.json").read_text())
    assert manifest.definition.model_dump(exclude_none=True) == {
        name: value for name, value in written.items() if value is not None
    }
    assert [prompt.expect for prompt in manifest.golden] == ["ab"] * 6
    assert {check.name: check.passed for check in manifest.verification}["golden"] is True
