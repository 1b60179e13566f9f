"""Residency: copies of prefixes to a device."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from tests.server.engine.memory.harness import SIZE, A, B, ResidencyHarness


class SlowCopy:
    """A copy that takes until the test opens its gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.threads: set[str] = set()

    def __call__(self, kv: Tensor) -> Tensor:
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(5)
        return kv.clone()


def test_a_prefix_is_resident_once_copied_and_the_copy_blocks_no_step(
    make_harness: Callable[..., ResidencyHarness],
) -> None:
    copy = SlowCopy()
    b = make_harness(copy=copy, device=1)
    b.residency.acquire(A)
    b.receive()

    assert not b.residency.is_resident(A)
    assert b.residency.num_loading == 1
    assert b.residency.num_device_bytes == SIZE, "its memory is reserved"

    copy.gate.set()
    b.receive()

    assert b.residency.is_resident(A)
    assert b.residency.num_loading == 0
    assert threading.main_thread().name not in copy.threads


def test_a_prefix_in_host_memory_is_copied_again_without_a_read(
    make_harness: Callable[..., ResidencyHarness],
) -> None:
    copy = SlowCopy()
    copy.gate.set()
    b = make_harness(copy=copy, device=1, host=2)
    for digest in (A, B):
        b.residency.acquire(digest)
        b.receive(2)
        b.residency.release(digest)

    b.residency.acquire(A)
    assert not b.residency.is_resident(A)
    b.receive()

    assert b.residency.is_resident(A)
    assert b.reads == [A, B]
    assert b.residency.num_evictions == 2


def test_a_prefix_that_is_being_copied_is_not_evicted(
    make_harness: Callable[..., ResidencyHarness],
) -> None:
    copy = SlowCopy()
    b = make_harness(copy=copy, device=1)
    b.residency.acquire(A)
    b.receive()
    b.residency.release(A)
    b.residency.acquire(B)
    b.receive()
    b.residency.evict(A)
    assert b.residency.num_device_bytes == SIZE

    copy.gate.set()
    b.receive()  # A is resident and unused: it is evicted for B
    b.receive()

    assert b.residency.is_resident(B)
    assert b.residency.on_device == [B]


def test_a_failed_copy_is_reported_and_frees_its_memory(
    make_harness: Callable[..., ResidencyHarness],
) -> None:
    def copy(kv: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    b = make_harness(copy=copy)
    b.residency.acquire(A)
    b.receive(2)

    assert b.residency.error(A) == "the prefix could not be loaded: OutOfMemoryError"
    assert b.residency.num_device_bytes == 0
