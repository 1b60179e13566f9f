"""Scheduling a step while the previous one is in flight."""

from __future__ import annotations

import pytest

from prefix_store.digest import Digest
from server.engine.params import SamplingParams, SchedulingParams
from server.engine.scheduler.batch import Batch
from server.engine.scheduler.sequence import Sequence
from tests.server.engine.scheduler_setup import EOS, make_scheduler, sequence, shape
from tests.server.engine.simulation import Simulation, expected


def test_a_row_in_flight_counts_as_one_token_of_unknown_id() -> None:
    s, _ = make_scheduler()
    seq = sequence(1, 3)
    s.add(seq)
    first = s.schedule()
    second = s.schedule()

    assert shape(first) == [(1, 0, 3)]
    assert shape(second) == [(1, 3, 1)]
    (chunk,) = second.chunks
    assert chunk.samples
    assert chunk.input_in_flight
    assert chunk.num_completion_tokens == 1
    assert not first.chunks[0].input_in_flight

    assert s.commit(first, [7])[0].token_ids == [7]
    assert seq.token_ids == [5, 5, 5, 7]
    assert seq.num_computed == 3
    assert shape(s.schedule()) == [(1, 4, 1)]
    assert s.commit(second, [8])[0].token_ids == [8]
    assert seq.num_computed == 4


def test_chunks_of_a_prompt_follow_each_other_without_a_commit() -> None:
    s, _ = make_scheduler(budget=8)
    s.add(sequence(1, 20))
    batches = [s.schedule(), s.schedule()]
    s.commit(batches[0], [])
    batches.append(s.schedule())

    assert [shape(batch) for batch in batches] == [[(1, 0, 8)], [(1, 8, 8)], [(1, 16, 4)]]
    assert [len(batch.sampled) for batch in batches] == [0, 0, 1]


def test_three_steps_at_once_are_refused_and_commits_keep_their_order() -> None:
    s, _ = make_scheduler()
    s.add(sequence(1, 3))
    first, second = s.schedule(), s.schedule()

    with pytest.raises(AssertionError):
        s.schedule()
    with pytest.raises(AssertionError):
        s.commit(second, [7])
    with pytest.raises(AssertionError):
        s.abandon(first)


def test_the_last_token_allowed_by_max_tokens_wastes_no_row() -> None:
    s, _ = make_scheduler()
    s.add(sequence(1, 3, max_tokens=2))
    first, second = s.schedule(), s.schedule()
    s.commit(first, [7])

    assert not s.has_work
    assert shape(s.schedule()) == []
    assert s.commit(second, [8])[0].finish_reason == "length"
    assert s.allocator.num_free == s.allocator.num_pages


def test_a_late_eos_discards_one_row_and_frees_its_pages_after_it() -> None:
    s, residency = make_scheduler()
    digest = Digest.of(b"x")
    residency.resident.add(digest)
    s.add(sequence(1, 3, prefix=digest))
    first, second = s.schedule(), s.schedule()

    (delta,) = s.commit(first, [EOS])
    assert delta.finish_reason == "stop"
    assert s.allocator.num_free < s.allocator.num_pages
    assert residency.refs[digest] == 1
    s.check()

    assert s.commit(second, [7]) == []
    assert s.allocator.num_free == s.allocator.num_pages
    assert residency.refs[digest] == 0


def test_a_cancelled_sequence_keeps_its_pages_until_no_step_in_flight_runs_it() -> None:
    s, _ = make_scheduler(num_pages=2, page_size=4)
    s.add(sequence(1, 3))
    first, second = s.schedule(), s.schedule()
    s.cancel(1)
    s.add(sequence(2, 7))

    assert s.commit(first, [7]) == []
    third = s.schedule()
    assert shape(third) == [(2, 0, 7)] or shape(third) == []
    assert s.allocator.num_free <= 1
    s.commit(second, [7])
    s.check()


def test_a_sequence_waits_for_pages_of_the_step_in_flight_instead_of_preempting_more() -> None:
    s, _ = make_scheduler(num_pages=6, page_size=2, budget=32)
    for i in range(3):
        s.add(sequence(i, 4, max_tokens=4))
    first = s.schedule()  # 2 pages each: the pool is full
    second = s.schedule()

    assert s.num_preemptions == 1
    assert shape(second) == []
    s.commit(first, [7, 8, 9])
    assert [len(seq.token_ids) for seq in (*s.running, *s.waiting)] == [5, 5, 4]
    assert shape(s.schedule()) == [(0, 4, 1), (1, 4, 1)]
    assert s.num_preemptions == 1


def test_steps_are_abandoned_the_newest_first_and_run_again() -> None:
    s, _ = make_scheduler()
    s.add(sequence(1, 3))
    s.add(sequence(2, 3))
    first, second = s.schedule(), s.schedule()
    s.abandon(second)
    again = s.abandon(first)

    assert shape(again) == shape(first)
    for chunk in again.chunks:
        s.commit(Batch([chunk]), [7])
    assert shape(s.schedule()) == shape(second)


def test_a_sequence_that_ended_meanwhile_is_not_run_again() -> None:
    s, _ = make_scheduler()
    s.add(sequence(1, 3))
    s.add(sequence(2, 3))
    first, second = s.schedule(), s.schedule()
    s.commit(first, [EOS, 7])
    s.cancel(2)

    assert shape(s.abandon(second)) == []
    assert s.allocator.num_free == s.allocator.num_pages


def test_an_input_known_by_now_is_no_longer_in_flight() -> None:
    s, _ = make_scheduler()
    s.add(sequence(1, 3))
    first, second = s.schedule(), s.schedule()
    s.commit(first, [7])

    assert not s.abandon(second).chunks[0].input_in_flight


def test_a_compile_in_flight_samples_nothing() -> None:
    s, _ = make_scheduler(budget=4)
    seq = Sequence(
        1, None, [0] * 6, SamplingParams(max_tokens=0), SchedulingParams(), compiles=True
    )
    s.add(seq)
    first, second = s.schedule(), s.schedule()
    assert not s.has_work

    s.commit(first, [])
    assert seq.num_uncomputed == 2
    s.commit(second, [])
    assert seq.num_uncomputed == 0


@pytest.mark.parametrize("overlap", [False, True])
def test_overlap_changes_no_token_and_computes_few_extra_ones(overlap: bool) -> None:
    s, residency = make_scheduler(num_pages=200, budget=32)
    run = Simulation(s, residency, overlap=overlap)
    prompts = [list(range(10 + i, 20 + 2 * i)) for i in range(12)]
    right = [expected(None, prompt, 20) for prompt in prompts]
    for i, prompt in enumerate(prompts):
        s.add(sequence(i, prompt, max_tokens=20))
    run.run()

    assert [run.completions[i] for i in range(12)] == right
    needed = sum(len(p) + len(c) - 1 for p, c in zip(prompts, right, strict=True))
    num_wasted = sum(c[-1] == EOS and len(c) < 20 for c in right) if overlap else 0
    assert run.num_tokens_run == needed + num_wasted
