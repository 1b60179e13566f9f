"""Queries and statements of the registry, each within a given transaction."""

from __future__ import annotations

import json
from collections.abc import Set
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    func,
    insert,
    select,
    update,
)

from prefix_store.database.schema import activations, tasks, versions
from prefix_store.definition import Definition
from prefix_store.digest import Digest
from prefix_store.errors import (
    ActivationOvertaken,
    PreconditionFailed,
    UnknownTask,
    UnknownVersion,
    VersionQuarantined,
)
from prefix_store.manifest import Activation, Manifest, Profile, Task
from prefix_store.reference import MAX_VERSION, is_task_name
from prefix_store.registry import definitions, queries
from prefix_store.registry.preconditions import Preconditions
from prefix_store.rollback import RollbackRule


def now() -> datetime:
    """Return the current time, aware, in UTC."""
    return datetime.now(UTC)


def check_known_name(task: str) -> None:
    """Raise `UnknownTask` for invalid names, some of which a database cannot even query."""
    if not is_task_name(task):
        raise UnknownTask("there is no such task")


def check_known_number(task: str, number: int) -> None:
    """Raise `UnknownVersion` for a number out of range, which a database may fail to query."""
    if not 1 <= number <= MAX_VERSION:
        raise UnknownVersion(f"{task} has no such version")


def profile_json(profile: Profile) -> str:
    """Return a profile as it is stored: without unset fields, and `rank` by its names of 0.1.1.

    A server of an earlier version on the same registry refuses fields that it does not know.
    """
    fields = profile.model_dump(mode="json", exclude_none=True)
    if (rank := fields["defaults"].pop("rank", None)) is not None:
        fields["defaults"] |= {"choices": rank["texts"], "rank_by": rank["by"]}
    return json.dumps(fields, ensure_ascii=False)


def create(connection: Connection, name: str, profile: Profile) -> bool:
    """Insert a task, or reset a deleted one. Return False if the task exists."""
    found = connection.execute(
        select(tasks.c.deleted_at, tasks.c.revision).where(tasks.c.name == name).with_for_update()
    ).one_or_none()
    if found is not None and found.deleted_at is None:
        return False
    at = now()
    fields = {
        "profile": profile_json(profile),
        "active_seq": None,
        "since_seq": connection.scalar(select(func.max(activations.c.seq))) or 0,
        "created_at": at,
        "updated_at": at,
        "deleted_at": None,
    }
    if found is None:
        connection.execute(insert(tasks).values(name=name, **fields))
    else:
        fields["revision"] = found.revision + 1
        connection.execute(update(tasks).where(tasks.c.name == name).values(**fields))
    return True


def lock(connection: Connection, name: str, preconditions: Preconditions) -> Row[Any]:
    """Lock and return the task's row after checking the preconditions.

    Raises `UnknownTask`, `PreconditionFailed`, `ActivationOvertaken`.
    """
    check_known_name(name)
    row = connection.execute(
        select(tasks).where(tasks.c.name == name, tasks.c.deleted_at.is_(None)).with_for_update()
    ).one_or_none()
    if row is None:
        raise UnknownTask(f"there is no task {name}")
    if preconditions.revisions is not None and row.revision not in preconditions.revisions:
        raise PreconditionFailed(f"{name} has changed: it is at revision {row.revision}")
    if (
        preconditions.expected_activation is not None
        and row.active_seq != preconditions.expected_activation.seq
    ):
        raise ActivationOvertaken(
            f"another activation of {name} was made while this request was running: check what is "
            "active now, and send the request again if it is still wanted"
        )
    return row


def change(connection: Connection, name: str, **fields: object) -> None:
    """Update a task's row and its revision; without fields, the revision only."""
    changes = {"updated_at": now(), "revision": tasks.c.revision + 1, **fields}
    connection.execute(update(tasks).where(tasks.c.name == name).values(**changes))


def read_task(connection: Connection, name: str) -> Task:
    """Return a task. Raises `UnknownTask`."""
    check_known_name(name)
    row = connection.execute(queries.TASKS.where(tasks.c.name == name)).one_or_none()
    if row is None:
        raise UnknownTask(f"there is no task {name}")
    return as_task(row)


def next_number(connection: Connection, task: str) -> int:
    """Return the next version number. Numbers of deleted versions are not reused."""
    last = connection.scalar(select(func.max(versions.c.number)).where(versions.c.task == task))
    return (last or 0) + 1


