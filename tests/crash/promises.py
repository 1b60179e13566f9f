"""What must hold of a store after a crash, whenever it came."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prefix_store.digest import Digest
from prefix_store.errors import PrefixStoreError
from prefix_store.registry.audit import AuditLog
from prefix_store.store import PrefixStore
from tests.crash.operations import STEPS, build, opened, path_of


@dataclass(frozen=True)
class TaskState:
    active: int | None
    versions: dict[int, str]
    history: list[int]
    num_audited: int


State = dict[str, TaskState]


def state_of(store: PrefixStore) -> State:
    audited = Counter(row.task for row in audit_of(store).entries(limit=1000))
    return {
        task.name: TaskState(
            task.active_version,
            {
                manifest.version: manifest.digest
                for manifest in store.registry.list_versions(task.name)
            },
            [activation.version for activation in store.registry.history(task.name)],
            audited[task.name],
        )
        for task in store.registry.list_tasks()
    }


def audit_of(store: PrefixStore) -> AuditLog:
    return AuditLog(store.registry.database)


def states_of(operation: str, folder: Path) -> list[State]:
    """The state before the operation's first step, and after each."""
    build(folder, operation)
    with opened(folder) as store:
        states = [state_of(store)]
        for step in STEPS[operation]:
            step(store)
            states.append(state_of(store))
    return states


def violations(
    folder: Path, operation: str, states: list[State], num_done: int, *, repeat: bool = True
) -> list[str]:
    """The promises that a store breaks, opened as the product opens it.

    `num_done` steps were acknowledged; the one behind these may be there or not, but not by half.
    `repeat`: ask for all of them once more.
    """
    try:
        with opened(folder) as store:
            found = list(_lost(store, folder, operation, states[num_done : num_done + 2]))
            if repeat:
                found += _repeated(store, folder, operation, states[-1])
            return found
    except (PrefixStoreError, sqlite3.Error) as error:
        return [f"not recovered: {error!r}"]


def _lost(store: PrefixStore, folder: Path, operation: str, states: list[State]) -> Iterator[str]:
    if integrity_of(folder) != "ok":
        yield "the database is damaged"
    if state_of(store) not in states:
        yield "not the state before the step or after it"
    if audit_of(store).verify() is not None:
        yield "the audit is broken"
    yield from damaged_blobs(store, folder)
    if operation != "everything" and not path_of(folder, Digest.of(b"young")).exists():
        yield "the blob of an upload under way is gone"


def _repeated(store: PrefixStore, folder: Path, operation: str, end: State) -> Iterator[str]:
    for step in STEPS[operation]:
        step(store)
    if state_of(store) != end:
        yield "what was asked for twice counted twice, or not at all"
    yield from damaged_blobs(store, folder)
    yield from garbage(store, folder)


def damaged_blobs(store: PrefixStore, folder: Path) -> Iterator[str]:
    for path in folder.glob("blobs/sha256/??/*"):
        if Digest.of(path.read_bytes()).hex != path.parent.name + path.name:
            yield "half a blob is visible"
    for task in state_of(store).values():
        for digest in task.versions.values():
            if not path_of(folder, Digest(digest)).exists():
                yield "a version without its blob"


def garbage(store: PrefixStore, folder: Path) -> Iterator[str]:
    """What is still there when all grace is over."""
    for path in [*folder.glob("blobs/sha256/??/*"), *folder.glob("blobs/tmp/*")]:
        os.utime(path, (0, 0))
    store.collect_garbage(0.0)
    wanted = {d for task in state_of(store).values() for d in task.versions.values()}
    left = {f"sha256:{path.parent.name}{path.name}" for path in folder.glob("blobs/sha256/??/*")}
    if left != wanted or list(folder.glob("blobs/tmp/*")):
        yield "garbage is not collected, or more than garbage"


def integrity_of(folder: Path) -> str:
    database = sqlite3.connect(folder / "registry.db")
    found: str = database.execute("PRAGMA integrity_check").fetchone()[0]
    database.close()
    return found
