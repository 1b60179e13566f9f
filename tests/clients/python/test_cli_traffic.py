"""`foreword traffic`: splits, their rules, and how the versions do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from foreword_client.cli import make_app
from tests.clients.python.fake_foreword import FakeForeword

Run = Callable[..., Result]


@pytest.fixture
def run(server: FakeForeword, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command against the fake server."""
    monkeypatch.setenv("FOREWORD_URL", server.url)
    return lambda *args: CliRunner().invoke(make_app(), args)


def test_versions_are_shown_side_by_side(run: Run) -> None:
    shown = run("traffic", "x")
    header, first, second, rule = shown.stdout.splitlines()

    assert header.split()[:6] == ["VERSION", "WEIGHT", "SHARE", "REQUESTS", "ERRORS", "REFUSED"]
    assert first.split()[:7] == ["*", "v3", "90", "90", "%", "1200", "0"]
    assert "31.3, 80.1 ms" in first
    assert "412, 1251 ms" in first
    assert first.rstrip().endswith("exact_match 0.8612")
    assert second.split()[:8] == ["v4", "10", "10", "%", "130", "13,", "10", "%"]
    assert second.split()[-3:] == ["-", "-", "-"]
    assert (
        rule == "rolls back if: error rate above 0.05, or a golden prompt fails (after 20 requests)"
    )
    assert "last 15 minutes" in shown.stderr
    assert json.loads(run("traffic", "x", "--json").stdout)["versions"][1]["errors"] == 13


def test_a_split_that_ended_by_itself_says_why(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = {"weights": None, "rollback_if": None, "rollback_reason": "v4: [b]13[/b] of 130 failed"}
    monkeypatch.setattr("tests.clients.python.fake_foreword.SPLIT", ended)

    shown = run("traffic", "x").stdout.splitlines()
    assert shown[-1] == "rolled back: v4: [b]13[/b] of 130 failed"
    assert shown[1].split() == ["*", "v3", "1", "100", "%"]


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ([], None),
        (
            ["--rollback-if", "error_rate_above=0.05", "--rollback-if", "min-requests=20"],
            {"error_rate_above": 0.05, "min_requests": 20},
        ),
        (
            ["--rollback-if", "total-p95-ms-above=2000", "--rollback-if", "golden_fails"],
            {"total_p95_ms_above": 2000, "golden_fails": True},
        ),
    ],
)
def test_a_rule_is_sent_with_its_split(
    run: Run, server: FakeForeword, options: list[str], rule: dict[str, Any] | None
) -> None:
    shown = run("traffic", "x", "3=90", "v4=10", *options)

    body: dict[str, Any] = {"weights": {"3": 90, "4": 10}}
    assert server.bodies() == [body if rule is None else body | {"rollback_if": rule}]
    assert ("rolls back if" in shown.stdout) is (rule is not None)
    assert "REQUESTS" not in shown.stdout


def test_a_rule_is_removed(run: Run, server: FakeForeword) -> None:
    run("traffic", "x", "3=90", "4=10", "--rollback-if", "never")

    assert server.bodies() == [{"weights": {"3": 90, "4": 10}, "rollback_if": None}]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["3=1", "4=1", "--rollback-if", "errors=1"], "known are error_rate_above"),
        (["3=1", "4=1", "--rollback-if", "error_rate_above"], "is no condition"),
        (["3=1", "4=1", "--rollback-if", "golden_fails=yes"], "is no condition"),
        (["3=1", "4=1", "--rollback-if", "error_rate_above=5%"], "is a number"),
        (["--rollback-if", "golden_fails"], "belongs to a split"),
        (["3=1", "--off"], "not both"),
        (["3=0"], "above 0"),
        (["3"], "VERSION=WEIGHT"),
        (["3=90", "v3=10"], "v3 is named twice"),
    ],
)
def test_what_makes_no_sense_is_refused(
    run: Run, server: FakeForeword, arguments: list[str], said: str
) -> None:
    refused = run("traffic", "x", *arguments)

    assert refused.exit_code == 2
    assert said in " ".join(refused.stderr.split())
    assert server.seen == []


def test_the_history_says_why_a_split_ended(run: Run) -> None:
    header, ended, split, activated = run("versions", "x", "--history").stdout.splitlines()

    assert header.split() == ["WHEN", "VERSION", "ACTION", "BY", "DETAILS"]
    assert ended.rstrip().endswith("v2: 13 of 130 requests failed")
    assert split.rstrip().endswith("v1=90, v2=10")
    assert activated.split()[-3:] == ["activate", "-", "-"]
