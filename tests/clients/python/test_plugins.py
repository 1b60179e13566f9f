from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from foreword_client.cli import make_app
from foreword_client.cli.plugins import commands


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path, where a distribution with a `serve` command lies."""
    info = tmp_path / "aaa_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: aaa-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[foreword.commands]\nzzz = foreword_test_plugin:main\nbroken = foreword_test_gone:main\n"
        "where = foreword_test_plugin:where\n"
    )
    (tmp_path / "foreword_test_plugin.py").write_text(
        "import os\n"
        "def main(argv):\n"
        "    print(argv)\n"
        "def where(argv):\n"
        "    print(os.environ.get('FOREWORD_URL'), os.environ.get('FOREWORD_API_KEY'))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "foreword_test_plugin", raising=False)
    return tmp_path


@pytest.mark.usefixtures("install")
def test_a_plug_in_gets_its_arguments_as_they_were_typed() -> None:
    args = ["--help", "-x", "--", "--url", "a b", "--port=3", "-"]

    done = CliRunner().invoke(make_app(), ["--url", "http://h", "zzz", *args])

    assert done.exit_code == 0
    assert done.stdout == f"{args!r}\n"


@pytest.mark.usefixtures("install")
def test_options_before_a_plug_in_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOREWORD_URL", raising=False)
    monkeypatch.setenv("FOREWORD_API_KEY", "set")

    def told(*front: str) -> str:
        return CliRunner().invoke(make_app(), [*front, "where"]).stdout

    assert told() == "None set\n"
    assert told("--url", "http://h:1") == "http://h:1 set\n"
    assert told("--url", "http://h:1", "--api-key", "typed") == "http://h:1 typed\n"
    assert told() == "None set\n"


@pytest.mark.usefixtures("install")
@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("keys", "--url"),
        ("keys", "--api-key"),
        ("bench roofline", "--url"),
        ("bench compare", "--api-key"),
    ],
)
def test_an_option_that_a_plug_in_ignores_is_refused(
    command: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = CliRunner().invoke(make_app(), [option, "http://h:1", *command.split(), "--help"])

    assert done.exit_code == 2
    assert f"`foreword {command}` does not take {option} before its name" in done.stderr
    monkeypatch.setenv("FOREWORD_URL", "http://h:1")
    done = CliRunner().invoke(make_app(), [*command.split(), "--help"])
    assert "before its name" not in done.stderr


@pytest.mark.usefixtures("install")
def test_a_plug_in_is_listed_and_suggested() -> None:
    assert "zzz" in CliRunner().invoke(make_app(), ["--help"]).stdout
    assert "'zzz'" in CliRunner().invoke(make_app(), ["zzzz"]).stderr


@pytest.mark.usefixtures("install")
def test_a_plug_in_that_cannot_be_loaded_is_one_line() -> None:
    done = CliRunner().invoke(make_app(), ["broken"])

    assert done.exit_code == 1
    assert done.stderr == (
        "error: `foreword broken` cannot be loaded: No module named 'foreword_test_gone'\n"
    )


def test_serve_without_a_server_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as nothing_installed:
        nothing_installed.setattr(sys, "path", [])
        command = get_command(make_app())
        assert list(commands()) == ["serve"]

    with pytest.raises(SystemExit) as ended:
        command.main(["serve", "--help"])

    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert "not installed here" in told
    assert "pip install" in told


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--data", "DATA", "--task", "x"],
        ["tune", "--data", "DATA", "--base", "BASE", "--task", "x", "--push"],
        ["tune", "--data", "DATA", "--task", "x"],
        ["distill", "--text", "DATA", "--data", "DATA", "--task", "x"],
        ["bench", "load"],
        ["bench", "compare", "--model", "BASE", "--row", "peft", "--no-roofline"],
        ["bench", "sweep", "concurrency", "--values", "1", "--model", "BASE", "--no-roofline"],
        ["doctor", "--model", "BASE"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_an_address_before_any_command_is_the_one_it_calls(
    command: list[str], tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    known = {"DATA": str(data), "BASE": str(tmp_path)}
    arguments = [known.get(argument, argument) for argument in command]

    done = CliRunner().invoke(make_app(), ["--url", "http://127.0.0.1:1", *arguments])

    assert done.exit_code == 1
    assert "http://127.0.0.1:1" in done.output