def add(connection: Connection, manifest: Manifest) -> None:
    """Insert a version."""
    connection.execute(
        insert(versions).values(
            task=manifest.task,
            number=manifest.version,
            manifest=manifest.model_dump_json(exclude={"definition"}),
            definition=definitions.to_json(manifest.definition),
            digest=manifest.digest,
            num_bytes=manifest.num_bytes,
            created_at=manifest.created_at,
        )
    )


def check_version(
    connection: Connection, task: str, number: int, unusable: Set[Digest] = frozenset()
) -> None:
    """Raise `UnknownVersion`, or `VersionQuarantined` if the version's blob is in `unusable`."""
    check_known_number(task, number)
    query = select(versions.c.digest).where(_alive(task, number))
    digest = connection.scalar(query)
    if digest is None:
        raise UnknownVersion(f"{task} has no version {number}")
    if Digest(digest) in unusable:
        raise VersionQuarantined(
            f"the stored bytes of version {number} of {task} are corrupt: upload them again"
        )


def pin(connection: Connection, task: str, number: int, *, pinned: bool) -> None:
    """Record whether a version's prefix stays on the device."""
    connection.execute(update(versions).where(_alive(task, number)).values(pinned=pinned))


def mark_deleted(connection: Connection, task: str, number: int | None = None) -> None:
    """Mark one version of a task, or all of them, as deleted."""
    statement = update(versions).where(versions.c.task == task, versions.c.deleted_at.is_(None))
    if number is not None:
        statement = statement.where(versions.c.number == number)
    connection.execute(statement.values(deleted_at=now()))


def activation(connection: Connection, seq: int | None) -> Row[Any] | None:
    """Return the activation with this sequence number."""
    if seq is None:
        return None
    return connection.execute(select(activations).where(activations.c.seq == seq)).one()


def previous_activation(connection: Connection, top: Row[Any] | None) -> Row[Any] | None:
    """Return the activation that a rollback from `top` goes back to, if any."""
    row = activation(connection, top.parent) if top is not None else None
    while row is not None and top is not None:
        if row.version != top.version and _is_alive(connection, row.task, row.version):
            return row
        row = activation(connection, row.parent)
    return None


def set_active(
    connection: Connection,
    task: str,
    version: int,
    action: Literal["activate", "rollback", "traffic"],
    *,
    parent: int | None,
    by: str | None,
    rollback_if: RollbackRule | None = None,
    reason: str | None = None,
) -> Activation:
    """Make a version the active one, record the activation, and copy its definition to the task's
    profile, from which servers up to 0.1.1 read it."""
    definitions.fill_in(connection, task)
    values = {"task": task, "version": version, "action": action, "parent": parent, "by": by}
    values["rollback_if"] = None if rollback_if is None else rollback_if.model_dump_json()
    values["reason"] = reason
    row = connection.execute(
        insert(activations).values(at=now(), **values).returning(activations)
    ).one()
    profile = _stored_profile(connection, task)
    shown = profile.model_copy(update=definitions.read(connection, task, version).definition_fields)
    changes = {} if shown == profile else {"profile": profile_json(shown)}
    change(connection, task, active_seq=row.seq, **changes)
    return as_activation(row)


def as_task(row: Row[Any]) -> Task:
    profile = Profile.model_validate_json(row.profile)
    if row.definition is not None:  # the stored profile has a copy, for servers up to 0.1.1
        definition = Definition.model_validate_json(row.definition)
        profile = profile.model_copy(update=definition.definition_fields)
    return Task(
        name=row.name,
        profile=profile,
        active_version=row.version,
        num_versions=row.num_versions,
        revision=row.revision,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def as_activation(row: Row[Any], weights: dict[int, int] | None = None) -> Activation:
    rule = row.rollback_if and RollbackRule.model_validate_json(row.rollback_if)
    return Activation(
        seq=row.seq,
        version=row.version,
        action=row.action,
        weights=weights,
        rollback_if=rule,
        reason=row.reason,
        at=row.at,
        by=row.by,
    )


def _stored_profile(connection: Connection, task: str) -> Profile:
    text = connection.scalar(select(tasks.c.profile).where(tasks.c.name == task))
    return Profile.model_validate_json(text or "")


def _is_alive(connection: Connection, task: str, number: int) -> bool:
    return connection.scalar(select(versions.c.number).where(_alive(task, number))) is not None


def _alive(task: str, number: int) -> ColumnElement[bool]:
    return and_(
        versions.c.task == task, versions.c.number == number, versions.c.deleted_at.is_(None)
    )
