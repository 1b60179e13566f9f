"""Residency of prefixes: loads from disk to host to device, eviction of the least recently used.

Loader threads read and check blobs, and report to the step loop. A prefix that a sequence refers to
is never evicted, and a load never blocks a step.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor

from prefix_store.digest import Digest
from server.engine.memory.loader import PrefixLoader
from server.engine.memory.prefix import LoadResult, PrefixEntry, PrefixState, ResidentPrefix

HEAD_OF_LINE_S = 5.0
"""Length of the periods in which a prefix that waits for device memory blocks the later ones, and
lets them pass, alternately.

Without the blocking, small prefixes could take all memory that is freed, and a large one would
never load. Without the passing, all would wait if the memory it waits for is never freed.
"""


class Residency:
    """Cache of prefixes by digest, with a byte budget for the device and one for the host.

    `read` loads a prefix into host memory, checked and cast; it runs on a loader thread. `copy`
    copies keys and values to the device; it runs on a thread of its own and may block. Without
    `copy` the device is the host. `report` is called on these threads with the result and must pass
    it to the step loop, which calls `on_loaded`. All methods must be called from the step loop.
    """

    def __init__(
        self,
        read: Callable[[Digest], ResidentPrefix],
        report: Callable[[LoadResult], None],
        *,
        device_bytes: int,
        host_bytes: int,
        max_loading: int = 2,
        copy: Callable[[Tensor], Tensor] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device_bytes = device_bytes
        self._host_bytes = host_bytes
        self._max_loading = max_loading
        self._copies = copy is not None
        self._clock = clock
        self._entries: OrderedDict[Digest, PrefixEntry] = OrderedDict()  # least recently used first
        self._host: OrderedDict[Digest, ResidentPrefix] = OrderedDict()
        self._loader = PrefixLoader(read, report, copy, max_loading)
        self._pinned: set[Digest] = set()
        self.num_loads = 0
        self.num_evictions = 0

    # --- references ---

    def acquire(self, digest: Digest) -> None:
        """Request a prefix, and keep it from being evicted until `release`."""
        entry = self._entries.setdefault(digest, PrefixEntry())
        if entry.num_refs == 0:
            entry.requested_s = self._clock()
        entry.num_refs += 1
        if entry.state is PrefixState.DEVICE:  # one that waits keeps its place in the order
            self._entries.move_to_end(digest)
        self.start_loads()

    def release(self, digest: Digest) -> None:
        """Drop a reference taken by `acquire`."""
        entry = self._entries[digest]
        entry.num_refs -= 1
        if entry.num_refs == 0 and entry.prefix is None and entry.state is not PrefixState.LOADING:
            del self._entries[digest]
        self.start_loads()

    def is_resident(self, digest: Digest) -> bool:
        """Return whether the prefix is on the device. It must be acquired."""
        return self._entries[digest].state is PrefixState.DEVICE

    def get(self, digest: Digest) -> ResidentPrefix:
        """Return a prefix that is resident and acquired."""
        prefix = self._entries[digest].prefix
        assert prefix is not None
        return prefix

    def error(self, digest: Digest) -> str | None:
        """Return why the load of a prefix failed; None if it has not."""
        entry = self._entries.get(digest)
        return entry.error if entry is not None and entry.state is PrefixState.FAILED else None

    # --- loads and evictions ---

    def start_loads(self) -> None:
        """Start loads that fit, in order of arrival. A prefix that can never fit fails."""
        wanted = [
            (d, e) for d, e in self._entries.items() if e.state is PrefixState.DISK and e.num_refs
        ]
        room = self._room if wanted else 0
        for digest, entry in wanted:
            prefix = self._host.get(digest)
            num_bytes = entry.num_bytes if prefix is None else prefix.num_bytes
            if (error := self._oversize_error(num_bytes)) is not None:
                self._fail(digest, entry, error)
            elif num_bytes > room:
                if (self._clock() - entry.requested_s) % (2 * HEAD_OF_LINE_S) < HEAD_OF_LINE_S:
                    return
            elif prefix is not None:
                self._make_room(num_bytes)
                self._move_to_device(digest, entry, prefix)
                room = self._room
            elif self.num_loading < self._max_loading:
                entry.state = PrefixState.LOADING
                self._loader.read(digest)
            else:
                return

    def on_loaded(self, result: LoadResult) -> None:
        """Apply the result of a read or a copy."""
        digest, prefix = result.digest, result.prefix
        entry = self._entries[digest]
        if prefix is None:
            self._fail(digest, entry, result.error)
        elif result.on_device:
            self._set_resident(digest, entry, prefix)
        elif (error := self._oversize_error(prefix.num_bytes)) is not None:
            self._fail(digest, entry, error)
        elif self._make_room(prefix.num_bytes):
            self._move_to_device(digest, entry, prefix)
        else:  # device memory is in use: wait in host memory for a release
            entry.state, entry.num_bytes = PrefixState.DISK, prefix.num_bytes
            self._keep_on_host(digest, prefix)
        self.start_loads()

    def evict(self, digest: Digest) -> bool:
        """Remove a prefix from device and host. Returns False, and keeps it, if it is in use."""
        entry = self._entries.get(digest)
        if entry is not None and entry.num_refs:
            return False
        self._host.pop(digest, None)
        if entry is not None and entry.state is PrefixState.DEVICE:
            self._drop(digest)
        return True

    def pin(self, digest: Digest) -> bool:
        """Keep a resident prefix from being evicted.

        Returns False if pinned prefixes would exceed half of the device budget. The other half is
        reserved for all other prefixes.
        """
        if digest not in self._pinned:
            if self._num_pinned_bytes + self.get(digest).num_bytes > self._device_bytes // 2:
                return False
            self._pinned.add(digest)
            self.acquire(digest)
        return True

    def unpin(self, digest: Digest) -> None:
        """Allow a pinned prefix to be evicted again. Idempotent."""
        if digest in self._pinned:
            self._pinned.remove(digest)
            self.release(digest)

    def eviction_candidates(self, num_bytes: int) -> list[Digest] | None:
        """Return the prefixes to evict to make room for `num_bytes`, least recently used first.

        Returns None if evictions cannot free enough memory now.
        """
        missing = self.num_device_bytes + num_bytes - self._device_bytes
        found: list[Digest] = []
        for digest, entry in self._entries.items():
            if missing > 0 and entry.state is PrefixState.DEVICE and not entry.num_refs:
                found.append(digest)
                missing -= entry.prefix.num_bytes if entry.prefix is not None else 0
        return found if missing <= 0 else None

    def close(self) -> None:
        self._loader.close()

    # --- statistics ---

    @property
    def on_device(self) -> list[Digest]:
        return [
            digest for digest, entry in self._entries.items() if entry.state is PrefixState.DEVICE
        ]

    @property
    def on_host(self) -> list[Digest]:
        return list(self._host)

    @property
    def num_loading(self) -> int:
        """Prefixes that are being read or copied to the device."""
        under_way = (PrefixState.LOADING, PrefixState.COPYING)
        return sum(entry.state in under_way for entry in self._entries.values())

    @property
    def num_device_bytes(self) -> int:
        return sum(entry.prefix.num_bytes for entry in self._entries.values() if entry.prefix)

    @property
    def num_host_bytes(self) -> int:
        return sum(prefix.num_bytes for prefix in self._host.values())

    # --- details ---

    @property
    def _num_pinned_bytes(self) -> int:
        return sum(self.get(digest).num_bytes for digest in self._pinned)

    @property
    def _room(self) -> int:
        """Bytes on the device that are free, or can be freed by evictions."""
        held = (
            e for e in self._entries.values() if e.num_refs or e.state is not PrefixState.DEVICE
        )
        return self._device_bytes - sum(e.prefix.num_bytes for e in held if e.prefix is not None)

    def _oversize_error(self, num_bytes: int) -> str | None:
        """Return why a prefix can never fit beside the pinned ones; None if it can."""
        num_pinned = self._num_pinned_bytes
        if num_bytes <= self._device_bytes - num_pinned:
            return None
        budget = f"the device budget for prefixes is {self._device_bytes} bytes"
        pinned = f", {num_pinned} of them pinned" if num_pinned else ""
        return f"the prefix takes {num_bytes} bytes, but {budget}{pinned}"

    def _fail(self, digest: Digest, entry: PrefixEntry, error: str) -> None:
        """Mark a load as failed. Waiting requests fail with it; the next one after them retries."""
        entry.state, entry.error, entry.prefix = PrefixState.FAILED, error, None
        if entry.num_refs == 0:
            del self._entries[digest]

    def _move_to_device(self, digest: Digest, entry: PrefixEntry, prefix: ResidentPrefix) -> None:
        """Copy a prefix to the device, where there is room for it."""
        self._keep_on_host(digest, prefix)
        if not self._copies:
            self._set_resident(digest, entry, prefix)
            return
        entry.state, entry.prefix = PrefixState.COPYING, prefix
        self._loader.copy(digest, prefix)

    def _set_resident(self, digest: Digest, entry: PrefixEntry, prefix: ResidentPrefix) -> None:
        entry.state, entry.prefix = PrefixState.DEVICE, prefix
        self._entries.move_to_end(digest)
        self.num_loads += 1

    def _keep_on_host(self, digest: Digest, prefix: ResidentPrefix) -> None:
        self._host[digest] = prefix
        self._host.move_to_end(digest)
        while self.num_host_bytes > self._host_bytes and len(self._host) > 1:
            self._host.popitem(last=False)

    def _make_room(self, num_bytes: int) -> bool:
        """Evict prefixes until `num_bytes` fit. Returns False, without evictions, if it cannot."""
        candidates = self.eviction_candidates(num_bytes)
        for digest in candidates or ():
            self._drop(digest)
        return candidates is not None

    def _drop(self, digest: Digest) -> None:
        del self._entries[digest]
        self.num_evictions += 1
