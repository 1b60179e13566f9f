"""Files of a SQLite database that must stay the same ones while it is open.

SQLite keeps writing to a file that was deleted: changes are committed, read, and gone once the
process ends. The next connection creates new files, so that two histories exist side by side. Until
the first checkpoint everything is in the write-ahead log, and the main file is nearly empty.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from itertools import count
from pathlib import Path
from threading import Lock

from sqlalchemy.engine import URL

from prefix_store.errors import StorageFailure

logger = logging.getLogger(__name__)

_Identity = tuple[int, int]
_BUSY_TIMEOUT_S = 1
_LOST = "the registry's database was deleted or replaced: restore it, or restart the server"
_SAVED = (
    "a file of the registry's database was deleted or replaced; every change is saved in "
    "registry.db: restart the server"
)
_COPIED = (
    "a file of the registry's database was deleted or replaced; every change is saved in {copy}: "
    "stop the server, rename that file to registry.db, remove registry.db-wal and registry.db-shm, "
    "and start the server"
)


class DatabaseFiles:
    """A database file, its write-ahead log and the log's index, as they were opened. Thread-safe.

    A connection of its own keeps the files open, so that what they hold can be saved even after
    they were deleted.
    """

    def __init__(self, url: URL) -> None:
        is_file = url.get_backend_name() == "sqlite" and url.database not in (None, ":memory:")
        self._path = Path(url.database or "") if is_file else None
        self._identities: list[_Identity | None] = []
        self._connection: sqlite3.Connection | None = None
        self._saved: str | None = None
        """The message once everything is saved; None while nothing is lost."""
        self._lock = Lock()

    def open(self) -> None:
        """Record which files they are: from now on `check` raises if they change."""
        if self._path is None:
            return
        self._connection = sqlite3.connect(
            self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("SELECT 1 FROM sqlite_master").fetchone()  # opens the log
        self._identities = self._look()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._connection is not None:
            self._connection.close()

    def check(self, *_: object) -> None:
        """Raise `StorageFailure` if a file was deleted or replaced, once its contents are saved."""
        if not self._identities or self._look() == self._identities:
            self._saved = None
            return
        with self._lock:
            message = self._save()
        raise StorageFailure(message)

    def _save(self) -> str:
        """Save what the open files hold, if not done yet. Returns the message for the operator."""
        if self._saved is not None:
            return self._saved
        try:
            message = self._saved = self._checkpoint() or self._copy()
        except (sqlite3.Error, OSError) as exc:  # a full disk, for instance: the next check retries
            message = _LOST
            reason = getattr(exc, "sqlite_errorname", type(exc).__name__)
            logger.error("the registry's changes cannot be saved: %s", reason)
        logger.error(message)
        return message

    def _checkpoint(self) -> str | None:
        """Copy the deleted log into the main file, if nobody else has opened that meanwhile.

        A process that did would have created a log of its own, and its changes and ours cannot be
        put together.
        """
        database, *others = zip(self._look(), self._identities, strict=True)
        if database[0] != database[1] or any(now not in (None, was) for now, was in others):
            return None
        assert self._connection is not None
        is_busy, num_frames, num_copied = self._connection.execute(
            "PRAGMA wal_checkpoint(FULL)"
        ).fetchone()
        return _SAVED if not is_busy and num_frames == num_copied else None

    def _copy(self) -> str:
        """Write everything to a new file beside the database."""
        assert self._connection is not None
        assert self._path is not None
        names = (self._path.with_name(f"registry.rescued-{number}.db") for number in count(1))
        path = next(name for name in names if not name.exists())
        temp = path.with_suffix(".tmp")
        copy = sqlite3.connect(temp)
        try:
            self._connection.backup(copy)
        finally:
            copy.close()
        descriptor = os.open(temp, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temp.replace(path)
        return _COPIED.format(copy=path.name)

    def _look(self) -> list[_Identity | None]:
        assert self._path is not None
        return [_identity(f"{self._path}{suffix}") for suffix in ("", "-wal", "-shm")]


def _identity(path: str) -> _Identity | None:
    """Return device and inode of a file; None if there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
