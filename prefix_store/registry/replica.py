"""In-memory replica of a shared registry, so that requests never query the database.

It is updated on notification of a change and by polling twice a second, and keeps serving its last
state while the database is unreachable. Its position is a row of the audit log: every change adds
one in its own transaction.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Event, Lock, Thread

from sqlalchemy import Connection, select

from prefix_store.database.schema import activations, tasks, versions
from prefix_store.errors import NothingActive, StorageFailure, UnknownTask, UnknownVersion
from prefix_store.manifest import Profile
from prefix_store.registry import audit, definitions, rows, traffic
from prefix_store.registry.audit import Head
from prefix_store.registry.keys import Found, read_keys
from prefix_store.registry.registry import Registry, ServingVersion

logger = logging.getLogger(__name__)

POLL_S = 0.5
UNREACHABLE_AFTER_S = 3.0
"""A registry that could not be read for longer counts as unreachable."""
_MAX_CHANGES = 500
_RETRY_S = 0.5
_STOP_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class ReplicaTask:
    """A task, its versions, and the traffic weights of requests that name no version.

    Profile, manifests and definitions stay JSON until they are needed, so that one that this server
    cannot parse does not affect other tasks.
    """

    profile: str
    weights: Mapping[int, int]
    versions: Mapping[int, tuple[str, str | None]]
    """Manifest and definition by version; see `definitions.parse`."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State of the registry at one row of the audit log."""

    head: Head | None = None
    tasks: Mapping[str, ReplicaTask] = field(default_factory=dict)
    keys: Mapping[str, Found] = field(default_factory=dict)


class Replica:
    """Follows a registry. Thread-safe.

    Changes made through this process's registry are visible when the change returns.
    """

    def __init__(self, registry: Registry, *, max_age_s: float) -> None:
        """`max_age_s`: how long it serves without reading the database. Raises `StorageFailure`."""
        self._database = registry.database
        self._max_age_s = max_age_s
        self._snapshot = Snapshot()
        self._read_s = float("-inf")
        self._last_error: str | None = None
        self._lock = Lock()
        self._stopping = Event()
        self._thread = Thread(target=self._follow, name="replica", daemon=True)
        self.refresh()
        self._database.after_write = self.refresh

    def start(self) -> None:
        """Follow the registry until `close`."""
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_TIMEOUT_S)  # it may be blocked by a hanging database

    def age_s(self) -> float:
        """Return the seconds since the database was last read."""
        return time.monotonic() - self._read_s

    def check(self) -> None:
        """Raise `StorageFailure` while the database is unreachable."""
        if self.age_s() > UNREACHABLE_AFTER_S:
            reason = self._last_error or "the registry's database does not answer"
            raise StorageFailure(f"{reason}; tasks and keys are as of {self.age_s():.0f} s ago")

    def is_stale(self) -> bool:
        """Whether the snapshot is too old to serve."""
        return self.age_s() > self._max_age_s

    def serving_version(self, task: str, version: int | None, key: str) -> ServingVersion:
        """Do what `Registry.serving_version` does, from the snapshot.

        Raises `StorageFailure` also if the snapshot is too old, or if it lacks the version while
        the database is unreachable.
        """
        self._check_age()
        try:
            return _serving_version(self._snapshot, task, version, key)
        except (UnknownTask, UnknownVersion, NothingActive):
            self.check()
            raise

    def find_key(self, id: str) -> Found | None:
        """Look up a key by id. Raises `StorageFailure` if the snapshot is too old."""
        self._check_age()
        found = self._snapshot.keys.get(id)
        return None if found is None else Found(found.key, found.digest, time.monotonic())

    def keys_exist(self) -> bool:
        """Whether a key was ever created."""
        return bool(self._snapshot.keys)

    def refresh(self) -> None:
        """Read the changes since the last refresh. Raises `StorageFailure`."""
        with self._lock:
            asked_s = time.monotonic()
            with self._database.read_at_once() as connection:
                self._snapshot = _read(connection, self._snapshot)
            self._read_s = asked_s
            if self._last_error is not None:
                logger.warning("the registry's database is back")
            self._last_error = None

    def _check_age(self) -> None:
        if self.is_stale():
            raise StorageFailure(f"the registry could not be read for {self.age_s():.0f} s")

    def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._database.listening() as wait:
                    while not self._stopping.is_set():
                        self.refresh()
                        wait(POLL_S)
            except Exception as exc:  # the thread must survive any error
                self._record_error(exc)
                self._stopping.wait(_RETRY_S)

    def _record_error(self, exc: Exception) -> None:
        is_known = isinstance(exc, StorageFailure)
        if self._last_error is None:
            logger.warning("requests are served from the replica: %s", exc, exc_info=not is_known)
        self._last_error = str(exc) if is_known else "the registry cannot be read"


def _serving_version(
    snapshot: Snapshot, task: str, version: int | None, key: str
) -> ServingVersion:
    rows.check_known_name(task)
    if version is not None:
        rows.check_known_number(task, version)
    found = snapshot.tasks.get(task)
    if found is None:
        raise UnknownTask(f"there is no task {task}")
    if version is None:
        if not found.weights:
            raise NothingActive(f"{task} has no active version")
        version = traffic.choose(found.weights, task, key)
    if version not in found.versions:
        raise UnknownVersion(f"{task} has no version {version}")
    manifest, definition = found.versions[version]
    return ServingVersion(
        definitions.parse(manifest, definition, found.profile),
        Profile.model_validate_json(found.profile),
    )


def _read(connection: Connection, snapshot: Snapshot) -> Snapshot:
    head = audit.read_head(connection)
    if head == snapshot.head:
        return snapshot
    changed = None if snapshot.head is None else audit.changed_since(connection, snapshot.head)
    if changed is None or len(changed.tasks) > _MAX_CHANGES:
        return Snapshot(head, _read_tasks(connection, None), read_keys(connection))
    kept = {name: task for name, task in snapshot.tasks.items() if name not in changed.tasks}
    read = _read_tasks(connection, changed.tasks) if changed.tasks else {}
    return Snapshot(head, kept | read, read_keys(connection) if changed.keys else snapshot.keys)


def _read_tasks(connection: Connection, names: frozenset[str] | None) -> dict[str, ReplicaTask]:
    """Read the named tasks; None reads all."""
    tasks_query, versions_query = _TASKS, _VERSIONS
    if names is not None:
        tasks_query = tasks_query.where(tasks.c.name.in_(names))
        versions_query = versions_query.where(versions.c.task.in_(names))
    found = connection.execute(tasks_query).all()
    split = traffic.read(connection, [row.active_seq for row in found if row.active_seq])
    by_number: dict[str, dict[int, tuple[str, str | None]]] = defaultdict(dict)
    for row in connection.execute(versions_query):
        by_number[row.task][row.number] = row.manifest, row.definition
    return {
        row.name: ReplicaTask(
            row.profile,
            split.get(row.active_seq) or ({} if row.version is None else {row.version: 1}),
            by_number[row.name],
        )
        for row in found
    }


_TASKS = (
    select(tasks.c.name, tasks.c.profile, tasks.c.active_seq, activations.c.version)
    .outerjoin(activations, activations.c.seq == tasks.c.active_seq)
    .where(tasks.c.deleted_at.is_(None))
)
_VERSIONS = select(
    versions.c.task, versions.c.number, versions.c.manifest, versions.c.definition
).where(versions.c.deleted_at.is_(None))
