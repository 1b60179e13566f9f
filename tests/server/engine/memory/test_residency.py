"""Residency: loads, evictions and pins, with real loader threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prefix_store.digest import Digest
from server.engine.memory.prefix import LoadResult, ResidentPrefix
from server.engine.memory.residency import HEAD_OF_LINE_S, Residency

SIZE = 4 * 2 * 8  # bytes of the prefix that `read` makes


def read(digest: Digest) -> ResidentPrefix:
    return ResidentPrefix(torch.zeros(1, 2, 1, 8, 1), 8, 8)


class ResidencyHarness:
    """A residency whose threads report to a queue, which the test reads."""

    def __init__(
        self,
        load: Callable[[Digest], ResidentPrefix],
        device_bytes: int,
        host_bytes: int,
        copy: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.now_s = 0.0
        self.inbox: SimpleQueue[LoadResult] = SimpleQueue()
        self.reads: list[Digest] = []
        self.load = load
        self.residency = Residency(
            self._read,
            self.inbox.put,
            device_bytes=device_bytes,
            host_bytes=host_bytes,
            copy=copy,
            clock=lambda: self.now_s,
        )

    def _read(self, digest: Digest) -> ResidentPrefix:
        self.reads.append(digest)
        return self.load(digest)

    def receive(self, num_results: int = 1) -> None:
        for _ in range(num_results):
            self.residency.on_loaded(self.inbox.get(timeout=5))

    def finish_loads(self) -> None:
        while self.residency.num_loading:
            self.receive()

    def load_and_wait(self, *digests: Digest) -> None:
        """Acquire each prefix and wait until its load has finished or waits for memory."""
        for digest in digests:
            self.residency.acquire(digest)
            self.finish_loads()

    def pin(self, digest: Digest) -> None:
        """Load and pin a prefix as the step loop does."""
        self.load_and_wait(digest)
        assert self.residency.pin(digest)
        self.residency.release(digest)


@pytest.fixture
def make_harness() -> Iterator[Callable[..., ResidencyHarness]]:
    made: list[ResidencyHarness] = []

    def make(
        load: Callable[[Digest], ResidentPrefix] = read,
        *,
        device: int = 2,
        host: int = 1,
        copy: Callable[[Tensor], Tensor] | None = None,
    ) -> ResidencyHarness:
        made.append(ResidencyHarness(load, device * SIZE, host * SIZE, copy))
        return made[-1]

    yield make
    for each in made:
        each.residency.close()


A, B, C, D = (Digest.of(name) for name in (b"a", b"b", b"c", b"d"))


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


# --- prefixes that do not fit ---


def sized(sizes: dict[Digest, int]) -> Callable[[Digest], ResidentPrefix]:
    """Return a `read` whose prefixes are `sizes` times as large."""
    return lambda digest: ResidentPrefix(torch.zeros(1, 2, 1, 8 * sizes.get(digest, 1), 1), 8, 8)


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


# --- copies to a device ---


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
