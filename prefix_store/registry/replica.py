"""What a server holds of a registry that it shares, so that requests never ask the database.

It is brought up to date when somebody announces a change, or else by asking twice a second, and
serves as it was where the database is away. How far it is, is a row of the audit: every change is
one, in its own transaction.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Event, Lock, Thread

from sqlalchemy import Connection, select

from prefix_store.errors import NothingActive, StorageFailure, UnknownTask, UnknownVersion
from prefix_store.manifest import Manifest, Profile
from prefix_store.registry import audit, rows, traffic
from prefix_store.registry.audit import Head
from prefix_store.registry.keys import Found, read_keys
from prefix_store.registry.registry import Registry, ServingVersion
from prefix_store.registry.schema import activations, tasks, versions

logger = logging.getLogger(__name__)

POLL_S = 0.5
AWAY_S = 3.0
"""Unread for longer, a registry is said to be away."""
_MAX_CHANGES = 500
_RETRY_S = 0.5
_STOP_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class HeldTask:
    """A task, its living versions, and the weights of those that requests without a version get.

    As texts: one that this server cannot read spoils no other.
    """

    profile: str
    weights: Mapping[int, int]
    manifests: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Held:
    """The registry as it was at one row of its audit."""

    head: Head | None = None
    tasks: Mapping[str, HeldTask] = field(default_factory=dict)
    keys: Mapping[str, Found] = field(default_factory=dict)


class Replica:
    """Follows a registry. Safe to call from any number of threads.

    Changes made through this process's registry are held when the change returns.
    """

    def __init__(self, registry: Registry, *, max_age_s: float) -> None:
        """`max_age_s`: so long it serves without having read the database. Raises
        `StorageFailure`."""
        self._database = registry.database
        self._max_age_s = max_age_s
        self._held = Held()
        self._read_s = float("-inf")
        self._trouble: str | None = None
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
            self._thread.join(_STOP_TIMEOUT_S)  # it may wait for a database that hangs

    def age_s(self) -> float:
        """Seconds since the database was last read: what is held was true then."""
        return time.monotonic() - self._read_s

    def check(self) -> None:
        """Raises `StorageFailure` while the database is away."""
        if self.age_s() > AWAY_S:
            reason = self._trouble or "the registry's database does not answer"
            raise StorageFailure(f"{reason}; tasks and keys are as {self.age_s():.0f} s ago")

    def is_lost(self) -> bool:
        """Whether what is held is too old to be served."""
        return self.age_s() > self._max_age_s

    def serving_version(self, task: str, version: int | None, key: str) -> ServingVersion:
        """As `Registry.serving_version`, from what is held.

        Raises `StorageFailure` where that is too old, or for what is not held while the database
        is away.
        """
        self._check_age()
        try:
            return _serving_version(self._held, task, version, key)
        except (UnknownTask, UnknownVersion, NothingActive):
            self.check()
            raise

    def find_key(self, id: str) -> Found | None:
        """What is kept under a key's id. Raises `StorageFailure` where that is too old."""
        self._check_age()
        found = self._held.keys.get(id)
        return None if found is None else Found(found.key, found.digest, time.monotonic())

    def keys_exist(self) -> bool:
        """Whether a key was ever created."""
        return bool(self._held.keys)

    def refresh(self) -> None:
        """Read what has changed since. Raises `StorageFailure`."""
        with self._lock:
            asked_s = time.monotonic()
            with self._database.read_at_once() as connection:
                self._held = _read(connection, self._held)
            self._read_s = asked_s
            if self._trouble is not None:
                logger.warning("the registry's database is back")
            self._trouble = None

    def _check_age(self) -> None:
        if self.is_lost():
            raise StorageFailure(f"the registry could not be read for {self.age_s():.0f} s")

    def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._database.listening() as wait:
                    while not self._stopping.is_set():
                        self.refresh()
                        wait(POLL_S)
            except Exception as exc:  # whatever it is, this thread must go on
                self._note(exc)
                self._stopping.wait(_RETRY_S)

    def _note(self, exc: Exception) -> None:
        is_known = isinstance(exc, StorageFailure)
        if self._trouble is None:
            logger.warning("requests are served from what is held: %s", exc, exc_info=not is_known)
        self._trouble = str(exc) if is_known else "the registry cannot be read"


def _serving_version(held: Held, task: str, version: int | None, key: str) -> ServingVersion:
    rows.check_known_name(task)
    if version is not None:
        rows.check_known_number(task, version)
    found = held.tasks.get(task)
    if found is None:
        raise UnknownTask(f"there is no task {task}")
    if version is None:
        if not found.weights:
            raise NothingActive(f"{task} has no active version")
        version = traffic.choose(found.weights, task, key)
    if version not in found.manifests:
        raise UnknownVersion(f"{task} has no version {version}")
    return ServingVersion(
        Manifest.model_validate_json(found.manifests[version]),
        Profile.model_validate_json(found.profile),
    )


def _read(connection: Connection, held: Held) -> Held:
    head = audit.read_head(connection)
    if head == held.head:
        return held
    changed = None if held.head is None else audit.changed_since(connection, held.head)
    if changed is None or len(changed.tasks) > _MAX_CHANGES:
        return Held(head, _read_tasks(connection, None), read_keys(connection))
    kept = {name: task for name, task in held.tasks.items() if name not in changed.tasks}
    read = _read_tasks(connection, changed.tasks) if changed.tasks else {}
    return Held(head, kept | read, read_keys(connection) if changed.keys else held.keys)


def _read_tasks(connection: Connection, names: frozenset[str] | None) -> dict[str, HeldTask]:
    """None: all of them."""
    tasks_query, versions_query = _TASKS, _VERSIONS
    if names is not None:
        tasks_query = tasks_query.where(tasks.c.name.in_(names))
        versions_query = versions_query.where(versions.c.task.in_(names))
    found = connection.execute(tasks_query).all()
    split = traffic.read(connection, [row.active_seq for row in found if row.active_seq])
    manifests: dict[str, dict[int, str]] = defaultdict(dict)
    for row in connection.execute(versions_query):
        manifests[row.task][row.number] = row.manifest
    return {
        row.name: HeldTask(
            row.profile,
            split.get(row.active_seq) or ({} if row.version is None else {row.version: 1}),
            manifests[row.name],
        )
        for row in found
    }


_TASKS = (
    select(tasks.c.name, tasks.c.profile, tasks.c.active_seq, activations.c.version)
    .outerjoin(activations, activations.c.seq == tasks.c.active_seq)
    .where(tasks.c.deleted_at.is_(None))
)
_VERSIONS = select(versions.c.task, versions.c.number, versions.c.manifest).where(
    versions.c.deleted_at.is_(None)
)
