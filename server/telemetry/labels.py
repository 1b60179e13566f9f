"""Bounds on label values: how many tasks and versions have series of their own."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

OTHER = "other"
IDLE_S = 600.0
"""A label may be taken over once it was unused for that long."""

T = TypeVar("T", bound=Hashable)


class LabelSet(Generic[T]):
    """The label values that have series of their own: at most `capacity`.

    A new value takes a free place, or the place of the value that was unused for longest, if that
    is idle. Otherwise it shares the label `other`: were busy values replaced at once, many tasks in
    turn would make new series with every request.
    """

    def __init__(
        self,
        capacity: int,
        ended: Callable[[T], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ended` removes the series of a value that lost its place."""
        self.capacity = capacity
        self._ended = ended
        self._clock = clock
        self._used_s: OrderedDict[T, float] = OrderedDict()

    def __contains__(self, value: T) -> bool:
        return value in self._used_s

    def __iter__(self) -> Iterator[T]:
        """Iterate over the values, the least recently used first."""
        return iter(tuple(self._used_s))

    def use(self, value: T, *, urgent: bool = False) -> bool:
        """Whether a value has a place of its own now. `urgent`: even if no other one is idle."""
        if value not in self._used_s and not self._make_room(urgent):
            return False
        self._used_s[value] = self._clock()
        self._used_s.move_to_end(value)
        return True

    def end(self, value: T) -> None:
        """Take away the place of a value, if it has one, and end its series."""
        if self._used_s.pop(value, None) is not None:
            self._ended(value)

    def _make_room(self, urgent: bool) -> bool:
        if len(self._used_s) < self.capacity:
            return True
        oldest = next(iter(self._used_s), None)
        if oldest is None or not (urgent or self._clock() - self._used_s[oldest] >= IDLE_S):
            return False
        self.end(oldest)
        return True
