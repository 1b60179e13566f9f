"""The registry: tasks, versions, activations. Knows no tensor."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row, or_, select

from prefix_store.database.schema import tasks, versions
from prefix_store.digest import Digest
from prefix_store.errors import (
    ActivationOvertaken,
    NothingActive,
    UnknownTask,
    UnknownVersion,
    VersionActive,
)
from prefix_store.manifest import Draft, Manifest, Profile
from prefix_store.reference import check_task_name
from prefix_store.registry import answers, audit, definitions, queries, rows, traffic
from prefix_store.registry.activations import ActivationRegistry
from prefix_store.registry.audit import NOBODY, Actor
from prefix_store.registry.preconditions import (
    UNCONDITIONAL,
    IdempotentRequest,
    NoLongerWanted,
    Preconditions,
)
from prefix_store.registry.traffic import choose


@dataclass(frozen=True, slots=True)
class ServingVersion:
    """The version that serves a request, and its task's profile.

    The request is built by the version's definition; limits and weight are the profile's.
    """

    manifest: Manifest
    profile: Profile


class Registry(ActivationRegistry):
    """Tasks and versions in a transactional database. Thread-safe, and safe to share by processes.

    Writes are audited, and durable when the method returns; a method that raises has changed
    nothing. Deleted rows are only marked, so that version numbers are never reused. Every method
    raises `StorageFailure` if the database fails.
    """

    def add_version(
        self,
        task: str,
        draft: Draft,
        *,
        activate: bool,
        create: bool,
        by: Actor = NOBODY,
        preconditions: Preconditions = UNCONDITIONAL,
        is_inherited: bool = False,
        prefix_of: int | None = None,
        dry_run: bool = False,
    ) -> Manifest:
        """Add a draft as the task's next version, in one transaction.

        `create` creates a missing task with an empty profile. `is_inherited`: the draft has the
        task's current definition, and may be activated only while that is current. `prefix_of`: the
        version whose prefix the draft uses again, which must still exist. `dry_run` rolls all of it
        back at the end. Raises `UnknownTask`, `UnknownVersion`, `InvalidName`,
        `PreconditionFailed`, `QuotaExceeded`, `ActivationOvertaken`, `NoLongerWanted`.
        """
        if create:
            check_task_name(task)
        with self._write() as connection:
            if (
                create
                and preconditions.revisions is None
                and rows.create(connection, task, Profile())
            ):
                self._quotas.check_tasks(connection)
            row = rows.lock(connection, task, preconditions)
            if prefix_of is not None:
                rows.check_version(connection, task, prefix_of)
            if activate and is_inherited:
                _check_current(connection, task, draft)
            number = rows.next_number(connection, task)
            manifest = draft.as_version(task, number, at=rows.now(), by=by.key)
            rows.add(connection, manifest)
            self._quotas.check_versions(connection, task)
            if activate:
                rows.set_active(
                    connection, task, number, "activate", parent=row.active_seq, by=by.key
                )
            else:
                rows.change(connection, task)
            if dry_run:
                connection.rollback()
                return manifest
            action: audit.Action = "push_and_activate" if activate else "push"
            digest = Digest(draft.digest)
            audit.append(connection, by, action, task=task, version=number, digest=digest)
            answers.keep(connection, preconditions, manifest)
            if preconditions.is_wanted is not None and not preconditions.is_wanted():
                raise NoLongerWanted("the client has disconnected")
            return manifest

    def get_version(self, task: str, number: int) -> Manifest:
        """Return a version. Raises `UnknownTask`, `UnknownVersion`."""
        return self.resolve(task, number)

    def list_versions(self, task: str) -> list[Manifest]:
        """Return a task's versions by number. Raises `UnknownTask`."""
        query = (
            select(versions.c.manifest, versions.c.definition, tasks.c.profile)
            .join(tasks, tasks.c.name == versions.c.task)
            .where(versions.c.task == task, versions.c.deleted_at.is_(None))
            .order_by(versions.c.number)
        )
        with self._read() as connection:
            rows.read_task(connection, task)
            return [definitions.as_manifest(row) for row in connection.execute(query)]

    def delete_version(
        self,
        task: str,
        number: int,
        preconditions: Preconditions = UNCONDITIONAL,
        by: Actor = NOBODY,
    ) -> None:
        """Delete a version that gets no traffic.

        Raises `UnknownTask`, `PreconditionFailed`, `UnknownVersion`, and `VersionActive` for a
        version that is active or shares the traffic.
        """
        with self._write() as connection:
            top = rows.activation(connection, rows.lock(connection, task, preconditions).active_seq)
            rows.check_version(connection, task, number)
            if top is not None and top.version == number:
                raise VersionActive(f"version {number} of {task} is active")
            if top is not None and number in traffic.read(connection, [top.seq]).get(top.seq, {}):
                raise VersionActive(f"version {number} of {task} gets part of the traffic")
            rows.mark_deleted(connection, task, number)
            rows.change(connection, task)
            audit.append(connection, by, "delete_version", task=task, version=number)
            answers.keep(connection, preconditions, None)

    def set_pinned(self, task: str, number: int, *, pinned: bool, by: Actor = NOBODY) -> None:
        """Record whether a version's prefix stays on the device.

        Raises `UnknownTask`, `UnknownVersion`.
        """
        with self._write() as connection:
            rows.lock(connection, task, UNCONDITIONAL)
            rows.check_version(connection, task, number)
            rows.pin(connection, task, number, pinned=pinned)
            action: audit.Action = "pin" if pinned else "unpin"
            audit.append(connection, by, action, task=task, version=number)

    def pinned(self) -> set[tuple[str, int, Digest]]:
        """Return task, number and blob digest of all pinned versions."""
        query = select(versions.c.task, versions.c.number, versions.c.digest).where(
            versions.c.pinned.is_(True), versions.c.deleted_at.is_(None)
        )
        with self._read() as connection:
            return {(row.task, row.number, Digest(row.digest)) for row in connection.execute(query)}

    def check_room(self, num_bytes: int) -> None:
        """Check whether `num_bytes` more still fit. Raises `StoreFull`."""
        with self._read() as connection:
            self._quotas.check_bytes(connection, num_bytes)

    def resolve(self, task: str, version: int | None = None, key: str = "") -> Manifest:
        """Return the version that serves a request.

        If the traffic is split, requests with the same key get the same version.

        Raises `UnknownTask`, `UnknownVersion`, `NothingActive`.
        """
        return definitions.as_manifest(self._resolved(task, version, key))

    def serving_version(self, task: str, version: int | None, key: str) -> ServingVersion:
        """Return what `resolve` finds, with the task's profile."""
        row = self._resolved(task, version, key)
        return ServingVersion(
            definitions.as_manifest(row), Profile.model_validate_json(row.profile)
        )

    def _resolved(self, task: str, version: int | None, key: str) -> Row[*tuple[Any, ...]]:
        """Find the version in one query, as every request needs it."""
        rows.check_known_name(task)
        if version is not None:
            rows.check_known_number(task, version)
        with self._read() as connection:
            found = connection.execute(queries.RESOLVED, {"task": task, "number": version}).all()
        if not found:
            raise UnknownTask(f"there is no task {task}")
        alive = {row.number: row for row in found if row.manifest is not None}
        if len(alive) > 1:
            weights = {number: row.weight for number, row in alive.items()}
            return alive[choose(weights, task, key)]
        for row in alive.values():
            return row
        if version is None:
            raise NothingActive(f"{task} has no active version")
        raise UnknownVersion(f"{task} has no version {version}")

    def check(self) -> None:
        """Raise `StorageFailure` if requests cannot be resolved."""
        self.ping()

    def age_s(self) -> float:
        """Return 0: every request reads the database."""
        return 0.0

    def is_stale(self) -> bool:
        """Return False: every request reads the database."""
        return False

    def digests(self, *, deleted_within_s: float = 0.0) -> set[Digest]:
        """Return the blobs of all versions, including those deleted less than that long ago."""
        since = rows.now() - timedelta(seconds=deleted_within_s)
        query = select(versions.c.digest).where(
            or_(versions.c.deleted_at.is_(None), versions.c.deleted_at > since)
        )
        with self._read() as connection:
            return {Digest(value) for value in connection.scalars(query.distinct())}

    def refers_to(self, digest: Digest) -> bool:
        """Whether a version, deleted or not, has this blob."""
        query = select(versions.c.digest).where(versions.c.digest == str(digest)).limit(1)
        with self._read() as connection:
            return connection.scalar(query) is not None

    def answer(self, request: IdempotentRequest) -> str | None:
        """Return the stored answer to an idempotent request, if there is one.

        Raises `IdempotencyMismatch`.
        """
        with self._read() as connection:
            return answers.find(connection, request)

    def forget_answers(self, older_than_s: float) -> int:
        """Delete stored answers older than that; return their number."""
        with self._write() as connection:
            return answers.forget(connection, older_than_s)


def _check_current(connection: Connection, task: str, draft: Draft) -> None:
    """Raise `ActivationOvertaken` if the draft's definition is not the task's any more."""
    current = rows.read_task(connection, task).profile.definition_fields
    if draft.definition.definition_fields != current:
        raise ActivationOvertaken(
            f"the definition of {task} was changed while this request was running: send it again"
        )
