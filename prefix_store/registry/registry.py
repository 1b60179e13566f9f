"""The registry: tasks, versions, activations. Knows no tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, or_, select

from prefix_store.digest import Digest
from prefix_store.errors import (
    NothingActive,
    NothingToRollBack,
    TaskExists,
    UnknownTask,
    UnknownVersion,
    VersionActive,
)
from prefix_store.manifest import Activation, Definition, Draft, Manifest, Profile, Task
from prefix_store.reference import check_task_name
from prefix_store.registry import answers, audit, rows, traffic
from prefix_store.registry.audit import NOBODY, Actor
from prefix_store.registry.database import Database
from prefix_store.registry.preconditions import (
    UNCONDITIONAL,
    CurrentActivation,
    IdempotentRequest,
    Preconditions,
)
from prefix_store.registry.quotas import Quotas
from prefix_store.registry.schema import activations, tasks, versions
from prefix_store.registry.traffic import choose


@dataclass(frozen=True, slots=True)
class ServingVersion:
    """The version that serves a request, and its task's profile."""

    manifest: Manifest
    profile: Profile


class Registry:
    """Tasks and versions in a transactional database. Thread-safe, and safe to share by processes.

    Writes are audited, and durable when the method returns; a method that raises has changed
    nothing. Deleted rows are only marked, so that version numbers are never reused. Every method
    raises `StorageFailure` if the database fails.
    """

    def __init__(
        self,
        url: str,
        *,
        may_create: bool = True,
        quotas: Quotas = Quotas(),  # noqa: B008
    ) -> None:
        """`may_create`: create missing tables; otherwise they are a `StorageFailure`."""
        self._quotas = quotas
        self.database = Database(url, may_create=may_create)
        self._read, self._write = self.database.read, self.database.write

    def close(self) -> None:
        """Close the idle connections."""
        self.database.close()

    def ping(self) -> None:
        """Raise `StorageFailure` if the registry cannot be read or its file was replaced."""
        self.database.check()
        with self._read() as connection:
            connection.execute(select(tasks.c.name).limit(1)).all()

    def create_task(self, name: str, profile: Profile, by: Actor = NOBODY) -> Task:
        """Create a task without versions. Raises `InvalidName`, `TaskExists`, `QuotaExceeded`."""
        check_task_name(name)
        with self._write() as connection:
            if not rows.create(connection, name, profile):
                raise TaskExists(f"the task {name} exists already")
            self._quotas.check_tasks(connection)
            digest = Digest.of(profile.model_dump_json().encode())
            audit.append(connection, by, "create_task", task=name, digest=digest)
            return rows.read_task(connection, name)

    def set_profile(
        self,
        name: str,
        profile: Profile,
        preconditions: Preconditions = UNCONDITIONAL,
        by: Actor = NOBODY,
    ) -> Task:
        """Replace a task's profile. Raises `UnknownTask`, `PreconditionFailed`."""
        with self._write() as connection:
            rows.lock(connection, name, preconditions)
            _write_profile(connection, name, profile, by)
            return rows.read_task(connection, name)

    def get_task(self, name: str) -> Task:
        """Return a task. Raises `UnknownTask`."""
        with self._read() as connection:
            return rows.read_task(connection, name)

    def list_tasks(
        self, after: str | None = None, limit: int = 100, globs: Sequence[str] = ("*",)
    ) -> list[Task]:
        """Return at most `limit` tasks after the name `after`, by name. Raises `InvalidName`."""
        page = rows.TASKS.where(rows.matches(globs)).order_by(tasks.c.name).limit(limit)
        if after is not None:
            check_task_name(after)
            page = page.where(tasks.c.name > after)
        with self._read() as connection:
            return [rows.as_task(row) for row in connection.execute(page)]

    def delete_task(
        self, name: str, preconditions: Preconditions = UNCONDITIONAL, by: Actor = NOBODY
    ) -> None:
        """Delete a task and its versions. Raises `UnknownTask`, `PreconditionFailed`."""
        with self._write() as connection:
            rows.lock(connection, name, preconditions)
            rows.mark_deleted(connection, name)
            rows.change(connection, name, active_seq=None, deleted_at=rows.now())
            audit.append(connection, by, "delete_task", task=name)
            answers.keep(connection, preconditions, None)

    def add_version(
        self,
        task: str,
        draft: Draft,
        *,
        activate: bool,
        create: bool,
        by: Actor = NOBODY,
        preconditions: Preconditions = UNCONDITIONAL,
        definition: Definition | None = None,
        dry_run: bool = False,
    ) -> Manifest:
        """Add a draft as the task's next version, in one transaction.

        `create` creates a missing task with an empty profile. A task without versions adopts the
        `definition`. `dry_run` rolls everything back at the end. Raises `UnknownTask`,
        `InvalidName`, `PreconditionFailed`, `QuotaExceeded`, `DefinitionMismatch`,
        `ActivationOvertaken`.
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
            if definition is not None:
                _adopt(connection, task, definition, by)
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
            return answers.keep(connection, preconditions, manifest)

    def get_version(self, task: str, number: int) -> Manifest:
        """Return a version. Raises `UnknownTask`, `UnknownVersion`."""
        return self.resolve(task, number)

    def list_versions(self, task: str) -> list[Manifest]:
        """Return a task's versions by number. Raises `UnknownTask`."""
        query = (
            select(versions.c.manifest)
            .where(versions.c.task == task, versions.c.deleted_at.is_(None))
            .order_by(versions.c.number)
        )
        with self._read() as connection:
            rows.read_task(connection, task)
            return [Manifest.model_validate_json(text) for text in connection.scalars(query)]

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

    def activate(
        self,
        task: str,
        number: int,
        by: Actor = NOBODY,
        preconditions: Preconditions = UNCONDITIONAL,
        unusable: Set[Digest] = frozenset(),
    ) -> Activation:
        """Make a version the active one, with all the traffic.

        Returns the activation in force if nothing changes. Raises `UnknownTask`,
        `PreconditionFailed`, `UnknownVersion`, and `VersionQuarantined` if the version's blob is in
        `unusable`.
        """
        with self._write() as connection:
            top = rows.activation(connection, rows.lock(connection, task, preconditions).active_seq)
            rows.check_version(connection, task, number, unusable)
            parent = None if top is None else top.seq
            if top is not None and top.version == number:
                if not traffic.read(connection, [top.seq]):
                    return answers.keep(connection, preconditions, rows.as_activation(top))
                parent = top.parent
            made = rows.set_active(connection, task, number, "activate", parent=parent, by=by.key)
            audit.append(connection, by, "activate", task=task, version=number)
            return answers.keep(connection, preconditions, made)

    def rollback(
        self,
        task: str,
        by: Actor = NOBODY,
        preconditions: Preconditions = UNCONDITIONAL,
        unusable: Set[Digest] = frozenset(),
    ) -> Activation:
        """Activate the version that was active before; a second rollback goes further back.

        If the traffic is split, the active version alone gets it again. Deleted versions are
        skipped. Raises `UnknownTask`, `PreconditionFailed`, `NothingToRollBack`,
        `VersionQuarantined`.
        """
        with self._write() as connection:
            top = rows.activation(connection, rows.lock(connection, task, preconditions).active_seq)
            is_split = top is not None and bool(traffic.read(connection, [top.seq]))
            target = top if is_split else rows.previous_activation(connection, top)
            if target is None:
                raise NothingToRollBack(f"{task} has no earlier version to go back to")
            rows.check_version(connection, task, target.version, unusable)
            made = rows.set_active(
                connection, task, target.version, "rollback", parent=target.parent, by=by.key
            )
            audit.append(connection, by, "rollback", task=task, version=target.version)
            return answers.keep(connection, preconditions, made)

    def set_traffic(
        self,
        task: str,
        weights: Mapping[int, int],
        by: Actor = NOBODY,
        preconditions: Preconditions = UNCONDITIONAL,
        unusable: Set[Digest] = frozenset(),
    ) -> Activation:
        """Split the traffic in proportion to weights, until the next activation or rollback.

        Without weights the active version gets all of it.
        Raises `UnknownTask`, `PreconditionFailed`, `NothingActive`, `UnknownVersion`,
        `VersionQuarantined`.
        """
        with self._write() as connection:
            top = rows.activation(connection, rows.lock(connection, task, preconditions).active_seq)
            if top is None:
                raise NothingActive(f"{task} has no active version")
            for number in weights:
                rows.check_version(connection, task, number, unusable)
            if not weights and not traffic.read(connection, [top.seq]):
                return answers.keep(connection, preconditions, rows.as_activation(top))
            made = rows.set_active(
                connection, task, top.version, "traffic", parent=top.parent, by=by.key
            )
            traffic.write(connection, made.seq, weights)
            audit.append(connection, by, "set_traffic", task=task)
            made = made.model_copy(update={"weights": dict(weights) or None})
            return answers.keep(connection, preconditions, made)

    def traffic(self, task: str) -> dict[int, int] | None:
        """Return the weights by version if the traffic is split. Raises `UnknownTask`."""
        query = select(tasks.c.active_seq).where(tasks.c.name == task)
        with self._read() as connection:
            rows.read_task(connection, task)
            seq = connection.scalar(query)
            return None if seq is None else traffic.read(connection, [seq]).get(seq)

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

    def current_activation(self, task: str) -> CurrentActivation:
        """Return the activation in force; an empty one for a task that does not exist."""
        query = select(tasks.c.active_seq).where(tasks.c.name == task, tasks.c.deleted_at.is_(None))
        with self._read() as connection:
            return CurrentActivation(connection.scalar(query))

    def history(self, task: str, limit: int = 100) -> list[Activation]:
        """Return a task's last activations, newest first. Raises `UnknownTask`."""
        query = (
            select(activations)
            .join(tasks, tasks.c.name == activations.c.task)
            .where(activations.c.task == task, activations.c.seq > tasks.c.since_seq)
            .order_by(activations.c.seq.desc())
            .limit(limit)
        )
        with self._read() as connection:
            rows.read_task(connection, task)
            found = connection.execute(query).all()
            weights = traffic.read(connection, [row.seq for row in found])
            return [rows.as_activation(row, weights.get(row.seq)) for row in found]

    def resolve(self, task: str, version: int | None = None, key: str = "") -> Manifest:
        """Return the version that serves a request, in one query, as every request needs it.

        If the traffic is split, requests with the same key get the same version.

        Raises `UnknownTask`, `UnknownVersion`, `NothingActive`.
        """
        rows.check_known_name(task)
        if version is not None:
            rows.check_known_number(task, version)
        with self._read() as connection:
            found = connection.execute(rows.RESOLVED, {"task": task, "number": version}).all()
        if not found:
            raise UnknownTask(f"there is no task {task}")
        alive = {row.number: row for row in found if row.manifest is not None}
        if len(alive) > 1:
            weights = {number: row.weight for number, row in alive.items()}
            return Manifest.model_validate_json(alive[choose(weights, task, key)].manifest)
        for row in alive.values():
            return Manifest.model_validate_json(row.manifest)
        if version is None:
            raise NothingActive(f"{task} has no active version")
        raise UnknownVersion(f"{task} has no version {version}")

    def serving_version(self, task: str, version: int | None, key: str) -> ServingVersion:
        """Return what `resolve` finds, with the task's profile."""
        return ServingVersion(self.resolve(task, version, key), self.get_task(task).profile)

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


def _adopt(connection: Connection, task: str, definition: Definition, by: Actor) -> None:
    """Let a task adopt a definition. Raises `DefinitionMismatch`."""
    found = rows.read_task(connection, task)
    profile = definition.adopted_by(found)
    if profile != found.profile:
        _write_profile(connection, task, profile, by)


def _write_profile(connection: Connection, task: str, profile: Profile, by: Actor) -> None:
    text = profile.model_dump_json()
    rows.change(connection, task, profile=text)
    audit.append(connection, by, "set_profile", task=task, digest=Digest.of(text.encode()))
