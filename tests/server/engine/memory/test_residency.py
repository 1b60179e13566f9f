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
from server.engine.memory.residency import HEAD_OF_LINE_S, LoadResult, Residency, ResidentPrefix

SIZE = 4 * 2 * 8  # bytes of the prefix that `read` makes


def read(digest: Digest) -> ResidentPrefix:
    return ResidentPrefix(torch.zeros(1, 2, 1, 8, 1), 8, 8)


class Bench:
    """A residency whose loader threads report to a queue that the test drains."""

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

    def settle(self, num_arrivals: int = 1) -> None:
        for _ in range(num_arrivals):
            self.residency.on_loaded(self.inbox.get(timeout=5))

    def settle_all(self) -> None:
        while self.residency.num_loading:
            self.settle()

    def bring(self, *digests: Digest) -> None:
        """Refer to each and wait for what comes of it."""
        for digest in digests:
            self.residency.acquire(digest)
            self.settle_all()

    def pin(self, digest: Digest) -> None:
        """As the step loop does."""
        self.bring(digest)
        assert self.residency.pin(digest)
        self.residency.release(digest)


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(
        load: Callable[[Digest], ResidentPrefix] = read,
        *,
        device: int = 2,
        host: int = 1,
        copy: Callable[[Tensor], Tensor] | None = None,
    ) -> Bench:
        made.append(Bench(load, device * SIZE, host * SIZE, copy))
        return made[-1]

    yield make
    for each in made:
        each.residency.close()


A, B, C, D = (Digest.of(name) for name in (b"a", b"b", b"c", b"d"))


