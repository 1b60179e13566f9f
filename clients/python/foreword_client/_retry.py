"""Retry policy: which failures are retried, and after how long."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from foreword_client.errors import (
    ConflictError,
    ConnectionLostError,
    NoServerError,
    OverloadedError,
    TimedOutError,
    UnavailableError,
)

FIRST_DELAY_S = 0.1
IN_PROGRESS_S = 1.0
MAX_WAIT_S = 30.0
"""A longer `Retry-After` is not waited for: the caller decides."""


class Retries:
    """Retry state of one call.

    * A connection that was never made: always retried, as nothing was sent.
    * A 429 or 503: retried if the call is `repeatable` and the server sent `Retry-After`.
    * A lost connection or a timeout: retried if the call is `idempotent`, that is, carries an
      idempotency key, so that the server does it once.
    """

    def __init__(self, max_retries: int, *, repeatable: bool, idempotent: bool = False) -> None:
        self._num_left = max_retries
        self._repeatable = repeatable or idempotent
        self._idempotent = idempotent
        self._delay_s = FIRST_DELAY_S

    def delay_s(self, failure: Exception) -> float | None:
        """Return the seconds until the next attempt, or None to give up."""
        if self._num_left <= 0:
            return None
        self._num_left -= 1
        match failure:
            case NoServerError():
                return self._backoff_s()
            case ConnectionLostError() | TimedOutError() if self._idempotent:
                return self._backoff_s()
            case ConflictError(code="request_in_progress") if self._idempotent:
                return _spread(IN_PROGRESS_S)
            case OverloadedError() | UnavailableError() if self._repeatable:
                asked_s = failure.retry_after_s
                return None if asked_s is None or asked_s > MAX_WAIT_S else _spread(asked_s)
            case _:
                return None

    def _backoff_s(self) -> float:
        delay_s, self._delay_s = self._delay_s, 2 * self._delay_s
        return _spread(delay_s)


def _spread(delay_s: float) -> float:
    """Add jitter, so that many refused clients do not retry at the same moment."""
    return delay_s * random.uniform(1.0, 1.25)


def retry_after_s(header: str | None) -> float | None:
    """Parse a `Retry-After` header, which holds seconds or a date. None if it is malformed."""
    if header is None:
        return None
    if header.isascii() and header.isdigit():
        return float(header[:9])
    try:
        at = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
