"""Arguments of the tuner's commands: read at once, and refused in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from foreword_tuner import __main__ as tuner


@pytest.mark.parametrize("command", ["tune", "evaluate", "distill"])
def test_a_misspelt_option_is_one_line_without_torch(command: str) -> None:
    code = (
        "import contextlib, sys\n"
        f"from foreword_tuner.__main__ import {command} as main\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main(['--tsak', 'x'])\n"
        "sys.exit(bool(sys.modules.keys() & {'torch', 'transformers', 'sacrebleu'}))\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)

    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b"error: No such option: --tsak; did you mean --task?\n"


def test_an_unknown_metric_is_a_mistake_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        tuner.evaluate(["--data", "x", "--task", "x", "--metric", "bluer"])

    assert ended.value.code == 2
    assert "bluer: write exact_match, accuracy" in capsys.readouterr().err


@pytest.mark.parametrize("command", [tuner.tune, tuner.evaluate, tuner.distill])
def test_h_is_short_for_help(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(["-h"])  # type: ignore[operator]

    assert ended.value.code == 0
    assert "Usage: foreword" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "options"), [(tuner.tune, ["--base", "x"]), (tuner.distill, ["--text", __file__])]
)
def test_a_missing_file_is_refused_before_anything_is_loaded(
    command: object, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(["--data", "none.jsonl", "--task", "x", *options])  # type: ignore[operator]

    assert ended.value.code == 2
    assert "error: Invalid value for '--data'" in capsys.readouterr().err
