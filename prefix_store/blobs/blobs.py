"""Content-addressed bytes. Knows no tensor."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from prefix_store.digest import Digest
from prefix_store.errors import DigestMismatch, StorageFailure, UnknownDigest

logger = logging.getLogger(__name__)

_STALE_S = 3600.0


class BlobStore(Protocol):
    """Bytes by digest. Blobs are immutable, so `put` is idempotent and safe to race.

    Every method raises `StorageFailure` where the disk or the network refuses.
    """

    def put(self, data: bytes) -> Digest:
        """Keep `data`; when this returns it survives a power cut. Makes an existing blob young."""
        ...

    def get(self, digest: Digest) -> bytes:
        """Raises `UnknownDigest` or, if the bytes rotted, `DigestMismatch`.

        Rotten bytes are moved aside, into quarantine, until the same blob is put again.
        """
        ...

    def quarantined(self) -> set[Digest]:
        """The blobs that were found rotten and not put again."""
        ...

    def check(self) -> None:
        """Return if it answers, or did when it was last asked."""
        ...

    def refresh_health(self) -> None:
        """Find out anew what `quarantined` and `check` say, where that is remembered."""
        ...

    def exists(self, digest: Digest) -> bool: ...

    def delete(self, digest: Digest, *, put_by: float = inf) -> bool:
        """Whether a blob whose last `put` was not after `put_by` was there, or one in quarantine,
        and is gone now."""
        ...

    def put_at(self, digest: Digest) -> float:
        """When it was last put, in seconds since 1970 by the store's clock. Raises
        `UnknownDigest`."""
        ...

    def sweep(self) -> None:
        """Remove what writers that died have left."""
        ...

    def __iter__(self) -> Iterator[Digest]: ...


class FileBlobStore:
    """Blobs as files, `<root>/sha256/ab/cdef...`, each written whole and then renamed into place.

    Any number of processes of one machine may share a root. Rotten ones lie in
    `<root>/quarantine/`, under their digest.
    """

    def __init__(self, root: Path) -> None:
        self._blobs = root / "sha256"
        self._temp = root / "tmp"
        self._quarantine = root / "quarantine"
        self._lock = root / "lock"
        with _refused("be opened"):
            for folder in (self._blobs, self._temp, self._quarantine):
                folder.mkdir(parents=True, exist_ok=True)
            self._lock.touch()
            for folder in (root, root.parent):
                _sync_folder(folder)
        self.sweep()

    def put(self, data: bytes) -> Digest:
        digest = Digest.of(data)
        path = self._path(digest)
        with _refused("be written"), self._locked(fcntl.LOCK_SH):
            if not _refresh(path, digest):
                self._write(path, data)
            # Also for a blob that was there: whoever wrote it may have died before this line.
            for folder in (path.parent, self._blobs):
                _sync_folder(folder)
            self._aside(digest).unlink(missing_ok=True)
        return digest

    def get(self, digest: Digest) -> bytes:
        with _refused("be read"):
            try:
                data = self._path(digest).read_bytes()
            except FileNotFoundError:
                if self._aside(digest).exists():
                    raise rotten(digest) from None
                raise UnknownDigest(f"no blob {digest}") from None
        if Digest.of(data) != digest:
            with suppress(StorageFailure):  # where nothing can be moved, it is found again
                self._set_aside(digest)
            raise rotten(digest)
        return data

    def quarantined(self) -> set[Digest]:
        found = set()
        with _refused("be listed"):
            for path in self._quarantine.iterdir():
                with suppress(ValueError):
                    found.add(Digest(f"sha256:{path.name}"))
        return {digest for digest in found if not self.exists(digest)}

    def check(self) -> None:
        with _refused("be read"):
            self._quarantine.stat()

    def refresh_health(self) -> None:
        """Nothing is remembered."""

    def exists(self, digest: Digest) -> bool:
        with _refused("be read"):
            return self._path(digest).is_file()

    def delete(self, digest: Digest, *, put_by: float = inf) -> bool:
        # Exclusive: a `put` of the same bytes must not make the blob young between look and unlink.
        with _refused("be deleted"), self._locked(fcntl.LOCK_EX), suppress(UnknownDigest):
            if self._aside(digest).exists():
                self._aside(digest).unlink()
                return True
            if self.put_at(digest) <= put_by:
                self._path(digest).unlink()
                return True
        return False

    def put_at(self, digest: Digest) -> float:
        with _refused("be read"):
            try:
                return self._path(digest).stat().st_mtime
            except FileNotFoundError:
                raise UnknownDigest(f"no blob {digest}") from None

    def touch(self, digest: Digest) -> None:
        """Make a blob as young as a `put` does, if it is there."""
        with _refused("be written"), suppress(FileNotFoundError):
            os.utime(self._path(digest))

    def num_bytes(self, digest: Digest) -> int:
        """Raises `UnknownDigest`."""
        with _refused("be read"):
            try:
                return self._path(digest).stat().st_size
            except FileNotFoundError:
                raise UnknownDigest(f"no blob {digest}") from None

    def __iter__(self) -> Iterator[Digest]:
        with _refused("be listed"):
            for path in self._blobs.glob("??/*"):
                with suppress(ValueError):  # a file that somebody else put there
                    yield Digest(f"sha256:{path.parent.name}{path.name}")

    def sweep(self) -> None:
        """Remove what writers that died have left, once it is an hour old."""
        with _refused("be swept"):
            for path in self._temp.iterdir():
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > _STALE_S:
                        path.unlink()

    def _path(self, digest: Digest) -> Path:
        return self._blobs / digest.hex[:2] / digest.hex[2:]

    def _aside(self, digest: Digest) -> Path:
        return self._quarantine / digest.hex

    def _set_aside(self, digest: Digest) -> None:
        """Unless somebody has put the blob again, or set it aside, since it was read."""
        path = self._path(digest)
        with (
            _refused("be put aside"),
            self._locked(fcntl.LOCK_EX),
            suppress(FileNotFoundError),
        ):
            if Digest.of(path.read_bytes()) != digest:
                path.replace(self._aside(digest))
                logger.error("the stored bytes of %s have changed; they are in quarantine", digest)

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        temp = self._temp / uuid4().hex
        try:
            with temp.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temp.replace(path)  # atomic: a reader sees all of the blob or none of it
        except OSError:
            temp.unlink(missing_ok=True)
            raise

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        with self._lock.open("rb") as file:  # closing it lets go of the lock
            fcntl.flock(file, kind)
            yield


def rotten(digest: Digest) -> DigestMismatch:
    """What `BlobStore.get` raises for bytes that have changed."""
    return DigestMismatch(f"the stored bytes of {digest} have changed: upload them again")


def _refresh(path: Path, digest: Digest) -> bool:
    """Make an existing blob young, so that garbage collection spares it. False if none is sound."""
    try:
        os.utime(path)
        return Digest.of(path.read_bytes()) == digest
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, as fsync does for a file's bytes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _refused(action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "input/output error"
        raise StorageFailure(f"the blob store cannot {action}: {reason}") from error
