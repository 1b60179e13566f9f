"""Content-addressed blobs. Knows no tensor."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from io import BufferedIOBase, BufferedReader
from math import inf
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from prefix_store.blobs.failures import storage_failure
from prefix_store.digest import Content, Digest, pieces_of
from prefix_store.errors import DigestMismatch, StorageFailure, UnknownDigest

logger = logging.getLogger(__name__)

_STALE_S = 3600.0


class BlobStore(Protocol):
    """Blobs by digest. Blobs are immutable, so `put` is idempotent and safe to race.

    Every method raises `StorageFailure` if the disk or the network fails.
    """

    def put(self, content: Content) -> Digest:
        """Store a blob durably. Renews the age of an existing one."""
        ...

    def get(self, digest: Digest) -> bytes | bytearray:
        """Return a blob. Raises `UnknownDigest`, or `DigestMismatch` if its bytes are corrupt.

        Corrupt bytes are moved into quarantine until the same blob is put again.
        """
        ...

    def open(self, digest: Digest) -> BufferedIOBase:
        """Open a blob whose bytes have just been verified, for reading in pieces.

        Raises the errors of `get`.
        """
        ...

    def quarantined(self) -> set[Digest]:
        """Return the blobs that were found corrupt and not put again."""
        ...

    def check(self) -> None:
        """Raise `StorageFailure` if the store was unreachable when it was last asked."""
        ...

    def refresh_health(self) -> None:
        """Refresh the state that `quarantined` and `check` report, if it is cached."""
        ...

    def exists(self, digest: Digest) -> bool:
        """Whether a blob is stored and not in quarantine."""
        ...

    def delete(self, digest: Digest, *, put_by: float = inf) -> bool:
        """Delete a blob in quarantine, or one whose last `put` was not after `put_by` (Unix time).

        Returns whether a blob was deleted.
        """
        ...

    def put_at(self, digest: Digest) -> float:
        """Return the Unix time of the last `put`, by the store's clock. Raises `UnknownDigest`."""
        ...

    def num_bytes(self, digest: Digest) -> int:
        """Return a blob's size. Raises `UnknownDigest`."""
        ...

    def sweep(self) -> None:
        """Remove temporary files of writers that died."""
        ...

    def __iter__(self) -> Iterator[Digest]:
        """Iterate over the stored blobs, without those in quarantine."""
        ...


class FileBlobStore:
    """Blobs as files, `<root>/sha256/ab/cdef...`, written to a temporary file and renamed.

    Processes on one machine may share a root. Corrupt blobs are in `<root>/quarantine/`, named by
    their digest.
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

    def put(self, content: Content) -> Digest:
        digest = Digest.of(content)
        path = self._path(digest)
        with _refused("be written"), self._locked(fcntl.LOCK_SH):
            if not _refresh(path, digest):
                self._write(path, content)
            # Also for an existing blob: its writer may have died before this line.
            for folder in (path.parent, self._blobs):
                _sync_folder(folder)
            self._quarantine_path(digest).unlink(missing_ok=True)
        return digest

    def get(self, digest: Digest) -> bytearray:
        with _refused("be read"), self._opened(digest) as file:
            data = _read_whole(file)
        self._verify(digest, Digest.of(data))
        return data

    def open(self, digest: Digest) -> BufferedReader:
        file = self._opened(digest)
        try:
            with _refused("be read"):
                found = Digest.of_file(file)
                file.seek(0)
            self._verify(digest, found)
        except BaseException:
            file.close()
            raise
        return file

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
        """Do nothing: no state is cached."""

    def exists(self, digest: Digest) -> bool:
        with _refused("be read"):
            return self._path(digest).is_file()

    def delete(self, digest: Digest, *, put_by: float = inf) -> bool:
        # Exclusive: a `put` of the same bytes must not renew the blob between stat and unlink.
        with _refused("be deleted"), self._locked(fcntl.LOCK_EX), suppress(UnknownDigest):
            if self._quarantine_path(digest).exists():
                self._quarantine_path(digest).unlink()
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
        """Renew a blob's age as a `put` does, if it exists."""
        with _refused("be written"), suppress(FileNotFoundError):
            os.utime(self._path(digest))

    def num_bytes(self, digest: Digest) -> int:
        with _refused("be read"):
            try:
                return self._path(digest).stat().st_size
            except FileNotFoundError:
                raise UnknownDigest(f"no blob {digest}") from None

    def __iter__(self) -> Iterator[Digest]:
        with _refused("be listed"):
            for path in self._blobs.glob("??/*"):
                with suppress(ValueError):  # a foreign file
                    yield Digest(f"sha256:{path.parent.name}{path.name}")

    def sweep(self) -> None:
        """Remove temporary files of dead writers once they are an hour old."""
        with _refused("be swept"):
            for path in self._temp.iterdir():
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > _STALE_S:
                        path.unlink()

    def _path(self, digest: Digest) -> Path:
        return self._blobs / digest.hex[:2] / digest.hex[2:]

    def _quarantine_path(self, digest: Digest) -> Path:
        return self._quarantine / digest.hex

    def _opened(self, digest: Digest) -> BufferedReader:
        with _refused("be read"):
            try:
                return self._path(digest).open("rb")
            except FileNotFoundError:
                if self._quarantine_path(digest).exists():
                    raise corrupted(digest) from None
                raise UnknownDigest(f"no blob {digest}") from None

    def _verify(self, digest: Digest, found: Digest) -> None:
        if found != digest:
            with suppress(StorageFailure):  # if it cannot be moved, the next read tries again
                self._move_to_quarantine(digest)
            raise corrupted(digest)

    def _move_to_quarantine(self, digest: Digest) -> None:
        """Move a corrupt blob into quarantine, unless it was put again or moved in the meantime."""
        path = self._path(digest)
        with (
            _refused("be quarantined"),
            self._locked(fcntl.LOCK_EX),
            suppress(FileNotFoundError),
        ):
            if _digest_at(path) != digest:
                path.replace(self._quarantine_path(digest))
                logger.error(
                    "the stored bytes of %s are corrupt; they were moved into quarantine", digest
                )

    def _write(self, path: Path, content: Content) -> None:
        path.parent.mkdir(exist_ok=True)
        temp = self._temp / uuid4().hex
        try:
            with temp.open("xb") as file:
                for piece in pieces_of(content):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            temp.replace(path)  # atomic: a reader sees the whole blob or none
        except OSError:
            temp.unlink(missing_ok=True)
            raise

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        with self._lock.open("rb") as file:  # closing the file releases the lock
            fcntl.flock(file, kind)
            yield


def corrupted(digest: Digest) -> DigestMismatch:
    """Create the error that `BlobStore.get` raises for corrupt bytes."""
    return DigestMismatch(f"the stored bytes of {digest} are corrupt: upload them again")


def _refresh(path: Path, digest: Digest) -> bool:
    """Renew an existing blob against garbage collection. Return False if none is intact."""
    try:
        os.utime(path)
        return _digest_at(path) == digest
    except FileNotFoundError:
        return False


def _digest_at(path: Path) -> Digest:
    with path.open("rb") as file:
        return Digest.of_file(file)


def _read_whole(file: BufferedReader) -> bytearray:
    """Read a file to a buffer that is made once, and that tensors may be views of."""
    data = bytearray(os.fstat(file.fileno()).st_size)
    num_bytes = file.readinto(data)
    return data if num_bytes == len(data) else data[:num_bytes]


def _sync_folder(folder: Path) -> None:
    """Make a folder's entries durable, as fsync does for a file's content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(action: str) -> AbstractContextManager[None]:
    return storage_failure(f"the blob store cannot {action}")
