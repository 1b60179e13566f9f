"""Leases on blobs of running uploads, so that a failed upload leaves no blobs."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import suppress
from threading import Lock
from typing import Protocol

from prefix_store.blobs.blobs import BlobStore
from prefix_store.digest import Digest
from prefix_store.errors import StorageFailure, UnknownDigest

logger = logging.getLogger(__name__)


class Versions(Protocol):
    """Tells which blobs versions refer to."""

    def refers_to(self, digest: Digest) -> bool: ...


class BlobLeases:
    """Reference counts of the blobs that this process's uploads have put.

    A blob is deleted as soon as all of these hold: no upload of this process leases it, no version
    refers to it, an upload of this process created it, and it has not been put since, neither by
    another server nor by an upload whose digest is not known here yet. Garbage collection deletes
    all other leftovers after its grace period.
    """

    def __init__(self, blobs: BlobStore, versions: Versions) -> None:
        self._blobs = blobs
        self._versions = versions
        self._ref_counts: Counter[Digest] = Counter()
        self._put_at: dict[Digest, float] = {}
        """Time of the last `put` of blobs that this process created, by the blob store's clock."""
        self._lock = Lock()

    def acquire(self, digest: Digest) -> None:
        """Increment a blob's reference count, before the `put` if the digest is known by then.

        Blocks while a deletion runs, so never call it on the event loop.
        """
        with self._lock:
            self._ref_counts[digest] += 1

    def held(self) -> set[Digest]:
        """Return the blobs that uploads of this process hold now."""
        with self._lock:
            return set(self._ref_counts)

    def record_put(self, digest: Digest, put_at: float, *, is_new: bool) -> None:
        """Record that an upload of this process put a blob; `is_new`: it did not exist before.

        `put_at` is the time of that very put: a later one belongs to an upload that is still to
        acquire the blob.
        """
        with self._lock:
            if is_new or digest in self._put_at:
                self._put_at[digest] = max(put_at, self._put_at.get(digest, 0.0))

    def release(self, digest: Digest) -> None:
        """Decrement a blob's reference count; at zero, delete the blob if no version refers to it.

        Holds the lock to the end: an upload that acquires the blob later puts it again.
        """
        with self._lock:
            self._ref_counts[digest] -= 1
            if self._ref_counts[digest] > 0:
                return
            del self._ref_counts[digest]
            put_at = self._put_at.get(digest)
            if put_at is not None and self._delete_unreferenced(digest, put_at):
                del self._put_at[digest]

    def _delete_unreferenced(self, digest: Digest, put_at: float) -> bool:
        """Delete an unreferenced blob. Return False if a later upload has put it again."""
        try:
            if self._versions.refers_to(digest):
                return True
            return self._blobs.delete(digest, put_by=put_at) or not self._blobs.exists(digest)
        except StorageFailure as exc:
            logger.warning("blobs of an upload stay until garbage collection: %s", exc)
            return True


class BlobLease:
    """Blobs leased by one upload."""

    def __init__(self, leases: BlobLeases, blobs: BlobStore) -> None:
        self._leases = leases
        self._blobs = blobs
        self._digests: list[Digest] = []

    def put(self, data: bytes) -> Digest:
        """Store bytes and lease the blob."""
        digest = Digest.of(data)
        self._acquire(digest)
        is_new = not self._blobs.exists(digest)
        self._blobs.put(data)
        with suppress(UnknownDigest, StorageFailure):
            self._leases.record_put(digest, self._blobs.put_at(digest), is_new=is_new)
        return digest

    def adopt(self, digest: Digest, put_at: float, *, is_new: bool) -> None:
        """Lease a blob that the engine has put at that Unix time, by the store's clock."""
        self._acquire(digest)
        self._leases.record_put(digest, put_at, is_new=is_new)

    def hold(self, digest: Digest) -> None:
        """Lease a blob that a version has."""
        self._acquire(digest)

    def release(self) -> None:
        """Release all blobs when the upload has ended, successfully or not."""
        while self._digests:
            self._leases.release(self._digests.pop())

    def _acquire(self, digest: Digest) -> None:
        self._leases.acquire(digest)
        self._digests.append(digest)
