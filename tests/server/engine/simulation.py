"""A simulated device for the scheduler, whose keys and values are plain numbers.

The number of a token is a checksum over everything before it, including the prefix. A page that is
read by the wrong sequence, freed too early or written twice shows in the tokens, or fails at once.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TypeVar

from prefix_store.digest import Digest
from server.engine.loop.steps import Steps
from server.engine.params import Delta, Logprobs
from server.engine.sampling.sampler import INVALID
from server.engine.scheduler.batch import Batch, Chunk
from server.engine.scheduler.scheduler import Scheduler
from server.engine.scheduler.sequence import Sequence, SequenceStatus
from tests.server.engine.scheduler_setup import EOS, FakeResidency

T = TypeVar("T")
R = TypeVar("R")


def kv(prefix: Digest | None, token_ids: Seq[int]) -> list[int]:
    """Return the number that the pool holds for each of these tokens."""
    sums, last = [], zlib.crc32(str(prefix).encode())
    for token_id in token_ids:
        last = zlib.crc32(token_id.to_bytes(4, "little"), last)
        sums.append(last)
    return sums


def sampled_after(value: int) -> int:
    """Return the token sampled after a number; about every ninth is EOS."""
    return EOS if value % 9 == 0 else 3 + value % 89


def expected(prefix: Digest | None, prompt: Seq[int], max_tokens: int) -> list[int]:
    """Return the right completion, computed alone and from the start."""
    token_ids = list(prompt)
    for _ in range(max_tokens):
        token_ids.append(sampled_after(kv(prefix, token_ids)[-1]))
        if token_ids[-1] == EOS:
            break
    return token_ids[len(prompt) :]


@dataclass
class Row:
    """A chunk as launched: what it reads and where it writes are fixed."""

    chunk: Chunk
    token_ids: list[int]
    pages: list[int]


@dataclass
class Launch:
    """A launched step, executed as late as possible: when its tokens are requested."""

    number: int
    rows: list[Row]
    device: Simulation

    def sample(self) -> None: ...

    def tokens(self) -> list[int]:
        return self.device.execute(self)

    def logprobs(self) -> dict[int, Logprobs]:
        return {}

    def prompt_logprobs(self) -> dict[int, Logprobs]:
        return {}


@dataclass
class Simulation:
    """The real `Steps` and scheduler on the simulated device."""

    scheduler: Scheduler
    residency: FakeResidency
    overlap: bool = False
    full: set[int] = field(default_factory=set)
    """Numbers of launches that run out of memory."""
    failing: set[int] = field(default_factory=set)
    """Numbers of launches whose tokens raise an error. Later launches fail too, until the rows are
    run one by one."""
    poisoned: set[int] = field(default_factory=set)
    """Requests whose logits are NaN."""
    completions: dict[int, list[int]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    failures: list[int] = field(default_factory=list)
    num_launches: int = 0
    num_tokens_run: int = 0
    _committed: list[Batch] = field(default_factory=list)
    _broken_since: int | None = None
    _wrong: list[AssertionError] = field(default_factory=list)
    _pool: dict[tuple[int, int], int] = field(default_factory=dict)
    _latest: dict[Sequence, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._steps = Steps(
            self.scheduler,
            self,
            on_commit=self._on_commit,
            on_failure=self._on_failure,
            overlap=self.overlap,
        )

    @property
    def is_idle(self) -> bool:
        s = self.scheduler
        return not (s.running or s.waiting or self._steps.has_work)

    def step(self) -> Batch | None:
        """Run a step and return the batch that was committed, if any."""
        self._committed.clear()
        if self._steps.has_work:
            self._steps.step()
        if self._wrong:  # `Steps` took the assertion for a device failure
            raise self._wrong[0]
        self.scheduler.check()
        return self._committed[0] if self._committed else None

    def run(self, max_steps: int = 2000) -> None:
        for _ in range(max_steps):
            if self.is_idle:
                return
            self.step()
        raise AssertionError("a sequence starves")

    # --- the runner ---

    def launch(self, batch: Batch) -> Launch:
        self.num_launches += 1
        self._checked(self._check, batch)
        if not self._is_scheduled(batch):
            self._broken_since = None  # one row at a time, after a failure
        elif self.num_launches in self.full:
            raise MemoryError
        elif self.num_launches in self.failing and self._broken_since is None:
            self._broken_since = self.num_launches
        rows = [
            Row(chunk, chunk.seq.token_ids[: chunk.end], list(chunk.seq.pages))
            for chunk in batch.chunks
        ]
        return Launch(self.num_launches, rows, self)

    def execute(self, launch: Launch) -> list[int]:
        if self._broken_since is not None and launch.number >= self._broken_since:
            raise RuntimeError("the device has failed")
        executed = [self._checked(self._execute, row) for row in launch.rows]
        return [token_id for token_ids in executed for token_id in token_ids]

    # --- results ---

    def _on_commit(self, batch: Batch, deltas: list[Delta]) -> None:
        self._committed.append(batch)
        for delta in deltas:
            self._checked(self._collect, delta)

    def _collect(self, delta: Delta) -> None:
        assert delta.request_id not in self.reasons, "it has already ended"
        assert delta.request_id not in self.failures, "it has failed"
        self.completions.setdefault(delta.request_id, []).extend(delta.token_ids)
        if delta.finish_reason is not None:
            self.reasons[delta.request_id] = delta.finish_reason

    def _on_failure(self, seq: Sequence, message: str) -> None:
        self.failures.append(seq.request_id)
        if seq.status is not SequenceStatus.FINISHED:
            self.scheduler.finish(seq)

    # --- checks ---

    def _checked(self, check: Callable[[T], R], subject: T) -> R:
        """Keep a failed assertion, which `Steps` would take for a device failure."""
        try:
            return check(subject)
        except AssertionError as wrong:
            self._wrong.append(wrong)
            raise

    def _is_scheduled(self, batch: Batch) -> bool:
        return any(entry.batch is batch for entry in self.scheduler._in_flight._in_flight)

    def _check(self, batch: Batch) -> None:
        s = self.scheduler
        s.check()
        assert batch.chunks
        assert sum(chunk.num_tokens for chunk in batch.chunks) <= s.max_num_batched_tokens
        assert len({chunk.seq for chunk in batch.chunks}) == len(batch.chunks)
        for seq in s.running:
            task = s._queues.task(seq.queue.task)
            limit = task.scheduling.max_concurrency
            assert limit is None or task.num_running <= limit
            assert seq.prefix is None or self.residency.is_resident(seq.prefix)

    def _execute(self, row: Row) -> list[int]:
        """Check what the row reads, write its numbers, and sample if it samples."""
        chunk, seq, size = row.chunk, row.chunk.seq, self.scheduler.allocator.page_size
        assert seq.prefix is None or self.residency.refs[seq.prefix] > 0, (
            "the prefix may have been evicted"
        )
        token_ids = row.token_ids
        assert chunk.input_in_flight == (len(token_ids) < chunk.end)
        if chunk.input_in_flight:
            token_ids = [*token_ids, self._latest[seq]]
        values = kv(seq.prefix, token_ids)
        slots = [(row.pages[i // size], i % size) for i in range(chunk.end)]
        assert [self._pool.get(slot) for slot in slots[: chunk.start]] == values[: chunk.start]
        written = {page for page, _ in slots[chunk.start :]}
        for other in self.scheduler._sequences.values():
            assert other is seq or not written.intersection(other.pages), (
                "writes to a page of another sequence"
            )
        self._pool.update(zip(slots[chunk.start :], values[chunk.start :], strict=True))
        self.num_tokens_run += chunk.num_tokens
        if not chunk.samples:
            return []
        self._latest[seq] = sampled_after(values[-1])
        return [INVALID if seq.request_id in self.poisoned else self._latest[seq]]
