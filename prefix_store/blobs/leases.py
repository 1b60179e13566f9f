"""Leases on blobs of running uploads, so that a failed upload leaves no blobs."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import suppress
from threading import Lock
from typing import Protocol

from prefix_store.blobs.blobs import BlobStore
from prefix_store.digest import Content, Digest
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
        self._num_bytes: dict[Digest, int] = {}
        """Sizes of these blobs."""
        self._lock = Lock()

    @property
    def digests(self) -> set[Digest]:
        """The blobs of running uploads."""
        with self._lock:
            return set(self._ref_counts)

    def num_bytes(self) -> int:
        """Return the size of all blobs of running uploads that no version refers to yet."""
        with self._lock:
            created = dict(self._num_bytes)
        return sum(size for digest, size in created.items() if not self._versions.refers_to(digest))

    def acquire(self, digest: Digest) -> None:
        """Increment a blob's reference count, before the `put` if the digest is known by then.

        Blocks while a deletion runs, so never call it on the event loop.
        """
        with self._lock:
            self._ref_counts[digest] += 1

    def record_put(self, digest: Digest, put_at: float, num_bytes: int, *, is_new: bool) -> None:
        """Record that an upload of this process put a blob; `is_new`: it did not exist before.

        `put_at` is the time of that very put: a later one belongs to an upload that is still to
        acquire the blob.
        """
        with self._lock:
            if is_new or digest in self._put_at:
                self._put_at[digest] = max(put_at, self._put_at.get(digest, 0.0))
                self._num_bytes[digest] = num_bytes

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
                del self._put_at[digest], self._num_bytes[digest]

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
    """Blobs leased by one upload. Thread-safe: an upload that is cancelled may release its lease
    while a thread of it still puts a blob, which is then released as soon as it is put."""

    def __init__(self, leases: BlobLeases, blobs: BlobStore) -> None:
        self._leases = leases
        self._blobs = blobs
        self._lock = Lock()
        self._is_released = False
        self._digests: list[Digest] = []

    @property
    def digests(self) -> list[Digest]:
        """The leased blobs."""
        with self._lock:
            return list(self._digests)

    def put(self, content: Content) -> Digest:
        """Store a blob and lease it."""
        digest = Digest.of(content)
        self._leases.acquire(digest)
        try:
            is_new = not self._blobs.exists(digest)
            self._blobs.put(content)
            with suppress(UnknownDigest, StorageFailure):
                put_at, num_bytes = self._blobs.put_at(digest), self._blobs.num_bytes(digest)
                self._leases.record_put(digest, put_at, num_bytes, is_new=is_new)
        finally:
            self._keep(digest)
        return digest

    def adopt(self, digest: Digest, put_at: float, num_bytes: int, *, is_new: bool) -> None:
        """Lease a blob that the engine has put at that Unix time, by the store's clock."""
        self._leases.acquire(digest)
        self._leases.record_put(digest, put_at, num_bytes, is_new=is_new)
        self._keep(digest)

    def hold(self, digest: Digest) -> None:
        """Lease a blob that a version has."""
        self._leases.acquire(digest)
        self._keep(digest)

    def release(self) -> None:
        """Release all blobs when the upload has ended, successfully or not."""
        with self._lock:
            self._is_released = True
            digests, self._digests = self._digests, []
        for digest in digests:
            self._leases.release(digest)

    def _keep(self, digest: Digest) -> None:
        """Keep an acquired blob until `release`, or release it if that has been called."""
        with self._lock:
            if not self._is_released:
                self._digests.append(digest)
                return
        self._leases.release(digest)
