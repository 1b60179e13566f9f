"""Definitions of versions as they are stored, beside the manifests."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select, update

from prefix_store.database.schema import tasks, versions
from prefix_store.definition import Definition
from prefix_store.manifest import Manifest, Profile


def to_json(definition: Definition) -> str:
    """Return a definition as it is stored, without unset fields."""
    return definition.model_dump_json(exclude_none=True)


def as_manifest(row: Row[*tuple[Any, ...]]) -> Manifest:
    """Return the manifest of a row with the columns `manifest`, `definition` and `profile`."""
    return parse(row.manifest, row.definition, row.profile)


def parse(manifest: str, definition: str | None, profile: str) -> Manifest:
    """Join a stored manifest with its definition.

    A version written by a server up to 0.1.1 has none, and is asked as its task's profile says.
    """
    found = Manifest.model_validate_json(manifest)
    if definition is not None:
        known = Definition.model_validate_json(definition)
    else:
        fields = Profile.model_validate_json(profile).definition_fields
        known = found.definition.model_copy(update=fields)
    return found.model_copy(update={"definition": known})


def fill_in(connection: Connection, task: str) -> None:
    """Give versions written by a server up to 0.1.1 the definition that they are asked by.

    Called before the profile changes, which would change what those versions answer.
    """
    query = (
        select(versions.c.number, versions.c.manifest, versions.c.definition, tasks.c.profile)
        .join(tasks, tasks.c.name == versions.c.task)
        .where(versions.c.task == task, versions.c.definition.is_(None))
    )
    for row in connection.execute(query).all():
        found = (versions.c.task == task) & (versions.c.number == row.number)
        definition = to_json(as_manifest(row).definition)
        connection.execute(update(versions).where(found).values(definition=definition))


def read(connection: Connection, task: str, number: int) -> Definition:
    """Return the definition of a version that exists, after `fill_in`."""
    found = (versions.c.task == task) & (versions.c.number == number)
    text = connection.scalar(select(versions.c.definition).where(found))
    return Definition.model_validate_json(text or "")
