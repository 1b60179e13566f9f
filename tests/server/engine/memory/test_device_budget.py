"""Residency: prefixes that do not fit into the device budget, or not beside pinned ones."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from prefix_store.digest import Digest
from server.engine.memory.residency import HEAD_OF_LINE_S
from tests.server.engine.memory.harness import SIZE, A, B, C, D, ResidencyHarness, sized


def test_a_prefix_that_does_not_fit_beside_the_pinned_ones_fails_and_others_load(
    make_harness: Callable[..., ResidencyHarness],
) -> None:
    b = make_harness(sized({A: 2, B: 3}), device=4, host=9)
    b.pin(A)

    b.load_and_wait(B, C)

    error = b.residency.error(B) or ""
    assert f"{3 * SIZE} bytes" in error
    assert f"{2 * SIZE} of them pinned" in error
    assert b.residency.is_resident(C)
    b.residency.release(B)
    b.residency.unpin(A)
    b.load_and_wait(B)
    assert b.residency.is_resident(B)


def test_a_pin_fails_waiting_prefixes_that_cannot_fit_beside_it(
    make_harness: Callable[..., ResidencyHarness],
) -> None:
    b = make_harness(sized({A: 2, B: 3}), device=4, host=9)
    b.load_and_wait(A, B)
    assert b.residency.error(B) is None, "it waits for memory of A"

    assert b.residency.pin(A)

    assert b.residency.error(B) is not None


def test_pinned_prefixes_leave_half_of_the_device_to_the_others(
    make_harness: Callable[..., ResidencyHarness],
) -> None:
    b = make_harness(device=4, host=9)
    b.pin(A)
    b.pin(B)
    b.load_and_wait(C)

    assert not b.residency.pin(C)

    b.residency.release(C)
    b.load_and_wait(D)
    assert b.residency.evict(C)
    b.residency.unpin(B)
    assert b.residency.pin(D)


def test_a_prefix_that_waits_for_memory_loads_before_later_ones(
    make_harness: Callable[..., ResidencyHarness],
) -> None:
    b = make_harness(sized({A: 2, B: 3}), device=4, host=9)
    b.load_and_wait(A, B, C)
    b.residency.acquire(B)  # a second reference does not move it after C
    assert not b.residency.is_resident(B)
    assert not b.residency.is_resident(C)

    b.residency.release(A)
    b.finish_loads()

    assert b.residency.is_resident(B)
    assert b.residency.is_resident(C)


def test_a_prefix_that_waits_for_memory_blocks_later_ones_only_for_a_while(
    make_harness: Callable[..., ResidencyHarness],
) -> None:
    b = make_harness(sized({A: 2, B: 3}), device=4, host=9)
    b.load_and_wait(A, B, C)

    b.now_s = HEAD_OF_LINE_S
    b.residency.start_loads()
    b.finish_loads()

    assert b.residency.is_resident(C)
    b.residency.release(A)
    assert b.residency.is_resident(B)


def test_waiting_prefixes_are_read_once_even_if_the_host_holds_only_one(
    make_harness: Callable[..., ResidencyHarness],
) -> None:
    b = make_harness(sized({A: 4, B: 3, C: 3, D: 3}), device=4, host=1)
    b.load_and_wait(A)
    for digest in (B, C, D):
        b.residency.acquire(digest)
    b.now_s = 2 * HEAD_OF_LINE_S
    for _ in range(10):
        b.residency.start_loads()
        b.finish_loads()
        b.now_s += HEAD_OF_LINE_S
    assert b.reads.count(B) == b.reads.count(C) == b.reads.count(D) == 1

    for last in (A, B, C):
        b.residency.release(last)
        b.finish_loads()

    assert b.residency.is_resident(D)


ACTIONS = ("acquire", "acquire", "release", "pin", "unpin", "evict", "receive")
OPERATIONS = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 7)), max_size=60)


@given(OPERATIONS, st.integers(0, 12))
@settings(max_examples=150, deadline=None)
def test_no_prefix_waits_without_end_and_free_memory_is_used(
    operations: list[tuple[str, int]], host: int
) -> None:
    """Eight prefixes, of sizes 1 to 8, on a device of size 10."""
    names = [Digest.of(bytes([i])) for i in range(8)]
    sizes = {name: 1 + i for i, name in enumerate(names)}
    b = ResidencyHarness(sized(sizes), 10 * SIZE, host * SIZE, None)
    refs: list[Digest] = []
    pinned: set[Digest] = set()
    r = b.residency
    for what, i in operations:
        name = names[i]
        if what == "acquire":
            r.acquire(name)
            refs.append(name)
        elif what == "release" and name in refs:
            refs.remove(name)
            r.release(name)
        elif what == "pin" and name in refs and r.is_resident(name) and r.pin(name):
            pinned.add(name)
        elif what == "unpin":
            r.unpin(name)
            pinned.discard(name)
        elif what == "evict":
            r.evict(name)
        elif what == "receive" and r.num_loading:
            b.receive()
        assert r.num_device_bytes <= 10 * SIZE
    for _ in range(2):  # those that wait, and then the later ones
        b.finish_loads()
        b.now_s += HEAD_OF_LINE_S
        r.start_loads()
    b.finish_loads()
    r.close()

    left = 10 - sum(sizes[name] for name in pinned)
    in_use = sum(sizes[name] for name in {*refs, *pinned} if r.error(name) is None
                 and r.is_resident(name))  # fmt: skip
    for name in set(refs):
        if r.error(name) is not None or r.is_resident(name):
            continue
        assert sizes[name] <= left, "it waits without end"
        assert sizes[name] > 10 - in_use, "it waits although there is room"
