from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from prefix_store.digest import Digest
from server.engine.batch import Batch
from server.engine.messages import Sampling
from server.engine.page_allocator import PageAllocator
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence

EOS = 2


@dataclass
class Shelf:
    """Prefixes that become ready when a test says so, with their reference counts."""

    ready: set[Digest] = field(default_factory=set)
    refs: dict[Digest, int] = field(default_factory=dict)

    def refer(self, digest: Digest) -> None:
        self.refs[digest] = self.refs.get(digest, 0) + 1

    def release(self, digest: Digest) -> None:
        self.refs[digest] -= 1

    def is_ready(self, digest: Digest) -> bool:
        return digest in self.ready


def scheduler(
    *, num_pages: int = 64, page_size: int = 4, max_num_seqs: int = 8, budget: int = 16
) -> tuple[Scheduler, Shelf]:
    shelf = Shelf()
    allocator = PageAllocator(num_pages, page_size)
    made = Scheduler(
        allocator,
        shelf,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        eos_token_ids=[EOS],
    )
    return made, shelf


def sequence(
    request_id: int, num_tokens: int, *, max_tokens: int = 4, prefix: Digest | None = None
) -> Sequence:
    return Sequence(request_id, prefix, [5] * num_tokens, Sampling(max_tokens=max_tokens))


def shape(batch: Batch) -> list[tuple[int, int, int]]:
    return [(chunk.seq.request_id, chunk.start, chunk.num_tokens) for chunk in batch.chunks]


def step(s: Scheduler, token_id: int = 7) -> Batch:
    batch = s.schedule()
    s.commit(batch, [token_id] * len(batch.sampled))
    s.check()
    return batch


def test_decode_comes_first_and_prefill_fills_the_budget_in_chunks() -> None:
    s, _ = scheduler(budget=10)
    s.add(sequence(1, 3))
    assert shape(step(s)) == [(1, 0, 3)]
    s.add(sequence(2, 20))

    assert shape(step(s)) == [(1, 3, 1), (2, 0, 9)]
    assert shape(step(s)) == [(1, 4, 1), (2, 9, 9)]
    assert shape(step(s)) == [(1, 5, 1), (2, 18, 2)]
    assert shape(step(s)) == [(2, 20, 1)]


def test_a_sequence_whose_prefix_is_loading_holds_up_nobody() -> None:
    s, shelf = scheduler()
    slow = Digest.of(b"slow")
    s.add(sequence(1, 3, prefix=slow))
    s.add(sequence(2, 3))

    assert shape(step(s)) == [(2, 0, 3)]

    shelf.ready.add(slow)
    assert (1, 0, 3) in shape(step(s))


def test_nothing_but_loading_sequences_is_no_work() -> None:
    s, shelf = scheduler()
    s.add(sequence(1, 3, prefix=Digest.of(b"slow")))

    assert not s.has_work
    shelf.ready.add(Digest.of(b"slow"))
    assert s.has_work


def test_an_eos_token_ends_a_sequence_unless_it_is_ignored() -> None:
    s, _ = scheduler()
    s.add(sequence(1, 2))
    stubborn = Sequence(2, None, [5, 5], Sampling(max_tokens=2, ignore_eos=True))
    s.add(stubborn)

    batch = s.schedule()
    deltas = s.commit(batch, [EOS, EOS])

    assert [delta.finish_reason for delta in deltas] == ["stop", None]
    assert s.running == [stubborn]


def test_a_cancelled_sequence_gives_back_its_pages_and_its_prefix() -> None:
    s, shelf = scheduler()
    digest = Digest.of(b"x")
    shelf.ready.add(digest)
    s.add(sequence(1, 9, prefix=digest))
    step(s)

    s.cancel(1)
    s.cancel(1)

    assert s.allocator.num_free == s.allocator.num_pages
    assert shelf.refs[digest] == 0
    assert not s.has_work


def test_a_step_that_failed_can_be_scheduled_again() -> None:
    s, _ = scheduler()
    s.add(sequence(1, 5))
    batch = s.schedule()
    s.abandon(batch)

    assert shape(s.schedule()) == shape(batch)


def test_when_pages_run_out_the_newest_sequence_waits() -> None:
    s, _ = scheduler(num_pages=4, page_size=2, budget=16)
    s.add(sequence(1, 3, max_tokens=5))
    s.add(sequence(2, 3, max_tokens=5))
    batches = [shape(step(s)) for _ in range(3)]

    assert s.num_preemptions == 1
    assert [seq.request_id for seq in s.running] == [1]
    assert batches[-1] == [(1, 4, 1)]


ARRIVALS = st.lists(
    st.tuples(
        st.integers(1, 30),  # prompt tokens
        st.integers(1, 8),  # max_tokens
        st.integers(0, 3),  # prefix, 0 is none
        st.integers(0, 20),  # step at which it arrives
        st.one_of(st.none(), st.integers(0, 30)),  # step at which its client leaves
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(arrivals=ARRIVALS, ready_at=st.lists(st.integers(0, 25), min_size=3, max_size=3))
def test_pages_are_conserved_and_everyone_who_stays_is_served(
    arrivals: list[tuple[int, int, int, int, int | None]], ready_at: list[int]
) -> None:
    s, shelf = scheduler(num_pages=12, page_size=4, max_num_seqs=4, budget=8)
    digests = [Digest.of(bytes([i])) for i in range(3)]
    completions: dict[int, int] = {}
    for now in range(1500):
        shelf.ready |= {d for d, at in zip(digests, ready_at, strict=True) if at <= now}
        for i, (num_tokens, max_tokens, prefix, at, leaves_at) in enumerate(arrivals):
            if at == now:
                digest = digests[prefix - 1] if prefix else None
                s.add(sequence(i, num_tokens, max_tokens=max_tokens, prefix=digest))
            if leaves_at == now:
                s.cancel(i)
        batch = s.schedule()
        assert sum(chunk.num_tokens for chunk in batch.chunks) <= 8
        assert len({chunk.seq.request_id for chunk in batch.chunks}) == len(batch.chunks)
        for delta in s.commit(batch, [7] * len(batch.sampled)):
            completions[delta.request_id] = completions.get(delta.request_id, 0) + 1
        s.check()
        if now > 30 and not s.running and not s.waiting:
            break

    assert not s.running
    assert not s.waiting
    assert s.allocator.num_free == s.allocator.num_pages
    assert not any(shelf.refs.values())
    for i, (_, max_tokens, _, _, leaves_at) in enumerate(arrivals):
        assert leaves_at is not None or completions[i] == max_tokens
