"""Requests of the last minutes by version, for people and for the rules of splits."""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from server.telemetry.records import RequestRecord, ServedBy

WINDOW_S = 900.0
_SLOT_S = 15.0
_NUM_SLOTS = int(WINDOW_S / _SLOT_S)
_MAX_VERSIONS = 1000
_SHORTEST_S = 1e-4
_GROWTH = 1.02
"""Ratio of a bin's upper to its lower edge: quantiles are right to one percent."""


class Quantiles(NamedTuple):
    """Median and 95th percentile, in seconds."""

    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class RecentStats:
    """What happened to a version's requests in the window."""

    num_requests: int
    """Requests that were admitted and have ended."""
    num_errors: int
    """Those of them that ended with an error."""
    num_refused: int
    """Further requests that were refused after the version was chosen for them."""
    first_token_s: Quantiles | None
    """Time to first token. None: no request got a token."""
    total_s: Quantiles | None
    """Time to the end, of all requests that have ended."""

    @property
    def error_rate(self) -> float | None:
        return self.num_errors / self.num_requests if self.num_requests else None


@dataclass(slots=True)
class _Slot:
    """Requests that ended within one slot of time; latencies counted by bin."""

    num_requests: int = 0
    num_errors: int = 0
    num_refused: int = 0
    first_token: Counter[int] = field(default_factory=Counter)
    total: Counter[int] = field(default_factory=Counter)


class RecentRequests:
    """Counts and latencies of the last `WINDOW_S` by version, as this server saw them.

    Latencies are kept as counts in logarithmic bins, so that memory does not grow with the number
    of requests. Beyond a thousand versions the least recently used one is forgotten.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._versions: OrderedDict[tuple[str, int], dict[int, _Slot]] = OrderedDict()

    def completed(self, record: RequestRecord) -> None:
        """Count a request that was admitted and has ended."""
        if (slot := self._slot(record.target)) is None:
            return
        slot.num_requests += 1
        slot.num_errors += record.error is not None
        slot.total[_bin(record.total_s)] += 1
        if record.time_to_first_token_s is not None:
            slot.first_token[_bin(record.time_to_first_token_s)] += 1

    def refused(self, target: ServedBy) -> None:
        """Count a request that was refused after its version was chosen."""
        if (slot := self._slot(target)) is not None:
            slot.num_refused += 1

    def stats(self, task: str, version: int, since_s: float = -math.inf) -> RecentStats:
        """Return the figures of a version, from the window or from `since_s` on if that is later.

        Both are rounded up to slots of 15 seconds.
        """
        first = max(self._now() - _NUM_SLOTS + 1, math.ceil(max(since_s, 0.0) / _SLOT_S))
        found = self._versions.get((task, version), {})
        slots = [slot for number, slot in found.items() if number >= first]
        return RecentStats(
            num_requests=sum(slot.num_requests for slot in slots),
            num_errors=sum(slot.num_errors for slot in slots),
            num_refused=sum(slot.num_refused for slot in slots),
            first_token_s=_quantiles(slot.first_token for slot in slots),
            total_s=_quantiles(slot.total for slot in slots),
        )

    def _now(self) -> int:
        return int(self._clock() / _SLOT_S)

    def _slot(self, target: ServedBy) -> _Slot | None:
        if target.task is None or target.version is None:
            return None
        key = (target.task, target.version)
        slots = self._versions.setdefault(key, {})
        self._versions.move_to_end(key)
        if len(self._versions) > _MAX_VERSIONS:
            self._versions.popitem(last=False)
        now = self._now()
        if now not in slots:
            for number in [number for number in slots if number <= now - _NUM_SLOTS]:
                del slots[number]
            slots[now] = _Slot()
        return slots[now]


def _bin(seconds: float) -> int:
    return math.ceil(math.log(max(seconds, _SHORTEST_S) / _SHORTEST_S, _GROWTH))


def _quantiles(counts: Iterable[Counter[int]]) -> Quantiles | None:
    merged: Counter[int] = sum(counts, Counter())
    if not merged:
        return None
    return Quantiles(_quantile(merged, 0.5), _quantile(merged, 0.95))


def _quantile(counts: Counter[int], q: float) -> float:
    """Return the middle of the bin of the value with this rank."""
    rank, below = q * counts.total(), 0
    for number in sorted(counts):
        below += counts[number]
        if below >= rank:
            break
    return float(_SHORTEST_S * _GROWTH ** (number - 0.5))