def test_a_prefix_is_read_once_and_stays_while_there_is_room(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.residency.acquire(A)
    assert not b.residency.is_resident(A)
    b.settle()
    assert b.residency.is_resident(A)
    b.residency.release(A)

    b.residency.acquire(A)

    assert b.residency.is_resident(A)
    assert b.reads == [A]


def test_the_least_recently_used_goes_first(bench: Callable[..., Bench]) -> None:
    b = bench(device=2)
    for digest in (A, B, A, C):
        b.residency.acquire(digest)
        if digest not in b.residency.on_device:
            b.settle()
        b.residency.release(digest)

    assert set(b.residency.on_device) == {A, C}
    assert b.residency.num_evictions == 1
    assert b.residency.num_device_bytes == 2 * SIZE


def test_a_prefix_in_use_is_never_evicted_and_the_next_waits_for_room(
    bench: Callable[..., Bench],
) -> None:
    b = bench(device=1)
    b.residency.acquire(A)
    b.settle()
    b.residency.acquire(B)
    b.settle()
    assert b.residency.on_device == [A]
    assert not b.residency.is_resident(B)

    b.residency.release(A)

    assert b.residency.is_resident(B)
    assert b.reads == [A, B], "it waited in host memory, not on disk"


def test_from_the_host_nothing_is_read_again(bench: Callable[..., Bench]) -> None:
    b = bench(device=1, host=2)
    for digest in (A, B):
        b.residency.acquire(digest)
        b.settle()
        b.residency.release(digest)

    b.residency.acquire(A)

    assert b.residency.is_resident(A)
    assert b.reads == [A, B]
    assert b.residency.num_host_bytes <= 2 * SIZE


def test_a_slow_load_does_not_hold_up_another(bench: Callable[..., Bench]) -> None:
    gate = threading.Event()

    def load(digest: Digest) -> ResidentPrefix:
        if digest == A:
            assert gate.wait(5)
        return read(digest)

    b = bench(load)
    b.residency.acquire(A)
    b.residency.acquire(B)
    b.settle()

    assert b.residency.is_resident(B)
    assert not b.residency.is_resident(A)
    gate.set()
    b.settle()
    assert b.residency.is_resident(A)


def test_a_failed_load_is_told_and_tried_again_by_the_next(bench: Callable[..., Bench]) -> None:
    broken = [True]

    def load(digest: Digest) -> ResidentPrefix:
        if broken.pop() if broken else False:
            raise OSError("disk")
        return read(digest)

    b = bench(load)
    b.residency.acquire(A)
    b.settle()
    assert b.residency.error(A) == "the prefix could not be loaded: OSError"
    b.residency.release(A)
    assert b.residency.error(A) is None

    b.residency.acquire(A)
    b.settle()

    assert b.residency.is_resident(A)


def test_a_prefix_beyond_the_whole_budget_fails_with_the_numbers(
    bench: Callable[..., Bench],
) -> None:
    b = bench(device=0)
    b.residency.acquire(A)
    b.settle()

    assert str(SIZE) in (b.residency.error(A) or "")


def test_a_load_that_nobody_waits_for_any_more_still_settles(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.residency.acquire(A)
    b.residency.release(A)
    b.settle()

    assert b.residency.on_device == [A]
    b.residency.evict(A)
    assert b.residency.on_device == []
    assert b.residency.on_host == []


def test_evicting_what_is_in_use_does_nothing(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.residency.acquire(A)
    b.settle()

    b.residency.evict(A)

    assert b.residency.is_resident(A)


def test_loader_threads_leave_the_step_loop_its_threads(bench: Callable[..., Bench]) -> None:
    before = torch.get_num_threads()
    b = bench()
    b.residency.acquire(A)
    b.settle()
    time.sleep(0.01)

    assert torch.get_num_threads() == before


# --- one that does not fit beside what is there ---


def sized(sizes: dict[Digest, int]) -> Callable[[Digest], ResidentPrefix]:
    """Prefixes so many times as large."""
    return lambda digest: ResidentPrefix(torch.zeros(1, 2, 1, 8 * sizes.get(digest, 1), 1), 8, 8)


def test_one_that_pins_leave_no_room_for_fails_and_others_are_loaded(
    bench: Callable[..., Bench],
) -> None:
    b = bench(sized({A: 2, B: 3}), device=4, host=9)
    b.pin(A)

    b.bring(B, C)

    error = b.residency.error(B) or ""
    assert f"{3 * SIZE} bytes" in error
    assert f"{2 * SIZE} of them pinned" in error
    assert b.residency.is_resident(C)
    b.residency.release(B)
    b.residency.unpin(A)
    b.bring(B)
    assert b.residency.is_resident(B)


def test_a_pin_fails_those_that_wait_and_can_never_fit_beside_it(
    bench: Callable[..., Bench],
) -> None:
    b = bench(sized({A: 2, B: 3}), device=4, host=9)
    b.bring(A, B)
    assert b.residency.error(B) is None, "it waits for A"

    assert b.residency.pin(A)

    assert b.residency.error(B) is not None


def test_one_that_waits_for_room_gets_it_before_those_that_came_later(
    bench: Callable[..., Bench],
) -> None:
    b = bench(sized({A: 2, B: 3}), device=4, host=9)
    b.bring(A, B, C)
    b.residency.acquire(B)  # asked for once more, it does not stand behind C
    assert not b.residency.is_resident(B)
    assert not b.residency.is_resident(C)

    b.residency.release(A)
    b.settle_all()

    assert b.residency.is_resident(B)
    assert b.residency.is_resident(C)


def test_one_that_waits_for_room_holds_up_others_for_a_while_only(
    bench: Callable[..., Bench],
) -> None:
    b = bench(sized({A: 2, B: 3}), device=4, host=9)
    b.bring(A, B, C)

    b.now_s = HEAD_OF_LINE_S
    b.residency.start_loads()
    b.settle_all()

    assert b.residency.is_resident(C)
    b.residency.release(A)
    assert b.residency.is_resident(B)


def test_those_that_wait_are_not_read_again_and_again_where_the_host_holds_one(
    bench: Callable[..., Bench],
) -> None:
    b = bench(sized({A: 4, B: 3, C: 3, D: 3}), device=4, host=1)
    b.bring(A)
    for digest in (B, C, D):
        b.residency.acquire(digest)
    b.now_s = 2 * HEAD_OF_LINE_S
    for _ in range(10):
        b.residency.start_loads()
        b.settle_all()
        b.now_s += HEAD_OF_LINE_S
    assert b.reads.count(B) == b.reads.count(C) == b.reads.count(D) == 1

    for last in (A, B, C):
        b.residency.release(last)
        b.settle_all()

    assert b.residency.is_resident(D)


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["acquire", "acquire", "release", "pin", "unpin", "evict", "settle"]),
              st.integers(0, 7)),
    max_size=60,
)  # fmt: skip


