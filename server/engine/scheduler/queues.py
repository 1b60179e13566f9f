"""Queues of sequences, one per task."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field

from server.engine.params import SchedulingParams
from server.engine.scheduler.sequence import Sequence, SequenceStatus


@dataclass(eq=False, slots=True)
class TaskQueue:
    """Waiting sequences of one task, in order of rank, and the number of running ones."""

    scheduling: SchedulingParams
    """Parameters of the latest request: they carry the current weight and limit of the task."""
    waiting: list[Sequence] = field(default_factory=list)
    num_running: int = 0

    @property
    def is_full(self) -> bool:
        """Whether the limit of concurrent sequences is reached."""
        limit = self.scheduling.max_concurrency
        return limit is not None and self.num_running >= limit


class Queues:
    """All queues with sequences, by key. `is_runnable`: whether a sequence could start now."""

    def __init__(self, is_runnable: Callable[[Sequence], bool]) -> None:
        self._is_runnable = is_runnable
        self._queues: dict[int, TaskQueue] = {}

    @property
    def waiting(self) -> list[Sequence]:
        return [seq for queue in self._queues.values() for seq in queue.waiting]

    @property
    def weights(self) -> dict[int, float]:
        return {key: queue.scheduling.weight for key, queue in self._queues.items()}

    def num_running(self, key: int) -> int:
        return self._queues[key].num_running

    def add(self, seq: Sequence) -> None:
        """Add a new, waiting sequence."""
        key = seq.scheduling.queue
        self._queues.setdefault(key, TaskQueue(seq.scheduling)).scheduling = seq.scheduling
        insort(self._queues[key].waiting, seq, key=by_rank)

    def first(self, key: int) -> Sequence | None:
        """Return the next sequence to start; None if none can start or the queue is full."""
        queue = self._queues[key]
        return None if queue.is_full else next(filter(self._is_runnable, queue.waiting), None)

    def start(self, seq: Sequence) -> None:
        """Mark a waiting sequence as running."""
        queue = self._queues[seq.scheduling.queue]
        queue.waiting.remove(seq)
        queue.num_running += 1
        seq.status = SequenceStatus.RUNNING

    def preempt(self, seq: Sequence) -> None:
        """Put a running sequence back to its place among the waiting ones."""
        queue = self._queues[seq.scheduling.queue]
        queue.num_running -= 1
        insort(queue.waiting, seq, key=by_rank)
        seq.status = SequenceStatus.WAITING

    def remove(self, seq: Sequence) -> None:
        """Remove a finished sequence, and its queue once that is empty."""
        queue = self._queues[seq.scheduling.queue]
        if seq.status is SequenceStatus.RUNNING:
            queue.num_running -= 1
        else:
            queue.waiting.remove(seq)
        seq.status = SequenceStatus.FINISHED
        if not queue.waiting and not queue.num_running:
            del self._queues[seq.scheduling.queue]


def by_rank(seq: Sequence) -> tuple[int, int]:
    """Sort key of sequences."""
    return seq.rank
