"""Blobs of uploads that are no versions yet: what comes to nothing takes its blobs along."""

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
    """Who knows which blobs versions refer to."""

    def refers_to(self, digest: Digest) -> bool: ...


class HeldBlobs:
    """What the uploads of this process have put, until each is a version or came to nothing.

    A blob is deleted at once when no upload here holds it any more, no version refers to it, one of
    these uploads has made it, and nobody has put it since: not an upload of another server, nor one
    of this process whose digest is not known here yet. Whatever else is left of a blob, garbage
    collection finds after its grace.
    """

    def __init__(self, blobs: BlobStore, versions: Versions) -> None:
        self._blobs = blobs
        self._versions = versions
        self._num_holders: Counter[Digest] = Counter()
        self._put_at: dict[Digest, float] = {}
        """Of blobs that uploads of this process have made, by the blob store's clock."""
        self._lock = Lock()

    def hold(self, digest: Digest) -> None:
        """Once more. Before the blob is put, where its digest is known then. May wait for a
        deletion: not for the event loop."""
        with self._lock:
            self._num_holders[digest] += 1

    def was_put(self, digest: Digest, *, is_new: bool) -> None:
        """By an upload of this process; `is_new`: it had not been there."""
        with self._lock:
            is_ours = is_new or digest in self._put_at
        if is_ours:
            with suppress(UnknownDigest, StorageFailure):
                put_at = self._blobs.put_at(digest)
                with self._lock:
                    self._put_at[digest] = max(put_at, self._put_at.get(digest, 0.0))

    def let_go(self, digest: Digest) -> None:
        """Once less; the last one deletes it, if it came to nothing.

        Under the lock to the end: who holds it from now on finds it deleted, and puts it anew.
        """
        with self._lock:
            self._num_holders[digest] -= 1
            if self._num_holders[digest] > 0:
                return
            del self._num_holders[digest]
            put_at = self._put_at.get(digest)
            if put_at is not None and self._settle(digest, put_at):
                del self._put_at[digest]

    def _settle(self, digest: Digest, put_at: float) -> bool:
        """Whether it is a version's, or gone. If not, somebody has put it since, and settles it."""
        try:
            if self._versions.refers_to(digest):
                return True
            return self._blobs.delete(digest, put_by=put_at) or not self._blobs.exists(digest)
        except StorageFailure as exc:
            logger.warning("what an upload has left stays until it is collected: %s", exc)
            return True


class Holding:
    """What one upload holds."""

    def __init__(self, held: HeldBlobs, blobs: BlobStore) -> None:
        self._held = held
        self._blobs = blobs
        self._digests: list[Digest] = []

    def put(self, data: bytes) -> Digest:
        """Keep bytes, until the upload ends."""
        digest = Digest.of(data)
        self._hold(digest)
        is_new = not self._blobs.exists(digest)
        self._blobs.put(data)
        self._held.was_put(digest, is_new=is_new)
        return digest

    def take(self, digest: Digest, *, is_new: bool) -> None:
        """The same for a blob that the engine has put."""
        self._hold(digest)
        self._held.was_put(digest, is_new=is_new)

    def let_go(self) -> None:
        """The upload has ended, well or badly."""
        while self._digests:
            self._held.let_go(self._digests.pop())

    def _hold(self, digest: Digest) -> None:
        self._held.hold(digest)
        self._digests.append(digest)
