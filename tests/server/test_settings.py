from __future__ import annotations

import pytest
from pydantic import ValidationError

from server.cli.app import StartError
from server.cli.options import read_settings
from server.cli.serve import main
from server.settings import Settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOREWORD_CACHE", raising=False)


def test_flags_and_variables_set_the_same_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREWORD_MAX_NUM_SEQS", "7")

    settings = read_settings(["--port", "0", "--demo", "--max-waiting", "3"])

    assert (settings.port, settings.demo) == (0, True)
    assert (settings.max_num_seqs, settings.max_waiting) == (7, 3)


def test_a_flag_wins_over_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREWORD_PORT", "1")

    assert read_settings(["--port", "2"]).port == 2


def test_a_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREWORD_MAX_NUM_SEQ", "7")

    with pytest.raises(StartError, match="FOREWORD_MAX_NUM_SEQ"):
        read_settings([])


@pytest.mark.parametrize("name", ["FOREWORD_URL", "FOREWORD_API_KEY"])
def test_variables_of_the_client_are_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")

    assert read_settings(["--port", "3"]).port == 3


def test_the_cache_has_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREWORD_CACHE", "/somewhere")

    assert str(read_settings([]).cache) == "/somewhere"


@pytest.mark.parametrize(
    "argv",
    [["--port", "70000"], ["--port", "x"], ["--max-num-seqs", "0"], ["--device", "abacus"]],
)
def test_a_value_out_of_bounds_names_its_setting(argv: list[str]) -> None:
    with pytest.raises(StartError, match=argv[0].removeprefix("--").replace("-", "[-_]")):
        read_settings(argv)


def test_a_step_must_fit_a_token_of_every_sequence() -> None:
    with pytest.raises(ValidationError, match="max_num_batched_tokens"):
        Settings(_cli_parse_args=False, max_num_seqs=64, max_num_batched_tokens=32)


def test_a_users_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--port", "70000"])

    assert exit_.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
