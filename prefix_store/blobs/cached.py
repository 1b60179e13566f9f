"""Local cache of remote blobs, which keeps serving during an outage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedIOBase, BytesIO
from math import inf
from pathlib import Path
from threading import Lock

from prefix_store.blobs.blobs import BlobStore, FileBlobStore
from prefix_store.blobs.remote import RemoteBlobStore
from prefix_store.digest import Content, Digest
from prefix_store.errors import DigestMismatch, PrefixStoreError, StorageFailure, UnknownDigest

UNREACHABLE_AFTER_S = 3.0
"""A remote store whose probe takes longer counts as unreachable."""


def open_blobs(where: str, cache: Path, max_bytes: int) -> BlobStore:
    """Open a folder, or any URL that fsspec supports with a local `cache` folder of `max_bytes`.

    Raises `StorageFailure`.
    """
    scheme, separator, path = where.partition("://")
    if not separator or scheme in ("file", "local"):
        return FileBlobStore(Path(path if separator else where))
    return CachedBlobStore(RemoteBlobStore(where), FileBlobStore(cache), max_bytes)


class CachedBlobStore:
    """Cache in front of a remote blob store. Copies are verified when they are read.

    `quarantined` and `check` do no network I/O: they report what the last `refresh_health` or other
    call found.
    """

    def __init__(self, remote: BlobStore, cache: FileBlobStore, max_bytes: int) -> None:
        """`max_bytes`: size limit of the cache; least recently read blobs are evicted first."""
        self._remote = remote
        self._cache = cache
        self._max_bytes = max_bytes
        self._quarantined: set[Digest] = set()
        self._last_error: StorageFailure | None = None
        self._probe_started_s = float("inf")
        self._lock = Lock()

    def refresh_health(self) -> None:
        self._probe_started_s = time.monotonic()
        with suppress(StorageFailure), self._tracking_health():
            self._quarantined = self._remote.quarantined()
        self._probe_started_s = float("inf")

    def check(self) -> None:
        if self._last_error is not None:
            raise StorageFailure(str(self._last_error))
        if time.monotonic() - self._probe_started_s > UNREACHABLE_AFTER_S:
            raise StorageFailure("the blob store does not answer")

    def put(self, content: Content) -> Digest:
        with self._tracking_health():
            digest = self._remote.put(content)
        self._quarantined = self._quarantined - {digest}
        self._cache_blob(content)
        return digest

    def get(self, digest: Digest) -> bytes | bytearray:
        with suppress(UnknownDigest, DigestMismatch, StorageFailure):
            cached = self._cache.get(digest)
            self._cache.touch(digest)
            return cached
        try:
            with self._tracking_health():
                data = self._remote.get(digest)
        except DigestMismatch:
            self._quarantined = self._quarantined | {digest}
            raise
        self._cache_blob(data)
        return data

    def open(self, digest: Digest) -> BufferedIOBase:
        with suppress(UnknownDigest, DigestMismatch, StorageFailure):
            file = self._cache.open(digest)
            self._cache.touch(digest)
            return file
        data = self.get(digest)
        with suppress(UnknownDigest, DigestMismatch, StorageFailure):
            return self._cache.open(digest)
        return BytesIO(data)  # it could not be cached

    def quarantined(self) -> set[Digest]:
        return self._quarantined

    def exists(self, digest: Digest) -> bool:
        with self._tracking_health():
            return self._remote.exists(digest)

    def delete(self, digest: Digest, *, put_by: float = inf) -> bool:
        with self._tracking_health():
            is_gone = self._remote.delete(digest, put_by=put_by)
        if is_gone:
            self._quarantined = self._quarantined - {digest}
            self._cache.delete(digest)
        return is_gone

    def put_at(self, digest: Digest) -> float:
        with self._tracking_health():
            return self._remote.put_at(digest)

    def num_bytes(self, digest: Digest) -> int:
        with self._tracking_health():
            return self._remote.num_bytes(digest)

    def sweep(self) -> None:
        self._cache.sweep()
        with self._tracking_health():
            self._remote.sweep()

    def __iter__(self) -> Iterator[Digest]:
        with self._tracking_health():
            yield from self._remote

    @contextmanager
    def _tracking_health(self) -> Iterator[None]:
        """Record whether the remote store answers."""
        try:
            yield
        except StorageFailure as exc:
            self._last_error = exc
            raise
        except PrefixStoreError:
            self._last_error = None
            raise
        self._last_error = None

    def _cache_blob(self, content: Content) -> None:
        """Cache a blob. A failure to write is ignored, as the remote store has the blob."""
        with suppress(StorageFailure), self._lock:
            self._cache.put(content)
            self._trim()

    def _trim(self) -> None:
        kept = []
        for digest in self._cache:
            with suppress(UnknownDigest):  # another process is trimming, too
                kept.append((self._cache.put_at(digest), self._cache.num_bytes(digest), digest))
        num_bytes = sum(size for _, size, _ in kept)
        for _, size, digest in sorted(kept, key=lambda one: one[0]):
            if num_bytes <= self._max_bytes:
                break
            self._cache.delete(digest)
            num_bytes -= size
