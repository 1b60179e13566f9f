"""Fair sharing between tasks, and the order of sequences within a task."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefix_store.digest import Digest
from server.engine.scheduler.fair_share import QUANTUM, FairShare
from server.engine.scheduler.scheduler import AGEING_STEPS
from tests.server.engine.scheduler_setup import make_scheduler, sequence, shape, step


def test_a_single_request_does_not_wait_for_a_thousand_of_another_task() -> None:
    s, _ = make_scheduler(num_pages=1000, max_num_seqs=8, budget=64)
    for i in range(1000):
        s.add(sequence(i, 20, max_tokens=10, queue=1))
    for _ in range(30):
        step(s)
    s.add(sequence(5000, 20, max_tokens=10, queue=2))

    num_steps = 1
    while 5000 not in [chunk.seq.request_id for chunk in step(s).chunks]:
        num_steps += 1

    assert len(s.waiting) > 900
    assert num_steps <= 10 + 1, "it starts when the next sequence ends"


def test_a_turn_is_a_quantum_times_the_weight() -> None:
    fair_share = FairShare(quantum=10)
    weights = {1: 1.0, 2: 3.0, 3: 0.5}
    taken = dict.fromkeys(weights, 0)
    order = []
    fair_share.start_step(weights)
    for _ in range(900):
        key = fair_share.next_queue(weights)
        if order[-1:] != [key]:
            order.append(key)
        taken[key] += 1
        fair_share.charge(key, 1)

    assert order[:6] == [1, 2, 3, 1, 2, 3]
    assert taken == {1: 200, 2: 600, 3: 100}


def test_a_debt_is_paid_off_before_the_next_turn() -> None:
    fair_share = FairShare(quantum=10)
    fair_share.start_step({1: 1.0, 2: 1.0})
    fair_share.charge(1, 35)  # decoded
    taken = {1: 0, 2: 0}
    for _ in range(65):
        key = fair_share.next_queue({1, 2})
        taken[key] += 1
        fair_share.charge(key, 1)

    assert abs(taken[2] - (taken[1] + 35)) <= 10


def test_a_queue_without_work_loses_its_debt_and_a_blocked_one_blocks_no_other() -> None:
    fair_share = FairShare(quantum=10)
    fair_share.start_step({1: 1.0, 2: 1.0})
    fair_share.charge(1, 10_000)
    assert fair_share.next_queue({1}) == 1
    assert fair_share.budget(1) == 10

    fair_share.start_step({2: 1.0})
    fair_share.charge(1, 10_000)  # not charged
    fair_share.start_step({1: 1.0, 2: 1.0})
    fair_share.charge(2, fair_share.budget(2))

    assert fair_share.next_queue({1, 2}) == 1


WEIGHTS = st.lists(st.sampled_from((0.25, 0.5, 1.0, 2.0, 4.0)), min_size=2, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    weights=WEIGHTS,
    prompts=st.lists(st.integers(1, 400), min_size=5, max_size=5),
    max_tokens=st.lists(st.integers(1, 30), min_size=5, max_size=5),
    budget=st.sampled_from((16, 64, 512)),
    num_seqs=st.sampled_from((2, 5, 16)),
)
def test_tasks_that_always_have_work_get_tokens_by_weight(
    weights: list[float], prompts: list[int], max_tokens: list[int], budget: int, num_seqs: int
) -> None:
    """Over any period, the tokens per weight of two tasks differ by at most two quanta, plus what
    running sequences can still compute without a turn."""
    s, _ = make_scheduler(num_pages=4000, max_num_seqs=num_seqs, budget=budget)
    num_requests = 0
    served = [0.0] * len(weights)
    lead: dict[tuple[int, int], list[float]] = {}
    for _ in range(200):
        num_waiting = Counter(seq.scheduling.queue for seq in s.waiting)
        for key, weight in enumerate(weights):
            for _ in range(num_seqs - num_waiting[key]):
                num_requests += 1
                s.add(
                    sequence(
                        num_requests, prompts[key], max_tokens=max_tokens[key], queue=key,
                        weight=weight,
                    )
                )  # fmt: skip
        batch = s.schedule()
        s.commit(batch, [7] * len(batch.sampled))
        for chunk in batch.chunks:
            served[chunk.seq.scheduling.queue] += chunk.num_tokens / chunk.seq.scheduling.weight
        for a in range(len(weights)):
            for b in range(a):
                lead.setdefault((a, b), []).append(served[a] - served[b])

    for (a, b), leads in lead.items():
        without_turn = sum(
            num_seqs * (prompts[key] + max_tokens[key]) / weights[key] for key in (a, b)
        )
        assert max(leads) - min(leads) <= 2 * (QUANTUM + 4) + without_turn


@settings(max_examples=60, deadline=None)
@given(
    weights=WEIGHTS,
    prompts=st.lists(st.integers(1, 400), min_size=5, max_size=5),
    budget=st.sampled_from((16, 64, 512)),
)
def test_with_prompts_only_tasks_differ_by_at_most_two_quanta(
    weights: list[float], prompts: list[int], budget: int
) -> None:
    s, _ = make_scheduler(num_pages=4000, page_size=16, max_num_seqs=512, budget=budget)
    served = [0.0] * len(weights)
    lead: dict[tuple[int, int], list[float]] = {}
    for i in range(len(weights) * 100):
        key = i % len(weights)
        s.add(sequence(i, prompts[key], max_tokens=1, queue=key, weight=weights[key]))
    while True:
        batch = s.schedule()
        s.commit(batch, [7] * len(batch.sampled))
        if len({seq.scheduling.queue for seq in s.waiting}) < len(weights):
            break
        for chunk in batch.chunks:
            served[chunk.seq.scheduling.queue] += chunk.num_tokens / chunk.seq.scheduling.weight
        for a in range(len(weights)):
            for b in range(a):
                lead.setdefault((a, b), []).append(served[a] - served[b])

    for leads in lead.values():  # none, if the first step computed all prompts of a task
        assert max(leads) - min(leads) <= 2 * (QUANTUM + 4)


def test_a_task_at_its_concurrency_limit_does_not_block_others() -> None:
    s, _ = make_scheduler(max_num_seqs=6)
    for i in range(5):
        s.add(sequence(i, 2, queue=1, limit=2))
    for i in range(5, 10):
        s.add(sequence(i, 2, queue=2))

    step(s)

    assert [seq.scheduling.queue for seq in s.running].count(1) == 2
    assert [seq.scheduling.queue for seq in s.running].count(2) == 4


def test_the_latest_request_sets_the_limit() -> None:
    s, _ = make_scheduler()
    for i in range(4):
        s.add(sequence(i, 2, queue=1, limit=1))
    step(s)
    s.add(sequence(4, 2, queue=1, limit=3))

    step(s)

    assert len(s.running) == 3


def test_a_lower_priority_value_goes_first_within_its_task_only() -> None:
    s, _ = make_scheduler(max_num_seqs=3)
    for i, (queue, priority) in enumerate([(1, 5), (1, 0), (1, -5), (2, 9)]):
        s.add(sequence(i, 2, queue=queue, priority=priority))

    assert shape(s.schedule()) == [(2, 0, 2), (1, 0, 2), (0, 0, 2)]


def test_a_task_with_low_priority_requests_still_gets_turns() -> None:
    s, _ = make_scheduler(max_num_seqs=2, budget=600, num_pages=500)
    for i in range(4):
        s.add(sequence(i, 300, queue=1, priority=-5))
    s.add(sequence(4, 300, queue=2, priority=900))

    assert {chunk.seq.request_id for chunk in step(s).chunks} == {0, 4}


def test_a_prompt_of_higher_priority_overtakes_one_that_is_half_computed() -> None:
    s, _ = make_scheduler(budget=16)
    s.add(sequence(1, 40))
    step(s)
    s.add(sequence(2, 4, priority=-1))

    assert shape(step(s)) == [(2, 0, 4), (1, 16, 12)]


@pytest.mark.parametrize("gap", [1, 4])
def test_a_low_priority_ages(gap: int) -> None:
    s, _ = make_scheduler(max_num_seqs=1)
    s.add(sequence(0, 1, max_tokens=1, priority=gap))
    num_steps = 0
    while True:
        num_steps += 1
        s.add(sequence(num_steps, 1, max_tokens=1))
        if shape(step(s))[0][0] == 0:
            break

    assert num_steps - 1 == gap * AGEING_STEPS


def test_the_newest_of_the_lowest_priority_is_preempted() -> None:
    s, _ = make_scheduler(num_pages=10, page_size=2, budget=32)
    for i, priority in enumerate([1, 0, 1, 0]):
        s.add(sequence(i, 3, max_tokens=6, priority=priority))

    while not s.num_preemptions:
        step(s)
    assert s.num_preemptions == 1
    assert [seq.request_id for seq in s.waiting] == [2]

    while s.num_preemptions == 1:
        step(s)
    assert [seq.request_id for seq in s.waiting] == [0, 2]


def test_a_sequence_that_waits_for_pages_is_not_overtaken() -> None:
    s, _ = make_scheduler(num_pages=8, page_size=4, budget=64)
    s.add(sequence(1, 20, max_tokens=3, queue=1))
    step(s)
    s.add(sequence(2, 27, max_tokens=1, queue=2))
    s.add(sequence(3, 1, max_tokens=1, queue=3))

    assert shape(step(s)) == [(1, 20, 1)]
    assert shape(step(s)) == [(1, 21, 1)]
    assert shape(step(s)) == [(2, 0, 27), (3, 0, 1)]


def test_a_preempted_sequence_is_not_admitted_again_in_the_same_step() -> None:
    s, _ = make_scheduler(num_pages=20, page_size=2, budget=30)
    s.add(sequence(1, 30, queue=1, weight=0.01))
    s.add(sequence(3, 3, queue=3, priority=1))
    s.add(sequence(2, 11, queue=2))
    assert shape(step(s)) == [(1, 0, 16), (3, 0, 3), (2, 0, 11)]
    s.add(sequence(4, 1, queue=3, priority=1))

    # Sequence 1 needs 7 pages and 4 are free. The 2 pages of sequence 3 and the 6 of sequence 2 are
    # more than it needs: sequences 3 and 4 would fit again, but have to wait for the next step.
    assert shape(step(s)) == [(1, 16, 14)]
    assert s.num_preemptions == 3, "sequence 4 had just been admitted"
    assert s.allocator.num_free == 5


def test_a_task_whose_prefix_is_loading_accumulates_no_credit() -> None:
    s, residency = make_scheduler(num_pages=4000, max_num_seqs=64, budget=64)
    slow = Digest.of(b"slow")
    for i in range(100):
        s.add(sequence(i, 64, max_tokens=1, queue=1))
        s.add(sequence(1000 + i, 64, max_tokens=1, queue=2, prefix=slow))
    for _ in range(40):
        step(s)
    residency.resident.add(slow)

    served = [0, 0]
    for _ in range(40):
        for chunk in step(s).chunks:
            served[chunk.seq.scheduling.queue - 1] += chunk.num_tokens

    assert abs(served[0] - served[1]) <= 2 * QUANTUM
