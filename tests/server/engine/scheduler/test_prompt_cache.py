"""The prompt cache: pages are shared by sequences with the same prefix, and by no others."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefix_store.digest import Digest
from server.engine.attention.ref import RefBackend
from server.engine.params import SamplingParams, SchedulingParams
from server.engine.scheduler import prompt_cache
from server.engine.scheduler.page_allocator import PageAllocator
from server.engine.scheduler.sequence import Sequence
from tests.server.engine.scheduler_setup import EOS, make_scheduler, sequence, shape
from tests.server.engine.simulation import Simulation, expected
from tests.tiny_models import (
    ATTENTION_NAME,
    build_model,
    make_engine,
    oracle,
    random_prefix,
    spec_of,
)

A, B = Digest.of(b"a"), Digest.of(b"b")
HEADER = list(range(10, 22))  # 3 pages of 4


def simulation(**kwargs: int) -> Simulation:
    s, residency = make_scheduler(prompt_cache=True, **kwargs)
    residency.resident |= {A, B}
    return Simulation(s, residency)


def first_chunk(run: Simulation, seq: Sequence) -> tuple[int, int]:
    """Run a sequence to its end; return the start and the length of its first chunk."""
    run.scheduler.add(seq)
    batch = run.step()
    assert batch is not None
    ((_, start, num_tokens),) = shape(batch)
    run.run()
    return start, num_tokens


def long_winded(num_tokens: int, begin: int = 0) -> list[int]:
    """Return a prompt of 12 tokens whose completion does not end before `num_tokens`."""
    prompts = (list(range(i, i + 12)) for i in range(begin, 10_000))
    return next(p for p in prompts if EOS not in expected(None, p, num_tokens))


# --- hits and misses ---


def test_a_header_is_computed_once() -> None:
    run = simulation(budget=64)

    assert first_chunk(run, sequence(1, [*HEADER, 1, 2], prefix=A)) == (0, 14)
    assert first_chunk(run, sequence(2, [*HEADER, 3, 4, 5], prefix=A)) == (12, 3)
    assert first_chunk(run, sequence(3, [*HEADER[:5], 9, *HEADER[6:]], prefix=A)) == (4, 8)
    assert run.scheduler.num_cached_tokens == 16


def test_a_prompt_known_to_the_end_still_computes_a_token() -> None:
    run = simulation(budget=64)
    first_chunk(run, sequence(1, HEADER))

    assert first_chunk(run, sequence(2, HEADER)) == (8, 4)
    assert run.completions[1] == run.completions[2] == expected(None, HEADER, 4)


@pytest.mark.parametrize(("one", "other"), [(A, B), (A, None), (None, B)])
def test_prompts_with_different_prefixes_share_no_pages(
    one: Digest | None, other: Digest | None
) -> None:
    run = simulation(budget=64)
    first_chunk(run, sequence(1, [*HEADER, 1], prefix=one))

    assert first_chunk(run, sequence(2, [*HEADER, 1], prefix=other)) == (0, 13)
    assert run.completions[2] == expected(other, [*HEADER, 1], 4)


def test_equal_tokens_after_other_tokens_are_not_equal() -> None:
    run = simulation(budget=64)
    first_chunk(run, sequence(1, [*HEADER, 1]))

    assert first_chunk(run, sequence(2, [*HEADER[4:], 1])) == (0, 9)


def test_a_conversation_continues_from_its_cached_pages() -> None:
    run = simulation(budget=64)
    prompt = long_winded(8)
    first_chunk(run, sequence(1, prompt, max_tokens=8))

    start, _ = first_chunk(run, sequence(2, [*prompt, *run.completions[1], 7, 8]))

    assert start == 16, "the last sampled token was never computed, so its page is not full"


def test_running_sequences_share_pages() -> None:
    run = simulation(budget=64)
    run.scheduler.add(sequence(1, [*HEADER, 1], max_tokens=20))
    run.step()
    run.scheduler.add(sequence(2, [*HEADER, 2], max_tokens=20))
    run.step()
    one, other = run.scheduler.running

    assert one.pages[:3] == other.pages[:3]
    assert not set(one.pages[3:]) & set(other.pages[3:])
    run.scheduler.cancel(1)
    run.run()
    assert run.completions[2] == expected(None, [*HEADER, 2], 20)


def test_a_preempted_sequence_reuses_its_own_pages_without_counting_them() -> None:
    run = simulation(num_pages=10, page_size=4, budget=64)
    for i in (1, 2):
        run.scheduler.add(sequence(i, long_winded(12, begin=100 * i), max_tokens=12))
    run.run()

    assert run.scheduler.num_preemptions > 0
    assert run.scheduler.num_cached_tokens == 0
    needed = 2 * (12 + 12 - 1)
    assert run.num_tokens_run <= needed + 4, (
        "only the tokens of a page that was not full are recomputed"
    )


def test_a_compile_does_not_use_the_prompt_cache() -> None:
    run = simulation(budget=64)
    first_chunk(run, sequence(1, [0] * 13))
    soft = Sequence(
        2, None, [0] * 13, SamplingParams(max_tokens=0), SchedulingParams(), compiles=True
    )
    run.scheduler.add(soft)

    batch = run.scheduler.schedule()
    assert shape(batch) == [(2, 0, 13)]
    run.scheduler.commit(batch, [])
    run.scheduler.finish(soft)
    assert soft.block_hashes == []
    assert run.scheduler.allocator.num_cached == 3


def test_a_verification_does_not_use_the_prompt_cache() -> None:
    """Every upload runs the same prompt. With the cache it would compute a single token of it, and
    fill the pool with pages that no request uses."""
    run = simulation(budget=64)
    first_chunk(run, sequence(1, [0] * 13))
    probe = Sequence(
        2, None, [0] * 13, SamplingParams(max_tokens=1), SchedulingParams(), verifies=True
    )

    assert first_chunk(run, probe) == (0, 13)
    assert probe.block_hashes == []
    assert run.scheduler.allocator.num_cached == 3


def test_pages_of_a_sequence_that_never_sampled_are_not_cached() -> None:
    run = simulation(budget=8)
    run.scheduler.add(sequence(1, [*HEADER, 1]))
    run.step()
    run.scheduler.cancel(1)  # its logits may have been NaN

    assert run.scheduler.allocator.num_cached == 0


# --- eviction of cached pages ---


def test_cached_pages_count_as_free_and_the_least_recently_used_is_reused_first() -> None:
    run = simulation(num_pages=8, page_size=4, budget=64)
    first_chunk(run, sequence(1, [*HEADER, 1], max_tokens=1, prefix=A))
    first_chunk(run, sequence(2, [*HEADER, 1], max_tokens=1, prefix=B))
    first_chunk(run, sequence(3, [*HEADER, 1], max_tokens=1, prefix=A))  # a hit
    allocator = run.scheduler.allocator
    assert (allocator.num_cached, allocator.num_free) == (6, 8)

    assert first_chunk(run, sequence(4, [99] * 16, max_tokens=1)) == (0, 16)

    assert first_chunk(run, sequence(5, [*HEADER, 1], max_tokens=1, prefix=A)) == (12, 1)
    assert first_chunk(run, sequence(6, [*HEADER, 1], max_tokens=1, prefix=B))[0] < 12


def test_the_last_cached_page_of_a_prompt_is_reused_first() -> None:
    run = simulation(num_pages=4, page_size=4, budget=64)
    first_chunk(run, sequence(1, [*HEADER, 1], max_tokens=1))
    first_chunk(run, sequence(2, [99, 98, 97, 96, 95], max_tokens=1))

    assert first_chunk(run, sequence(3, [*HEADER, 1], max_tokens=1)) == (8, 5)


def test_a_cached_page_that_will_be_shared_does_not_count_as_free() -> None:
    allocator = PageAllocator(4, 4)
    pages: list[int] = []
    assert allocator.grow(pages, 8)
    for page in pages:
        allocator.set_block_hash(page, bytes([page]))
    shared = list(pages)
    allocator.free(pages)
    assert allocator.num_free == 4

    assert allocator.fits(16, shared)
    assert not allocator.fits(17, shared)
    assert not allocator.fits(17, [])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=60))
def test_every_page_is_held_cached_or_free(actions: list[tuple[int, int]]) -> None:
    allocator = PageAllocator(8, 4)
    owners: list[list[int]] = []
    for action, value in actions:
        if action == 0:
            owners.append([])
            allocator.grow(owners[-1], value)
        elif action == 1 and owners:
            allocator.free(owners.pop(value % len(owners)))
        elif action == 2 and owners and owners[value % len(owners)]:
            allocator.set_block_hash(owners[value % len(owners)][0], bytes([value]))
        elif action == 3 and (page := allocator.find(bytes([value]))) is not None:
            allocator.acquire([page])
            owners.append([page])
        allocator.check(owners)


# --- disabled ---


def test_nothing_is_hashed_without_a_cache_or_without_a_full_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    monkeypatch.setattr(
        prompt_cache, "blake2b", lambda *a, **k: calls.append(a) or hashlib.blake2b(*a, **k)
    )
    without, residency = make_scheduler(budget=64)
    run = Simulation(without, residency)
    first_chunk(run, sequence(1, [*HEADER, 1]))
    short = simulation(page_size=64, budget=64)
    first_chunk(short, sequence(1, [*HEADER, 1]))
    assert calls == []

    first_chunk(simulation(budget=64), sequence(1, [*HEADER, 1]))
    assert calls


# --- on a real model ---


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_cached_pages_change_no_token_of_a_model(family: str) -> None:
    eager = build_model(family, "eager")
    model = build_model(family, ATTENTION_NAME)
    spec = spec_of(model.config)
    prefixes = [None, random_prefix(spec, 5, 1), random_prefix(spec, 9, 2)]
    engine = make_engine(
        model, RefBackend(), page_size=4, num_pages=48, max_num_batched_tokens=24,
        prompt_cache=True,
    )  # fmt: skip
    prompts = [[*range(3, 17), *range(20 + i, 23 + 2 * i)] for i in range(4)]
    wanted = [(i, prompt, prefix) for prefix in prefixes for i, prompt in enumerate(prompts)]
    right = [oracle(eager, prompt, prefix, 6)[0] for _, prompt, prefix in wanted]

    for round_ in range(2):
        for n, (_, prompt, prefix) in enumerate(wanted):
            engine.add(100 * round_ + n, prompt, prefix, 6)
            engine.step()
        engine.run()

    assert [engine.completions[n] for n in range(12)] == right
    assert [engine.completions[100 + n] for n in range(12)] == right
    assert engine.scheduler.num_cached_tokens > 12 * 12
