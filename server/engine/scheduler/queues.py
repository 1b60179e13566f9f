"""Queues of sequences, one for each client of each task."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from server.engine.params import NO_CLIENT, QueueKey, SchedulingParams
from server.engine.scheduler.sequence import Sequence, SequenceStatus


@dataclass(eq=False, slots=True)
class Task:
    """Weight and limit of a task, for all of its queues together."""

    scheduling: SchedulingParams
    """Parameters of the latest request: they carry the current weight and limit of the task."""
    num_queues: int = 0
    num_running: int = 0

    @property
    def is_full(self) -> bool:
        """Whether the limit of concurrent sequences is reached."""
        limit = self.scheduling.max_concurrency
        return limit is not None and self.num_running >= limit


@dataclass(eq=False, slots=True)
class Queue:
    """Waiting sequences of a client of a task, in order of rank, and the number of running ones."""

    task: Task
    waiting: list[Sequence] = field(default_factory=list)
    num_running: int = 0


class Queues:
    """All queues with sequences, by key. `is_runnable`: whether a sequence could start now."""

    def __init__(self, is_runnable: Callable[[Sequence], bool]) -> None:
        self._is_runnable = is_runnable
        self._queues: dict[QueueKey, Queue] = {}
        self._tasks: dict[int, Task] = {}
        self._num_tasks: Counter[int] = Counter()  # of each client
        self._client_weights: dict[int, float] | None = None

    @property
    def waiting(self) -> list[Sequence]:
        return [seq for queue in self._queues.values() for seq in queue.waiting]

    @property
    def num_clients(self) -> int:
        """Number of clients with sequences. Clients without an API key count as one."""
        return len(self._num_tasks)

    @property
    def weights(self) -> dict[QueueKey, float]:
        """Weight of each queue: its task's, divided by the number of tasks of its client.

        A client so gains nothing by using more tasks. Without keys the weights are the tasks':
        there it is not known which requests are of one client.
        """
        return {key: self._weight(key, queue) for key, queue in self._queues.items()}

    @property
    def client_weights(self) -> dict[int, float]:
        """Weight of each client: the sum over its queues."""
        if self._client_weights is None:
            weights = self._client_weights = dict[int, float]()
            for key, weight in self.weights.items():
                weights[key.client] = weights.get(key.client, 0.0) + weight
        return self._client_weights

    def num_running(self, key: QueueKey) -> int:
        return self._queues[key].num_running

    def task(self, number: int) -> Task:
        return self._tasks[number]

    def add(self, seq: Sequence) -> None:
        """Add a new, waiting sequence."""
        key = seq.queue
        task = self._tasks.setdefault(key.task, Task(seq.scheduling))
        task.scheduling = seq.scheduling
        self._client_weights = None
        if key not in self._queues:
            self._queues[key] = Queue(task)
            task.num_queues += 1
            self._num_tasks[key.client] += 1
        insort(self._queues[key].waiting, seq, key=by_rank)

    def first(self, key: QueueKey) -> Sequence | None:
        """Return the next sequence to start; None if none can start or the task is full."""
        return None if self._queues[key].task.is_full else self.first_waiting(key)

    def first_waiting(self, key: QueueKey) -> Sequence | None:
        """Like `first`, without the task's limit."""
        return next(filter(self._is_runnable, self._queues[key].waiting), None)

    def num_waiting_tokens(self, key: QueueKey, most: int) -> int:
        """Return how many tokens the sequences have that could start, `most` if there are more."""
        num_tokens = 0
        if not self._queues[key].task.is_full:
            for seq in filter(self._is_runnable, self._queues[key].waiting):
                num_tokens += len(seq.token_ids)
                if num_tokens >= most:
                    break
        return min(num_tokens, most)

    def start(self, seq: Sequence) -> None:
        """Mark a waiting sequence as running. Its queue is then the last in `weights`, so that the
        others of a full task come first when a place in it is free."""
        queue = self._queues[seq.queue] = self._queues.pop(seq.queue)
        queue.waiting.remove(seq)
        self._count_running(seq, 1)
        seq.status = SequenceStatus.RUNNING

    def preempt(self, seq: Sequence) -> None:
        """Put a running sequence back to its place among the waiting ones."""
        self._count_running(seq, -1)
        insort(self._queues[seq.queue].waiting, seq, key=by_rank)
        seq.status = SequenceStatus.WAITING

    def remove(self, seq: Sequence) -> None:
        """Remove a finished sequence, and its queue once that is empty."""
        queue = self._queues[seq.queue]
        if seq.status is SequenceStatus.RUNNING:
            self._count_running(seq, -1)
        else:
            queue.waiting.remove(seq)
        seq.status = SequenceStatus.FINISHED
        if not queue.waiting and not queue.num_running:
            self._remove_queue(seq.queue)

    def _weight(self, key: QueueKey, queue: Queue) -> float:
        num_tasks = 1 if key.client == NO_CLIENT else self._num_tasks[key.client]
        return queue.task.scheduling.weight / num_tasks

    def _count_running(self, seq: Sequence, change: int) -> None:
        queue = self._queues[seq.queue]
        queue.num_running += change
        queue.task.num_running += change

    def _remove_queue(self, key: QueueKey) -> None:
        task = self._queues.pop(key).task
        self._client_weights = None
        task.num_queues -= 1
        if not task.num_queues:
            del self._tasks[key.task]
        self._num_tasks[key.client] -= 1
        if not self._num_tasks[key.client]:
            del self._num_tasks[key.client]


def by_rank(seq: Sequence) -> tuple[int, int]:
    """Sort key of sequences."""
    return seq.rank
