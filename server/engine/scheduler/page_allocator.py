"""Which page of the KV pool belongs to whom. Numbers only; the tensor is in `kv_pool`."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import chain


class PageAllocator:
    """Hands out page numbers, lowest first, so that the used part of the pool stays dense.

    A page has as many owners as sequences hold it. A page with a label says what it holds and may
    be shared; when its last owner lets go it is kept until pages run out, and then the one that
    was let go of the longest ago is taken first.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = list(range(num_pages))
        self._num_owners = [0] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._label_of: dict[int, bytes] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()  # least recently let go first

    @property
    def num_free(self) -> int:
        """Pages that nobody owns, those that are kept among them."""
        return len(self._free) + len(self._kept)

    @property
    def num_kept(self) -> int:
        """Labelled pages that nobody owns."""
        return len(self._kept)

    def num_pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def grow(self, pages: list[int], num_tokens: int) -> bool:
        """Extend `pages` until they hold `num_tokens`; False, and nothing done, if they cannot."""
        missing = self.num_pages_for(num_tokens) - len(pages)
        if missing <= 0:
            return True
        if missing > self.num_free:
            return False
        pages.extend(self._take() for _ in range(missing))
        return True

    def free(self, pages: list[int]) -> None:
        """An owner lets go of all of `pages`; empties the list.

        The last page first: what follows in a prompt is of no use without what comes before it.
        """
        for page in reversed(pages):
            self._num_owners[page] -= 1
            if self._num_owners[page] == 0 and page in self._label_of:
                self._kept[page] = None
            elif self._num_owners[page] == 0:
                heapq.heappush(self._free, page)
        pages.clear()

    # --- pages that are found again ---

    def label(self, page: int, label: bytes) -> None:
        """Say what a page holds; a second page with the same content stays without a label."""
        if label not in self._page_of and page not in self._label_of:
            self._page_of[label] = page
            self._label_of[page] = label

    def find(self, label: bytes) -> int | None:
        return self._page_of.get(label)

    def fits(self, num_tokens: int, shared: Sequence[int]) -> bool:
        """Whether a sequence of `num_tokens` finds room that begins with pages that are there."""
        num_unowned = sum(self._num_owners[page] == 0 for page in shared)
        missing = self.num_pages_for(num_tokens) - len(shared)
        return missing <= self.num_free - num_unowned

    def share(self, pages: Iterable[int]) -> None:
        """One more owner for each."""
        for page in pages:
            self._num_owners[page] += 1
            self._kept.pop(page, None)

    def check(self, held: Iterable[Iterable[int]]) -> None:
        """The invariant, given the pages of each owner: every page is owned, kept or free."""
        num_owners = [0] * self.num_pages
        for page in chain.from_iterable(held):
            num_owners[page] += 1
        assert num_owners == self._num_owners
        assert all(num == 1 or page in self._label_of for page, num in enumerate(num_owners) if num)
        unowned = sorted([*self._free, *self._kept])
        assert unowned == [page for page, num in enumerate(num_owners) if num == 0]
        assert self._kept.keys() <= self._label_of.keys()
        assert {page: label for label, page in self._page_of.items()} == self._label_of

    def _take(self) -> int:
        if self._free:
            page = heapq.heappop(self._free)
        else:
            page, _ = self._kept.popitem(last=False)
            del self._page_of[self._label_of.pop(page)]
        self._num_owners[page] = 1
        return page
