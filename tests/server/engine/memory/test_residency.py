"""Residency: loads, evictions and references, with real loader threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch

from prefix_store.digest import Digest
from server.engine.memory.prefix import ResidentPrefix
from tests.server.engine.memory.harness import SIZE, A, B, C, ResidencyHarness, read


def test_a_prefix_is_read_once_and_stays_while_there_is_room(
    make_harness: Callable[..., ResidencyHarness],
) -> None:
    b = make_harness()
    b.residency.acquire(A)
    assert not b.residency.is_resident(A)
    b.receive()
    assert b.residency.is_resident(A)
    b.residency.release(A)

    b.residency.acquire(A)

    assert b.residency.is_resident(A)
    assert b.reads == [A]


def test_the_least_recently_used_prefix_is_evicted_first(
    make_harness: Callable[..., ResidencyHarness],
) -> None:
    b = make_harness(device=2)
    for digest in (A, B, A, C):
        b.residency.acquire(digest)
        if digest not in b.residency.on_device:
            b.receive()
        b.residency.release(digest)

    assert set(b.residency.on_device) == {A, C}
    assert b.residency.num_evictions == 1
    assert b.residency.num_device_bytes == 2 * SIZE


def test_a_prefix_in_use_is_never_evicted_and_the_next_waits_for_room(
    make_harness: Callable[..., ResidencyHarness],
) -> None:
    b = make_harness(device=1)
    b.residency.acquire(A)
    b.receive()
    b.residency.acquire(B)
    b.receive()
    assert b.residency.on_device == [A]
    assert not b.residency.is_resident(B)

    b.residency.release(A)

    assert b.residency.is_resident(B)
    assert b.reads == [A, B], "it waited in host memory, not on disk"


def test_a_prefix_in_host_memory_is_not_read_again(
    make_harness: Callable[..., ResidencyHarness],
) -> None:
    b = make_harness(device=1, host=2)
    for digest in (A, B):
        b.residency.acquire(digest)
        b.receive()
        b.residency.release(digest)

    b.residency.acquire(A)

    assert b.residency.is_resident(A)
    assert b.reads == [A, B]
    assert b.residency.num_host_bytes <= 2 * SIZE


def test_a_slow_load_does_not_block_another(make_harness: Callable[..., ResidencyHarness]) -> None:
    gate = threading.Event()

    def load(digest: Digest) -> ResidentPrefix:
        if digest == A:
            assert gate.wait(5)
        return read(digest)

    b = make_harness(load)
    b.residency.acquire(A)
    b.residency.acquire(B)
    b.receive()

    assert b.residency.is_resident(B)
    assert not b.residency.is_resident(A)
    gate.set()
    b.receive()
    assert b.residency.is_resident(A)


def test_a_failed_load_is_reported_and_retried_by_the_next_request(
    make_harness: Callable[..., ResidencyHarness],
) -> None:
    broken = [True]

    def load(digest: Digest) -> ResidentPrefix:
        if broken.pop() if broken else False:
            raise OSError("disk")
        return read(digest)

    b = make_harness(load)
    b.residency.acquire(A)
    b.receive()
    assert b.residency.error(A) == "the prefix could not be loaded: OSError"
    b.residency.release(A)
    assert b.residency.error(A) is None

    b.residency.acquire(A)
    b.receive()

    assert b.residency.is_resident(A)


def test_a_prefix_beyond_the_whole_budget_fails_with_the_numbers(
    make_harness: Callable[..., ResidencyHarness],
) -> None:
    b = make_harness(device=0)
    b.residency.acquire(A)
    b.receive()

    assert str(SIZE) in (b.residency.error(A) or "")


def test_a_load_completes_after_its_last_reference_is_released(
    make_harness: Callable[..., ResidencyHarness],
) -> None:
    b = make_harness()
    b.residency.acquire(A)
    b.residency.release(A)
    b.receive()

    assert b.residency.on_device == [A]
    b.residency.evict(A)
    assert b.residency.on_device == []
    assert b.residency.on_host == []


def test_evicting_what_is_in_use_does_nothing(
    make_harness: Callable[..., ResidencyHarness],
) -> None:
    b = make_harness()
    b.residency.acquire(A)
    b.receive()

    b.residency.evict(A)

    assert b.residency.is_resident(A)


def test_loader_threads_do_not_change_the_step_loops_thread_count(
    make_harness: Callable[..., ResidencyHarness],
) -> None:
    before = torch.get_num_threads()
    b = make_harness()
    b.residency.acquire(A)
    b.receive()
    time.sleep(0.01)

    assert torch.get_num_threads() == before
