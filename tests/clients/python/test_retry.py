from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from foreword_client._retry import MAX_WAIT_S, Retries, retry_after_s
from foreword_client.errors import (
    ConflictError,
    ConnectionLostError,
    ForewordError,
    NoServerError,
    OverloadedError,
    Problem,
    ServerFailureError,
    TimedOutError,
    UnavailableError,
)


def _problem(status: int, after_s: float | None) -> Problem:
    return Problem(status, "code", "title", "detail", retry_after_s=after_s)


OVERLOADED = OverloadedError(_problem(429, 2.0))


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_connection_that_was_never_made_is_tried_again(repeatable: bool) -> None:
    retries = Retries(2, repeatable=repeatable)

    first_s, second_s = (retries.delay_s(NoServerError("no")) for _ in range(2))

    assert first_s is not None
    assert second_s is not None
    assert 0 < first_s < second_s < 1
    assert retries.delay_s(NoServerError("no")) is None


def test_the_server_says_how_long_to_wait_and_gets_a_little_more() -> None:
    delay_s = Retries(1, repeatable=True).delay_s(OVERLOADED)

    assert delay_s is not None
    assert 2.0 <= delay_s <= 2.5


@pytest.mark.parametrize(
    ("failure", "repeatable"),
    [
        (OVERLOADED, False),
        (OverloadedError(_problem(429, None)), True),
        (UnavailableError(_problem(503, MAX_WAIT_S + 1)), True),
        (ServerFailureError(_problem(500, 1.0)), True),
        (ConnectionLostError("lost"), True),
        (TimedOutError("late"), True),
    ],
)
def test_what_may_have_taken_effect_or_has_no_end_in_sight_is_not_tried_again(
    failure: ForewordError, repeatable: bool
) -> None:
    assert Retries(9, repeatable=repeatable).delay_s(failure) is None


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionLostError("lost"),
        TimedOutError("late"),
        OVERLOADED,
        ConflictError(Problem(409, "request_in_progress", "title", "detail")),
    ],
)
def test_an_idempotent_call_is_retried_after_these_failures(failure: ForewordError) -> None:
    assert Retries(1, repeatable=False, idempotent=True).delay_s(failure) is not None


def test_another_conflict_is_an_answer() -> None:
    conflict = ConflictError(Problem(409, "version_active", "title", "detail"))

    assert Retries(1, repeatable=False, idempotent=True).delay_s(conflict) is None


def test_retry_after_is_seconds_or_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)

    assert retry_after_s("7") == 7.0
    assert 90 < (retry_after_s(soon) or 0) <= 100
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after_s("soon") is None
    assert retry_after_s("-1") is None
    assert retry_after_s("²") is None
    assert retry_after_s(None) is None
