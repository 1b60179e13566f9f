"""Prompt cache: pages with the start of a prompt are computed once and shared by sequences."""

from __future__ import annotations

from array import array
from hashlib import blake2b

from prefix_store.digest import Digest
from server.engine.scheduler.page_allocator import PageAllocator
from server.engine.scheduler.sequence import Sequence


class PromptCache:
    """Cache of full pages by block hash, a hash over the preceding page's hash and the token ids.

    The first page's hash includes the prefix's digest, because keys and values depend on the
    prefix: those of equal tokens after two prefixes differ. Sequences that compile or verify
    neither use nor fill the cache.
    """

    def __init__(self, allocator: PageAllocator) -> None:
        self._allocator = allocator
        self.num_cached_tokens = 0

    def find(self, seq: Sequence) -> list[int]:
        """Return the cached pages with the start of a sequence.

        They leave at least one token to compute, because the last one's logits are needed, and all
        tokens whose prompt log-probabilities are requested.
        """
        if seq.compiles or seq.verifies:
            return []
        most = len(seq.token_ids) - 1
        if seq.sampling.prompt_logprobs is not None:
            most = min(most, seq.num_scored)
        found: list[int] = []
        for block_hash in self._block_hashes(seq, most // self._allocator.page_size):
            if (page := self._allocator.find(block_hash)) is None:
                break
            found.append(page)
        return found

    def attach(self, seq: Sequence, pages: list[int]) -> None:
        """Start a sequence, which holds no page yet, with the pages that `find` returned."""
        self._allocator.acquire(pages)
        seq.pages = list(pages)
        seq.num_hashed_pages = len(pages)
        seq.num_computed = seq.num_scheduled = len(pages) * self._allocator.page_size
        if seq.num_cached_tokens is None:  # after a preemption it would count its own pages
            seq.num_cached_tokens = seq.num_computed
            self.num_cached_tokens += seq.num_cached_tokens

    def cache_full_pages(self, seq: Sequence) -> None:
        """Cache the full pages of a sequence that has sampled a token: they hold no NaN."""
        num_full = 0 if seq.verifies else seq.num_computed // self._allocator.page_size
        if num_full <= seq.num_hashed_pages:
            return
        hashes = self._block_hashes(seq, num_full)
        for i in range(seq.num_hashed_pages, num_full):
            self._allocator.set_block_hash(seq.pages[i], hashes[i])
        seq.num_hashed_pages = num_full

    def _block_hashes(self, seq: Sequence, num_pages: int) -> list[bytes]:
        """Return the hashes of the first `num_pages` pages, and keep them in the sequence."""
        hashes, size = seq.block_hashes, self._allocator.page_size
        for i in range(len(hashes), num_pages):
            before = hashes[-1] if hashes else _root(seq.prefix)
            hashes.append(_block_hash(before, seq.token_ids[i * size : (i + 1) * size]))
        return hashes[:num_pages]


def _root(prefix: Digest | None) -> bytes:
    return blake2b(str(prefix or "").encode(), digest_size=32).digest()


def _block_hash(before: bytes, token_ids: list[int]) -> bytes:
    return blake2b(before + array("I", token_ids).tobytes(), digest_size=32).digest()
