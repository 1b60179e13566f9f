"""A residency whose loads a test controls."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue

import torch
from torch import Tensor

from prefix_store.digest import Digest
from server.engine.memory.prefix import LoadResult, ResidentPrefix
from server.engine.memory.residency import Residency

A, B, C, D = (Digest.of(name) for name in (b"a", b"b", b"c", b"d"))
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


def sized(sizes: dict[Digest, int]) -> Callable[[Digest], ResidentPrefix]:
    """Return a `read` whose prefixes are `sizes` times as large."""
    return lambda digest: ResidentPrefix(torch.zeros(1, 2, 1, 8 * sizes.get(digest, 1), 1), 8, 8)
