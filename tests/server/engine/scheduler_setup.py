"""A scheduler with a fake residency, and short ways to make sequences and to step."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from prefix_store.digest import Digest
from server.engine.params import SamplingParams, SchedulingParams
from server.engine.scheduler.batch import Batch
from server.engine.scheduler.page_allocator import PageAllocator
from server.engine.scheduler.prompt_cache import PromptCache
from server.engine.scheduler.scheduler import Scheduler
from server.engine.scheduler.sequence import Sequence

EOS = 2


@dataclass
class FakeResidency:
    """Fake residency: reference counts, and prefixes that a test makes resident."""

    resident: set[Digest] = field(default_factory=set)
    refs: dict[Digest, int] = field(default_factory=dict)

    def acquire(self, digest: Digest) -> None:
        self.refs[digest] = self.refs.get(digest, 0) + 1

    def release(self, digest: Digest) -> None:
        self.refs[digest] -= 1
        assert self.refs[digest] >= 0

    def is_resident(self, digest: Digest) -> bool:
        return digest in self.resident

    def evict_idle(self) -> None:
        self.resident = {digest for digest in self.resident if self.refs.get(digest)}


def make_scheduler(
    *,
    num_pages: int = 64,
    page_size: int = 4,
    max_num_seqs: int = 8,
    budget: int = 16,
    prompt_cache: bool = False,
) -> tuple[Scheduler, FakeResidency]:
    residency = FakeResidency()
    allocator = PageAllocator(num_pages, page_size)
    made = Scheduler(
        allocator,
        residency,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        eos_token_ids=[EOS],
        prompt_cache=PromptCache(allocator) if prompt_cache else None,
    )
    return made, residency


def sequence(
    request_id: int,
    prompt: int | Seq[int],
    *,
    max_tokens: int = 4,
    prefix: Digest | None = None,
    queue: int = 0,
    client: int = 0,
    weight: float = 1.0,
    limit: int | None = None,
    priority: int = 0,
) -> Sequence:
    """Make a sequence. `prompt`: token ids, or their number."""
    token_ids = [5] * prompt if isinstance(prompt, int) else list(prompt)
    scheduling = SchedulingParams(
        queue=queue, client=client, weight=weight, max_concurrency=limit, priority=priority
    )
    return Sequence(
        request_id, prefix, token_ids, SamplingParams(max_tokens=max_tokens), scheduling
    )


def shape(batch: Batch) -> list[tuple[int, int, int]]:
    """Return (request id, start, number of tokens) of every chunk."""
    return [(chunk.seq.request_id, chunk.start, chunk.num_tokens) for chunk in batch.chunks]


def step(s: Scheduler, token_id: int = 7) -> Batch:
    """Schedule a batch and commit it at once."""
    batch = s.schedule()
    s.commit(batch, [token_id] * len(batch.sampled))
    s.check()
    return batch
