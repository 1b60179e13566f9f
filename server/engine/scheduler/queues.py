"""Sequences by task: who waits, in which order, and how many run."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field

from server.engine.params import SchedulingParams
from server.engine.scheduler.sequence import Sequence, SequenceStatus


@dataclass(eq=False, slots=True)
class TaskQueue:
    """The sequences of one task that wait, in the order of their ranks, and how many run."""

    scheduling: SchedulingParams
    """What the latest request said: weight and limit follow the task's profile."""
    waiting: list[Sequence] = field(default_factory=list)
    num_running: int = 0

    @property
    def is_full(self) -> bool:
        """As many run as may at once."""
        limit = self.scheduling.max_concurrency
        return limit is not None and self.num_running >= limit


class Queues:
    """All queues that hold a sequence, by their key. `is_runnable` says whether one could start."""

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
        """A new sequence waits."""
        key = seq.scheduling.queue
        self._queues.setdefault(key, TaskQueue(seq.scheduling)).scheduling = seq.scheduling
        insort(self._queues[key].waiting, seq, key=by_rank)

    def first(self, key: int) -> Sequence | None:
        """Who of a task is to start next; None if nobody can, or as many run as may."""
        queue = self._queues[key]
        return None if queue.is_full else next(filter(self._is_runnable, queue.waiting), None)

    def start(self, seq: Sequence) -> None:
        """One that waited runs."""
        queue = self._queues[seq.scheduling.queue]
        queue.waiting.remove(seq)
        queue.num_running += 1
        seq.status = SequenceStatus.RUNNING

    def preempt(self, seq: Sequence) -> None:
        """One that ran waits again, where it waited before."""
        queue = self._queues[seq.scheduling.queue]
        queue.num_running -= 1
        insort(queue.waiting, seq, key=by_rank)
        seq.status = SequenceStatus.WAITING

    def remove(self, seq: Sequence) -> None:
        """One that ran or waited has ended; a queue without sequences ends with it."""
        queue = self._queues[seq.scheduling.queue]
        if seq.status is SequenceStatus.RUNNING:
            queue.num_running -= 1
        else:
            queue.waiting.remove(seq)
        seq.status = SequenceStatus.FINISHED
        if not queue.waiting and not queue.num_running:
            del self._queues[seq.scheduling.queue]


def by_rank(seq: Sequence) -> tuple[int, int]:
    return seq.rank