@given(OPERATIONS, st.integers(0, 12))
@settings(max_examples=150, deadline=None)
def test_nothing_waits_for_what_can_never_be_and_room_is_used(
    operations: list[tuple[str, int]], host: int
) -> None:
    """Sizes of one to eight on a device of ten."""
    names = [Digest.of(bytes([i])) for i in range(8)]
    sizes = {name: 1 + i for i, name in enumerate(names)}
    b = Bench(sized(sizes), 10 * SIZE, host * SIZE, None)
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
        elif what == "settle" and r.num_loading:
            b.settle()
        assert r.num_device_bytes <= 10 * SIZE
    for _ in range(2):  # those that wait, and then those behind them
        b.settle_all()
        b.now_s += HEAD_OF_LINE_S
        r.start_loads()
    b.settle_all()
    r.close()

    left = 10 - sum(sizes[name] for name in pinned)
    in_use = sum(sizes[name] for name in {*refs, *pinned} if r.error(name) is None
                 and r.is_resident(name))  # fmt: skip
    for name in set(refs):
        if r.error(name) is not None or r.is_resident(name):
            continue
        assert sizes[name] <= left, "it waits for ever"
        assert sizes[name] > 10 - in_use, "there is room"


# --- with a device of its own ---


class SlowCopy:
    """Waits on its thread until the test says that the copy is there."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.threads: set[str] = set()

    def __call__(self, kv: Tensor) -> Tensor:
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(5)
        return kv.clone()


def test_a_prefix_is_ready_when_its_copy_is_there_and_nobody_waits_for_that(
    bench: Callable[..., Bench],
) -> None:
    copy = SlowCopy()
    b = bench(copy=copy, device=1)
    b.residency.acquire(A)
    b.settle()

    assert not b.residency.is_resident(A)
    assert b.residency.num_loading == 1
    assert b.residency.num_device_bytes == SIZE, "its room is taken"

    copy.gate.set()
    b.settle()

    assert b.residency.is_resident(A)
    assert b.residency.num_loading == 0
    assert threading.main_thread().name not in copy.threads


def test_from_the_host_it_is_copied_again_and_not_read(bench: Callable[..., Bench]) -> None:
    copy = SlowCopy()
    copy.gate.set()
    b = bench(copy=copy, device=1, host=2)
    for digest in (A, B):
        b.residency.acquire(digest)
        b.settle(2)
        b.residency.release(digest)

    b.residency.acquire(A)
    assert not b.residency.is_resident(A)
    b.settle()

    assert b.residency.is_resident(A)
    assert b.reads == [A, B]
    assert b.residency.num_evictions == 2


def test_what_is_being_copied_is_not_evicted(bench: Callable[..., Bench]) -> None:
    copy = SlowCopy()
    b = bench(copy=copy, device=1)
    b.residency.acquire(A)
    b.settle()
    b.residency.release(A)
    b.residency.acquire(B)
    b.settle()
    b.residency.evict(A)
    assert b.residency.num_device_bytes == SIZE

    copy.gate.set()
    b.settle()  # A is there, which nobody wants: B takes its room
    b.settle()

    assert b.residency.is_resident(B)
    assert b.residency.on_device == [B]


def test_a_copy_that_fails_is_told_and_gives_its_room_back(bench: Callable[..., Bench]) -> None:
    def copy(kv: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    b = bench(copy=copy)
    b.residency.acquire(A)
    b.settle(2)

    assert b.residency.error(A) == "the prefix could not be loaded: OutOfMemoryError"
    assert b.residency.num_device_bytes == 0
