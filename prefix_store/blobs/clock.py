"""The system's clock, which an operator or a time server may set while the server runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf

_TOLERANCE_S = 60.0


def elapsed() -> float:
    """Return seconds that only grow, also while the machine is suspended, where the system has such
    a clock: a laptop that sleeps has not had its clock set."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Clock:
    """Wall-clock time, and whether it was set.

    Ages of blobs are differences of wall-clock times, which are wrong after it was set.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = elapsed,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._offset_s = wall() - monotonic()
        self._set_at_s = -inf

    def now(self) -> float:
        """Return the Unix time."""
        return self._wall()

    def was_set_within(self, period_s: float) -> bool:
        """Whether a call in the last `period_s` seconds, or this one, found the clock set.

        Set means by more than a minute, either way, since the call before.
        """
        now_s = self._monotonic()
        offset_s = self._wall() - now_s
        if abs(offset_s - self._offset_s) > _TOLERANCE_S:
            self._set_at_s = now_s
        self._offset_s = offset_s
        return now_s - self._set_at_s < period_s
