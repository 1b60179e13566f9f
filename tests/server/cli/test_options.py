"""The options of `foreword serve`: one for each setting, read before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from server.cli import admin, doctor, serve
from server.cli.app import StartError
from server.cli.options import read_settings
from server.settings import Settings


def run(command: str, *argv: str) -> None:
    commands = {
        "serve": serve.main,
        "keys": admin.keys,
        "audit": admin.audit,
        "doctor": doctor.doctor,
    }
    commands[command](list(argv))


def test_every_setting_is_an_option_with_its_variable_and_its_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("serve", "--help")

    shown = " ".join(capsys.readouterr().out.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in shown
        assert f"[env var: FOREWORD_{name.upper()}" in shown
        assert str(field.description).split()[0] in shown
    assert "FOREWORD_PORT; default: 8000]" in shown


@pytest.mark.parametrize("command", ["serve", "keys", "audit", "doctor"])
def test_h_is_short_for_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(command, "-h")

    assert f"foreword {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["serve", "--prot", "1"], "error: No such option: --prot; did you mean --port?\n"),
        (["keys", "list", "--sotre", "x"], "No such option: --sotre; did you mean --store?\n"),
        (["audit", "verify", "--haed", "x"], "No such option: --haed; did you mean --head?\n"),
        (["serve", "--device", "abacus"], "'abacus' is not one of 'auto', 'cpu', 'cuda'.\n"),
        (["serve", "--registry", "x://y"], "registry: must begin with postgresql+psycopg://\n"),
    ],
)
def test_a_mistake_is_one_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*argv)

    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("error: ")
    assert error.endswith(said)
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("FOREWORD_PROT", "1", "FOREWORD_PROT; did you mean FOREWORD_PORT?"),
        ("FOREWORD_QWXZKQWXZKQWXZK", "1", "QWXZK; see `foreword serve --help`"),
        ("FOREWORD_PORT", "x", "env var: 'FOREWORD_PORT'"),
        ("FOREWORD_DEMO", "maybe", "env var: 'FOREWORD_DEMO'"),
        ("FOREWORD_PORT", "70000", "port: "),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(
    variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(StartError) as refusal:
        read_settings([])

    assert said in str(refusal.value)


def test_a_flag_turns_off_what_a_variable_turns_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREWORD_DEMO", "yes")

    assert read_settings([]).demo
    assert not read_settings(["--no-demo"]).demo


@pytest.mark.parametrize(
    "call",
    [
        "server.cli.serve:main:--hlep",
        "server.cli.serve:main:--help",
        "server.cli.doctor:doctor:--hlep",
        "server.cli.admin:keys:--hlep",
    ],
)
def test_arguments_are_read_before_the_engine_is_imported(call: str) -> None:
    module, function, option = call.split(":")
    code = (
        "import contextlib, sys\n"
        f"from {module} import {function} as main\n"
        "with contextlib.suppress(SystemExit):\n"
        f"    main(['{option}'])\n"
        "sys.exit(bool(sys.modules.keys() & {'torch', 'transformers', 'fastapi'}))\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
