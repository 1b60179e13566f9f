"""The resources of sequences, pages and prefixes, and when they may be released."""

from __future__ import annotations

from typing import Protocol

from prefix_store.digest import Digest
from server.engine.scheduler.in_flight import InFlightBatch, InFlightBatches
from server.engine.scheduler.page_allocator import PageAllocator
from server.engine.scheduler.prompt_cache import PromptCache
from server.engine.scheduler.sequence import Sequence


class Prefixes(Protocol):
    """The part of `Residency` that the scheduler uses."""

    def acquire(self, digest: Digest) -> None:
        """Request a prefix and keep it from being evicted until `release`."""
        ...

    def release(self, digest: Digest) -> None:
        """Drop a reference taken by `acquire`."""
        ...

    def is_resident(self, digest: Digest) -> bool:
        """Return whether the prefix is on the device."""
        ...


class Resources:
    """Pages and prefixes that sequences hold.

    A step in flight may still read or write the pages and the prefix of a sequence that has ended
    or was preempted. They are released with the last batch in flight that runs the sequence.
    """

    def __init__(
        self,
        allocator: PageAllocator,
        prefixes: Prefixes,
        prompt_cache: PromptCache | None,
        in_flight: InFlightBatches,
    ) -> None:
        self._allocator = allocator
        self._prefixes = prefixes
        self._prompt_cache = prompt_cache
        self._in_flight = in_flight

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were served from the prompt cache."""
        return self._prompt_cache.num_cached_tokens if self._prompt_cache is not None else 0

    # --- prefixes ---

    def acquire_prefix(self, seq: Sequence) -> None:
        """Request the sequence's prefix, if it has one."""
        if seq.prefix is not None:
            self._prefixes.acquire(seq.prefix)

    def has_prefix(self, seq: Sequence) -> bool:
        """Return whether the sequence's prefix is resident, or it has none."""
        return seq.prefix is None or self._prefixes.is_resident(seq.prefix)

    def release_prefix(self, seq: Sequence) -> None:
        """Release the sequence's prefix, now or after the steps in flight."""
        if seq.prefix is None:
            return
        if (last := self._in_flight.last_with(seq)) is not None:
            last.prefixes.append(seq.prefix)
        else:
            self._prefixes.release(seq.prefix)

    # --- pages ---

    def can_hold(self, seq: Sequence) -> bool:
        """Return whether the pool is large enough for the sequence alone."""
        return self._allocator.num_pages_for(seq.max_slots) <= self._allocator.num_pages

    def attach_cached_pages(self, seq: Sequence) -> bool:
        """Start a sequence with the cached pages of its prompt.

        Returns False, without change, if the rest of its tokens does not fit into the pool now.
        """
        found = self._prompt_cache.find(seq) if self._prompt_cache is not None else []
        if not self._allocator.fits(len(seq.token_ids), found):
            return False
        if self._prompt_cache is not None:
            self._prompt_cache.attach(seq, found)
        return True

    def cache_full_pages(self, seq: Sequence) -> None:
        """Put the full pages of a sequence that has sampled a token into the prompt cache."""
        if self._prompt_cache is not None:
            self._prompt_cache.cache_full_pages(seq)

    def grow(self, seq: Sequence, num_tokens: int) -> bool:
        """Extend the sequence's pages to `num_tokens`. Returns False if pages run out."""
        return self._allocator.grow(seq.pages, num_tokens)

    def fits_after_steps_in_flight(self, seq: Sequence, num_tokens: int) -> bool:
        """Return whether the steps in flight will free enough pages for `num_tokens`."""
        num_in_flight = sum(map(len, self._in_flight.pages))
        missing = self._allocator.num_pages_for(num_tokens) - len(seq.pages)
        return missing <= self._allocator.num_free + num_in_flight

    def num_missing_pages(self, seq: Sequence) -> int:
        """Return how many pages more would have to be free to start the sequence, not counting
        those that the steps in flight will free."""
        found = self._prompt_cache.find(seq) if self._prompt_cache is not None else []
        missing = self._allocator.num_missing(len(seq.token_ids), found)
        return missing - sum(map(len, self._in_flight.pages))

    def num_own_pages(self, seq: Sequence) -> int:
        """Return how many pages of the sequence no other sequence holds."""
        return self._allocator.num_own(seq.pages)

    def release_pages(self, seq: Sequence) -> None:
        """Release all of the sequence's pages, now or after the steps in flight."""
        pages, seq.pages = seq.pages, []
        if (last := self._in_flight.last_with(seq)) is not None:
            last.pages += pages
        else:
            self._allocator.free(pages)

    def release(self, batch: InFlightBatch) -> None:
        """Release what waited for a batch that is not in flight any more."""
        self._allocator.free(batch.pages)
        for prefix in batch.prefixes:
            self._prefixes.release(prefix)
