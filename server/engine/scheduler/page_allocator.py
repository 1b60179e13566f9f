"""Allocation of the pages of the KV pool, by page number. The tensor is in `memory.kv_pool`."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import chain


class PageAllocator:
    """Allocator of pages, lowest number first, so that the used part of the pool stays dense.

    A page's ref count is the number of sequences that hold it. A page with a block hash can be
    found by its content and shared. At ref count 0 it stays cached until pages run out; the cached
    page that was released first is then reused first.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = list(range(num_pages))
        self._ref_counts = [0] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently released first

    @property
    def num_free(self) -> int:
        """Pages with ref count 0, including the cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Pages with ref count 0 that still have a block hash."""
        return len(self._cached)

    def num_pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def grow(self, pages: list[int], num_tokens: int) -> bool:
        """Extend `pages` to hold `num_tokens`. Returns False, without change, if pages run out."""
        missing = self.num_pages_for(num_tokens) - len(pages)
        if missing <= 0:
            return True
        if missing > self.num_free:
            return False
        pages.extend(self._take() for _ in range(missing))
        return True

    def free(self, pages: list[int]) -> None:
        """Release all `pages` of a sequence and empty the list.

        The last page is released first and so reused first, because a cached page is of no use
        without those that precede it in the prompt.
        """
        for page in reversed(pages):
            self._ref_counts[page] -= 1
            if self._ref_counts[page] == 0 and page in self._hash_of:
                self._cached[page] = None
            elif self._ref_counts[page] == 0:
                heapq.heappush(self._free, page)
        pages.clear()

    # --- cached pages ---

    def set_block_hash(self, page: int, block_hash: bytes) -> None:
        """Set the hash of a full page. A second page with equal content gets none."""
        if block_hash not in self._page_of and page not in self._hash_of:
            self._page_of[block_hash] = page
            self._hash_of[page] = block_hash

    def find(self, block_hash: bytes) -> int | None:
        """Return the page with this hash, if there is one."""
        return self._page_of.get(block_hash)

    def fits(self, num_tokens: int, shared: Sequence[int]) -> bool:
        """Return whether `num_tokens` fit, if the sequence starts with the pages `shared`."""
        return self.num_missing(num_tokens, shared) <= 0

    def num_missing(self, num_tokens: int, shared: Sequence[int]) -> int:
        """Return how many more pages `fits` would need to be free; negative if some are left."""
        num_unheld = sum(self._ref_counts[page] == 0 for page in shared)
        return self.num_pages_for(num_tokens) - len(shared) - (self.num_free - num_unheld)

    def num_own(self, pages: Iterable[int]) -> int:
        """Return how many of a sequence's `pages` no other sequence holds."""
        return sum(self._ref_counts[page] == 1 for page in pages)

    def acquire(self, pages: Iterable[int]) -> None:
        """Add one to the ref count of each page."""
        for page in pages:
            self._ref_counts[page] += 1
            self._cached.pop(page, None)

    def check(self, held: Iterable[Iterable[int]]) -> None:
        """Assert that every page is held, cached or free. `held`: the pages of each sequence."""
        ref_counts = [0] * self.num_pages
        for page in chain.from_iterable(held):
            ref_counts[page] += 1
        assert ref_counts == self._ref_counts
        assert all(num == 1 or page in self._hash_of for page, num in enumerate(ref_counts) if num)
        unheld = sorted([*self._free, *self._cached])
        assert unheld == [page for page, num in enumerate(ref_counts) if num == 0]
        assert self._cached.keys() <= self._hash_of.keys()
        assert {page: block_hash for block_hash, page in self._page_of.items()} == self._hash_of

    def _take(self) -> int:
        if self._free:
            page = heapq.heappop(self._free)
        else:
            page, _ = self._cached.popitem(last=False)
            del self._page_of[self._hash_of.pop(page)]
        self._ref_counts[page] = 1
        return page
