"""The product broken on purpose: what each crash test must find, or it finds nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from sqlite3 import Connection as SqliteConnection
from typing import Any, TypeVar
from unittest.mock import patch

from sqlalchemy import Connection

from prefix_store.blobs import blobs
from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.database import database
from prefix_store.database.database import Database
from prefix_store.digest import Content, Digest, pieces_of
from prefix_store.manifest import Manifest
from prefix_store.registry import answers, audit
from prefix_store.registry.preconditions import UNCONDITIONAL, Preconditions
from prefix_store.registry.registry import Registry

T = TypeVar("T")


@contextmanager
def row_before_blob() -> Iterator[None]:
    put, add_version = FileBlobStore.put, Registry.add_version
    late: list[tuple[FileBlobStore, Content]] = []

    def put_later(self: FileBlobStore, content: Content) -> Digest:
        late.append((self, content))
        return Digest.of(content)

    def add_version_first(self: Registry, *args: Any, **kwargs: Any) -> Manifest:
        manifest = add_version(self, *args, **kwargs)
        while late:
            put(*late.pop())
        return manifest

    with (
        patch.object(FileBlobStore, "put", put_later),
        patch.object(FileBlobStore, "exists", lambda *_: True),
        patch.object(Registry, "add_version", add_version_first),
    ):
        yield


def written_in_place() -> AbstractContextManager[object]:
    def write(self: FileBlobStore, path: Path, content: Content) -> None:
        data = b"".join(pieces_of(content))
        path.parent.mkdir(exist_ok=True)
        with path.open("wb", buffering=0) as file:
            for at in range(0, len(data), 1000):
                file.write(data[at : at + 1000])
            os.fsync(file.fileno())

    return patch.object(FileBlobStore, "_write", write)


def no_transactions() -> AbstractContextManager[object]:
    return patch.object(database, "_begin", lambda *_: None)


@contextmanager
def answer_after_the_commit() -> Iterator[None]:
    keep, add_version = answers.keep, Registry.add_version

    def add_version_then_answer(
        self: Registry, *args: Any, preconditions: Preconditions, **kwargs: Any
    ) -> Manifest:
        manifest = add_version(self, *args, preconditions=UNCONDITIONAL, **kwargs)
        with self._write() as connection:
            return keep(connection, preconditions, manifest)

    with patch.object(Registry, "add_version", add_version_then_answer):
        yield


@contextmanager
def audit_after_the_commit() -> Iterator[None]:
    append, write = audit.append, Database.write
    late: list[Callable[[Connection], None]] = []

    def append_later(connection: Connection, *args: Any, **kwargs: Any) -> None:
        late.append(lambda connection: append(connection, *args, **kwargs))

    @contextmanager
    def write_then_audit(self: Database) -> Iterator[Connection]:
        with write(self) as connection:
            yield connection
        while late:
            with write(self) as connection:
                late.pop()(connection)

    with (
        patch.object(audit, "append", append_later),
        patch.object(Database, "write", write_then_audit),
    ):
        yield


def no_grace() -> AbstractContextManager[object]:
    delete = FileBlobStore.delete
    return patch.object(FileBlobStore, "delete", lambda self, digest, **_: delete(self, digest))


def no_file_fsync() -> AbstractContextManager[object]:
    fsync = os.fsync

    def only_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            fsync(descriptor)

    return patch.object(os, "fsync", only_folders)


def no_folder_fsync() -> AbstractContextManager[object]:
    return patch.object(blobs, "_sync_folder", lambda _: None)


def synchronous_normal() -> AbstractContextManager[object]:
    set_pragmas = database._set_pragmas

    def set_worse(connection: SqliteConnection, record: object) -> None:
        set_pragmas(connection, record)
        connection.execute("PRAGMA synchronous = NORMAL")

    return patch.object(database, "_set_pragmas", set_worse)


@contextmanager
def errors_swallowed() -> Iterator[None]:
    put = FileBlobStore.put

    def put_at_best(self: FileBlobStore, data: bytes) -> Digest:
        with suppress(Exception):
            put(self, data)
        return Digest.of(data)

    with (
        patch.object(FileBlobStore, "put", put_at_best),
        patch.object(FileBlobStore, "exists", lambda *_: True),
    ):
        yield


MUTANTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "row before blob": row_before_blob,
    "written in place": written_in_place,
    "no transactions": no_transactions,
    "answer after the commit": answer_after_the_commit,
    "audit after the commit": audit_after_the_commit,
    "no grace": no_grace,
    "no file fsync": no_file_fsync,
    "no folder fsync": no_folder_fsync,
    "synchronous = NORMAL": synchronous_normal,
    "errors swallowed": errors_swallowed,
}
