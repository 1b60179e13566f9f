"""What the crash tests do to the product's store, step by step.

Imports neither torch nor the server, so that a process that does a step is there at once.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.digest import Digest
from prefix_store.registry.preconditions import IdempotentRequest, Preconditions
from prefix_store.registry.registry import Registry
from prefix_store.store import PrefixStore
from prefix_store.testing import draft

GRACE_S = 3600.0
OLD_DATABASE = Path(__file__).parents[1] / "registry-0.1.0.sql"
"""As version 0.1.0 made it: of task x version 3 is active, of y versions 2 and 3 are left."""

Step = Callable[[PrefixStore], object]


@contextmanager
def opened(folder: Path) -> Iterator[PrefixStore]:
    """The product's store in a folder."""
    blobs = FileBlobStore(folder / "blobs")
    is_new = next(iter(blobs), None) is None
    registry = Registry(f"sqlite:///{folder / 'registry.db'}", may_create=is_new)
    try:
        yield PrefixStore(blobs, registry)
    finally:
        registry.close()


def content_of(name: str) -> str:
    return f"{name} " * 3000


def push(store: PrefixStore, task: str, name: str, *, collecting: bool = False) -> None:
    """An upload. `collecting`: somebody collects garbage between the bytes and the row."""

    def upload(store: PrefixStore, preconditions: Preconditions) -> None:
        store.put_bytes(content_of(name).encode())
        if collecting:
            store.collect_garbage(GRACE_S)
        store.push(
            task, draft(content_of(name)), activate=True, create=True, preconditions=preconditions
        )

    change(f"{task} {name}", upload)(store)


def change(key: str, call: Callable[[PrefixStore, Preconditions], object]) -> Step:
    """A change that counts once, however often it is asked for."""
    request = IdempotentRequest("test", "x", key, Digest.of(key.encode()), answer=str)

    def step(store: PrefixStore) -> None:
        if store.registry.answer(request) is None:
            call(store, Preconditions(idempotent=request))

    return step


def collect(store: PrefixStore, *, grace_s: float = GRACE_S) -> None:
    store.collect_garbage(grace_s)


STEPS: dict[str, list[Step]] = {
    "upload": [
        partial(push, task="x", name="4"),
        partial(push, task="new", name="5"),
        partial(push, task="x", name="9", collecting=True),
    ],
    "activate": [
        change(
            "a", lambda store, preconditions: store.activate("x", 1, preconditions=preconditions)
        ),
        change("b", lambda store, preconditions: store.rollback("x", preconditions=preconditions)),
        change(
            "c", lambda store, preconditions: store.activate("x", 2, preconditions=preconditions)
        ),
    ],
    "delete": [
        change(
            "a", lambda store, preconditions: store.registry.delete_version("x", 1, preconditions)
        ),
        change(
            "b", lambda store, preconditions: store.registry.delete_version("x", 2, preconditions)
        ),
        change(
            "c", lambda store, preconditions: store.registry.delete_version("y", 2, preconditions)
        ),
        change("d", lambda store, preconditions: store.registry.delete_task("y", preconditions)),
    ],
    "collect": [collect],
    "migrate": [],  # opening the store is all of it
    "everything": [  # on a new folder
        partial(push, task="x", name="1"),
        partial(push, task="x", name="2"),
        change(
            "a", lambda store, preconditions: store.activate("x", 1, preconditions=preconditions)
        ),
        partial(push, task="y", name="3"),
        change(
            "b", lambda store, preconditions: store.registry.delete_version("x", 2, preconditions)
        ),
        partial(collect, grace_s=0.0),
        partial(push, task="x", name="4"),
    ],
}


def build(folder: Path, operation: str) -> None:
    """The store that an operation is done to."""
    folder.mkdir()
    if operation == "everything":
        return
    make_old_database(folder / "registry.db")
    if operation != "migrate":
        with opened(folder):
            pass
    blobs = FileBlobStore(folder / "blobs")
    garbage = [f"garbage {i}" for i in range(12)]
    for content in [*map(content_of, "123678"), *garbage]:
        os.utime(path_of(folder, blobs.put(content.encode())), (0, 0))
    for i in range(4):
        (folder / f"blobs/tmp/{i}").write_bytes(b"half")
        os.utime(folder / f"blobs/tmp/{i}", (0, 0))
    blobs.put(b"young")


def make_old_database(path: Path) -> None:
    """A registry of version 0.1.0."""
    database = sqlite3.connect(path)
    database.executescript(OLD_DATABASE.read_text())
    # The version that was deleted was deleted now, and its blob is in its grace.
    database.execute("UPDATE versions SET deleted_at = datetime('now') WHERE deleted_at NOT NULL")
    database.commit()
    database.close()


def path_of(folder: Path, digest: Digest) -> Path:
    return folder / "blobs" / "sha256" / digest.hex[:2] / digest.hex[2:]
