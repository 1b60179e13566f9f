from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from prefix_store.blobs.blobs import BlobStore
from prefix_store.digest import Digest
from prefix_store.errors import DigestMismatch, UnknownDigest

Corrupt = Callable[[Digest, bytes], None]


class BlobStoreContract:
    """Contract of a blob store.

    Needs the fixtures `blobs`, an empty store, and `corrupt`, which overwrites a stored blob.
    """

    def test_put_then_get(self, blobs: BlobStore) -> None:
        digest = blobs.put(b"hello")

        assert blobs.get(digest) == b"hello"
        assert blobs.exists(digest)
        assert list(blobs) == [digest]

    def test_put_is_idempotent(self, blobs: BlobStore) -> None:
        assert blobs.put(b"hello") == blobs.put(b"hello") == Digest.of(b"hello")
        assert len(list(blobs)) == 1

    def test_an_empty_blob_is_a_blob(self, blobs: BlobStore) -> None:
        assert blobs.get(blobs.put(b"")) == b""

    def test_a_blob_that_was_never_put_is_unknown(self, blobs: BlobStore) -> None:
        digest = Digest.of(b"never put")

        assert not blobs.exists(digest)
        assert not blobs.delete(digest)
        with pytest.raises(UnknownDigest):
            blobs.get(digest)
        with pytest.raises(UnknownDigest):
            blobs.put_at(digest)

    def test_a_deleted_blob_is_gone(self, blobs: BlobStore) -> None:
        digest = blobs.put(b"hello")

        assert blobs.delete(digest)
        assert not blobs.exists(digest)
        assert list(blobs) == []

    def test_a_young_blob_is_spared(self, blobs: BlobStore) -> None:
        digest = blobs.put(b"hello")

        assert abs(time.time() - blobs.put_at(digest)) < 60
        assert not blobs.delete(digest, put_by=blobs.put_at(digest) - 60)
        assert blobs.get(digest) == b"hello"

    def test_racing_puts_of_the_same_bytes_leave_one_blob(self, blobs: BlobStore) -> None:
        data = b"x" * 100_000
        with ThreadPoolExecutor(8) as pool:
            digests = set(pool.map(blobs.put, [data] * 32))

        assert digests == {Digest.of(data)} == set(blobs)
        assert blobs.get(Digest.of(data)) == data

    def test_a_corrupt_blob_is_quarantined_until_it_is_put_again(
        self, blobs: BlobStore, corrupt: Corrupt
    ) -> None:
        digest, other = blobs.put(b"hello"), blobs.put(b"other")
        corrupt(digest, b"jello")

        for _ in range(2):
            with pytest.raises(DigestMismatch):
                blobs.get(digest)
        blobs.refresh_health()
        assert blobs.quarantined() == {digest}
        assert (list(blobs), blobs.exists(digest), blobs.get(other)) == ([other], False, b"other")

        blobs.put(b"hello")
        assert (blobs.quarantined(), blobs.get(digest)) == (set(), b"hello")

    def test_a_blob_in_quarantine_can_be_deleted(self, blobs: BlobStore, corrupt: Corrupt) -> None:
        digest = blobs.put(b"hello")
        corrupt(digest, b"jello")
        with pytest.raises(DigestMismatch):
            blobs.get(digest)

        assert blobs.delete(digest)
        blobs.refresh_health()
        assert blobs.quarantined() == set()
        with pytest.raises(UnknownDigest):
            blobs.get(digest)

    def test_putting_a_corrupt_blob_again_repairs_it(
        self, blobs: BlobStore, corrupt: Corrupt
    ) -> None:
        for content in (b"jello", b"hell", b""):
            digest = blobs.put(b"hello")
            corrupt(digest, content)
            blobs.put(b"hello")
            assert blobs.get(digest) == b"hello"

    def test_it_answers(self, blobs: BlobStore) -> None:
        blobs.refresh_health()
        blobs.check()
