"""Batches between their schedule and their commit, and what must wait for that."""

from __future__ import annotations

from dataclasses import dataclass, field

from prefix_store.digest import Digest
from server.engine.scheduler.batch import Batch
from server.engine.scheduler.sequence import Sequence, SequenceStatus

MAX_IN_FLIGHT = 2
"""One that runs, and the next, which is launched before the first one's tokens are known."""


@dataclass(eq=False, slots=True)
class InFlightBatch:
    """A batch that a device may be reading and writing for."""

    batch: Batch
    discarded: set[Sequence] = field(default_factory=set)
    """Finished or preempted meanwhile: what they sample here is discarded."""
    pages: list[int] = field(default_factory=list)
    prefixes: list[Digest] = field(default_factory=list)
    """What they held, and let go of with this batch."""

    def runs(self, seq: Sequence) -> bool:
        return any(chunk.seq is seq for chunk in self.batch.chunks)


class InFlightBatches:
    """The batches in flight, in the order in which they were scheduled."""

    def __init__(self) -> None:
        self._in_flight: list[InFlightBatch] = []

    @property
    def is_full(self) -> bool:
        return len(self._in_flight) == MAX_IN_FLIGHT

    @property
    def pages(self) -> list[list[int]]:
        """Pages that come back with each."""
        return [flight.pages for flight in self._in_flight]

    def append(self, batch: Batch) -> None:
        if batch.chunks:
            self._in_flight.append(InFlightBatch(batch))

    def last_with(self, seq: Sequence) -> InFlightBatch | None:
        """The last batch that a sequence runs in."""
        return next((flight for flight in reversed(self._in_flight) if flight.runs(seq)), None)

    def discard(self, seq: Sequence) -> None:
        """A sequence runs no more: whatever is in flight of it does not count."""
        for flight in self._in_flight:
            flight.discarded.add(seq)

    def pop_oldest(self, batch: Batch) -> InFlightBatch:
        """For a commit. A batch that runs again after it was abandoned is not in flight."""
        if not any(flight.batch is batch for flight in self._in_flight):
            ended = {c.seq for c in batch.chunks if c.seq.status is not SequenceStatus.RUNNING}
            return InFlightBatch(batch, discarded=ended)
        assert self._in_flight[0].batch is batch, "the batch before this one is not committed"
        return self._in_flight.pop(0)

    def pop_newest(self, batch: Batch) -> InFlightBatch:
        """To abandon it."""
        assert self._in_flight[-1].batch is batch, "the batch after this one is not abandoned"
        return self._in_flight.pop()
