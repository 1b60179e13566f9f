from __future__ import annotations

from prefix_store.digest import Digest
from server.engine.params import SamplingParams
from server.engine.scheduler.sequence import Sequence
from tests.server.engine.scheduler_setup import EOS, make_scheduler, sequence, shape, step


def test_decode_comes_first_and_prefill_fills_the_budget_in_chunks() -> None:
    s, _ = make_scheduler(budget=10)
    s.add(sequence(1, 3))
    assert shape(step(s)) == [(1, 0, 3)]
    s.add(sequence(2, 20))

    assert shape(step(s)) == [(1, 3, 1), (2, 0, 9)]
    assert shape(step(s)) == [(1, 4, 1), (2, 9, 9)]
    assert shape(step(s)) == [(1, 5, 1), (2, 18, 2)]
    assert shape(step(s)) == [(2, 20, 1)]


def test_a_sequence_whose_prefix_is_loading_blocks_no_other() -> None:
    s, residency = make_scheduler()
    slow = Digest.of(b"slow")
    s.add(sequence(1, 3, prefix=slow))
    s.add(sequence(2, 3))

    assert shape(step(s)) == [(2, 0, 3)]

    residency.resident.add(slow)
    assert (1, 0, 3) in shape(step(s))


def test_sequences_whose_prefix_is_loading_are_no_work() -> None:
    s, residency = make_scheduler()
    s.add(sequence(1, 3, prefix=Digest.of(b"slow")))

    assert not s.has_work
    residency.resident.add(Digest.of(b"slow"))
    assert s.has_work


def test_an_eos_token_ends_a_sequence_unless_it_is_ignored() -> None:
    s, _ = make_scheduler()
    s.add(sequence(1, 2))
    stubborn = Sequence(2, None, [5, 5], SamplingParams(max_tokens=2, ignore_eos=True))
    s.add(stubborn)

    batch = s.schedule()
    deltas = s.commit(batch, [EOS, EOS])

    assert [delta.finish_reason for delta in deltas] == ["stop", None]
    assert s.running == [stubborn]


def test_a_stop_token_ends_a_sequence_even_where_eos_is_ignored() -> None:
    s, _ = make_scheduler()
    asked = SamplingParams(max_tokens=9, ignore_eos=True, stop_token_ids=(7, EOS + 1))
    for request_id in (1, 2, 3):
        s.add(Sequence(request_id, None, [5, 5], asked))
    last = Sequence(4, None, [5, 5], SamplingParams(max_tokens=1, stop_token_ids=(7,)))
    s.add(last)

    deltas = s.commit(s.schedule(), [7, EOS, 8, 7])

    assert [delta.token_ids for delta in deltas] == [[7], [EOS], [8], [7]]
    assert [delta.finish_reason for delta in deltas] == ["stop", None, None, "stop"]


def test_a_cancelled_sequence_releases_its_pages_and_its_prefix() -> None:
    s, residency = make_scheduler()
    digest = Digest.of(b"x")
    residency.resident.add(digest)
    s.add(sequence(1, 9, prefix=digest))
    step(s)

    s.cancel(1)
    s.cancel(1)

    assert s.allocator.num_free == s.allocator.num_pages
    assert residency.refs[digest] == 0
    assert not s.has_work


def test_a_step_that_failed_can_be_scheduled_again() -> None:
    s, _ = make_scheduler()
    s.add(sequence(1, 5))
    batch = s.schedule()
    s.abandon(batch)

    assert shape(s.schedule()) == shape(batch)


def test_when_pages_run_out_the_newest_sequence_waits() -> None:
    s, _ = make_scheduler(num_pages=4, page_size=2, budget=16)
    s.add(sequence(1, 3, max_tokens=5))
    s.add(sequence(2, 3, max_tokens=5))
    batches = [shape(step(s)) for _ in range(3)]

    assert s.num_preemptions == 1
    assert [seq.request_id for seq in s.running] == [1]
    assert batches[-1] == [(1, 4, 1)]
