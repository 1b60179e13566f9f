"""Remote blobs with a local copy of those that were used, which outlasts an outage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from threading import Lock

from prefix_store.blobs.blobs import BlobStore, FileBlobStore
from prefix_store.blobs.remote import RemoteBlobStore
from prefix_store.digest import Digest
from prefix_store.errors import DigestMismatch, PrefixStoreError, StorageFailure, UnknownDigest

AWAY_S = 3.0
"""Looked at for longer, it is said to be away."""


def open_blobs(where: str, cache: Path, max_bytes: int) -> BlobStore:
    """A folder, or whatever URL fsspec knows; then `cache` is the folder for copies.

    Raises `StorageFailure`.
    """
    scheme, separator, path = where.partition("://")
    if not separator or scheme in ("file", "local"):
        return FileBlobStore(Path(path if separator else where))
    return CachedBlobStore(RemoteBlobStore(where), FileBlobStore(cache), max_bytes)


class CachedBlobStore:
    """A blob store in front of a remote one. Copies are hashed when they are read.

    `quarantined` and `check` do not ask the remote store: they say what was found last, by `look`
    or by whatever else asked it.
    """

    def __init__(self, remote: BlobStore, cache: FileBlobStore, max_bytes: int) -> None:
        """`max_bytes`: of copies; those that were not read for longest go first."""
        self._remote = remote
        self._cache = cache
        self._max_bytes = max_bytes
        self._rotten: set[Digest] = set()
        self._trouble: StorageFailure | None = None
        self._looking_since_s = float("inf")
        self._lock = Lock()

    def refresh_health(self) -> None:
        self._looking_since_s = time.monotonic()
        with suppress(StorageFailure), self._asking():
            self._rotten = self._remote.quarantined()
        self._looking_since_s = float("inf")

    def check(self) -> None:
        if self._trouble is not None:
            raise StorageFailure(str(self._trouble))
        if time.monotonic() - self._looking_since_s > AWAY_S:
            raise StorageFailure("the blob store does not answer")

    def put(self, data: bytes) -> Digest:
        with self._asking():
            digest = self._remote.put(data)
        self._rotten = self._rotten - {digest}
        self._keep(data)
        return digest

    def get(self, digest: Digest) -> bytes:
        with suppress(UnknownDigest, DigestMismatch, StorageFailure):
            data = self._cache.get(digest)
            self._cache.touch(digest)
            return data
        try:
            with self._asking():
                data = self._remote.get(digest)
        except DigestMismatch:
            self._rotten = self._rotten | {digest}
            raise
        self._keep(data)
        return data

    def quarantined(self) -> set[Digest]:
        return self._rotten

    def exists(self, digest: Digest) -> bool:
        with self._asking():
            return self._remote.exists(digest)

    def delete(self, digest: Digest, *, put_by: float = inf) -> bool:
        with self._asking():
            is_gone = self._remote.delete(digest, put_by=put_by)
        if is_gone:
            self._rotten = self._rotten - {digest}
            self._cache.delete(digest)
        return is_gone

    def put_at(self, digest: Digest) -> float:
        with self._asking():
            return self._remote.put_at(digest)

    def sweep(self) -> None:
        self._cache.sweep()
        with self._asking():
            self._remote.sweep()

    def __iter__(self) -> Iterator[Digest]:
        with self._asking():
            yield from self._remote

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Whether it answers is remembered."""
        try:
            yield
        except StorageFailure as exc:
            self._trouble = exc
            raise
        except PrefixStoreError:
            self._trouble = None
            raise
        self._trouble = None

    def _keep(self, data: bytes) -> None:
        """A copy that cannot be written is none: the remote store has it."""
        with suppress(StorageFailure), self._lock:
            self._cache.put(data)
            self._trim()

    def _trim(self) -> None:
        kept = []
        for digest in self._cache:
            with suppress(UnknownDigest):  # another process trims it too
                kept.append((self._cache.put_at(digest), self._cache.num_bytes(digest), digest))
        num_bytes = sum(size for _, size, _ in kept)
        for _, size, digest in sorted(kept, key=lambda one: one[0]):
            if num_bytes <= self._max_bytes:
                break
            self._cache.delete(digest)
            num_bytes -= size
