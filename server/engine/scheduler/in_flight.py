"""Batches that are scheduled and not yet committed, and the resources that wait for a commit."""

from __future__ import annotations

from dataclasses import dataclass, field

from prefix_store.digest import Digest
from server.engine.scheduler.batch import Batch
from server.engine.scheduler.sequence import Sequence, SequenceStatus

MAX_IN_FLIGHT = 2
"""The running batch, and the next one, launched before the tokens of the first are known."""


@dataclass(eq=False, slots=True)
class InFlightBatch:
    """A batch that the device may still be running."""

    batch: Batch
    discarded: set[Sequence] = field(default_factory=set)
    """Sequences that were finished or preempted meanwhile. Their tokens are dropped at commit."""
    pages: list[int] = field(default_factory=list)
    prefixes: list[Digest] = field(default_factory=list)
    """Pages and prefixes of such sequences, to be released with this batch."""

    def runs(self, seq: Sequence) -> bool:
        return any(chunk.seq is seq for chunk in self.batch.chunks)


class InFlightBatches:
    """The batches in flight, oldest first."""

    def __init__(self) -> None:
        self._in_flight: list[InFlightBatch] = []

    @property
    def is_full(self) -> bool:
        return len(self._in_flight) == MAX_IN_FLIGHT

    @property
    def pages(self) -> list[list[int]]:
        """For each batch, the pages that are freed when it leaves."""
        return [flight.pages for flight in self._in_flight]

    def append(self, batch: Batch) -> None:
        if batch.chunks:
            self._in_flight.append(InFlightBatch(batch))

    def last_with(self, seq: Sequence) -> InFlightBatch | None:
        """Return the newest batch that runs a sequence, if any."""
        return next((flight for flight in reversed(self._in_flight) if flight.runs(seq)), None)

    def discard(self, seq: Sequence) -> None:
        """Discard the results of a sequence in all batches in flight."""
        for flight in self._in_flight:
            flight.discarded.add(seq)

    def pop_oldest(self, batch: Batch) -> InFlightBatch:
        """Remove and return the oldest batch, to commit it.

        A batch that was abandoned and has run again is not in flight: it is returned as a new one.
        """
        if not any(flight.batch is batch for flight in self._in_flight):
            ended = {c.seq for c in batch.chunks if c.seq.status is not SequenceStatus.RUNNING}
            return InFlightBatch(batch, discarded=ended)
        assert self._in_flight[0].batch is batch, "the batch before this one is not committed"
        return self._in_flight.pop(0)

    def pop_newest(self, batch: Batch) -> InFlightBatch:
        """Remove and return the newest batch, to abandon it."""
        assert self._in_flight[-1].batch is batch, "the batch after this one is not abandoned"
        return self._in_flight.pop()
