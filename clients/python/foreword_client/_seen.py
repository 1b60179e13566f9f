"""What a change depends on: the task as the client sees it before it sends the change."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Protocol

from foreword_client import types
from foreword_client._upload import Upload
from foreword_client.errors import PermissionDeniedError, UnknownTaskError


class Reader(Protocol):
    """What is needed of `Client`."""

    def task(self, name: str) -> types.Task: ...

    def version(self, task: str, number: int) -> types.Version: ...


class AsyncReader(Protocol):
    """What is needed of `AsyncClient`."""

    async def task(self, name: str) -> types.Task: ...

    async def version(self, task: str, number: int) -> types.Version: ...


def before(client: Reader, task: str) -> types.Task | None:
    """Get a task before an upload; None if it is new, or if the key may not read tasks."""
    with suppress(UnknownTaskError, PermissionDeniedError):
        return client.task(task)
    return None


async def async_before(client: AsyncReader, task: str) -> types.Task | None:
    """Like `before`."""
    with suppress(UnknownTaskError, PermissionDeniedError):
        return await client.task(task)
    return None


def revision(client: Reader, task: str, given: int | None) -> int | None:
    """Return `given`, or else the task's revision; None if the key may not read tasks."""
    if given is not None:
        return given
    with suppress(PermissionDeniedError):
        return client.task(task).revision
    return None


async def async_revision(client: AsyncReader, task: str, given: int | None) -> int | None:
    """Like `revision`."""
    if given is not None:
        return given
    with suppress(PermissionDeniedError):
        return (await client.task(task)).revision
    return None


def changed(
    client: Reader,
    task: str,
    upload: Upload,
    fields: types.DefinitionFields,
    if_match: int | None,
) -> tuple[Upload, int | None]:
    """Change fields of the definition that an upload would have otherwise.

    If that is the task's, the upload depends on the revision at which it was read.
    """
    if (own := upload.own_definition()) is not None:
        return upload.asked(own, fields), if_match
    try:
        found = client.task(task)
    except UnknownTaskError:
        return upload.asked({}, fields), if_match
    number = upload.prefix_of
    version = None if number is None else client.version(task, number)
    return upload.asked(_definition(found, version), fields), if_match or found.revision


async def async_changed(
    client: AsyncReader,
    task: str,
    upload: Upload,
    fields: types.DefinitionFields,
    if_match: int | None,
) -> tuple[Upload, int | None]:
    """Like `changed`."""
    if (own := upload.own_definition()) is not None:
        return upload.asked(own, fields), if_match
    try:
        found = await client.task(task)
    except UnknownTaskError:
        return upload.asked({}, fields), if_match
    number = upload.prefix_of
    version = None if number is None else await client.version(task, number)
    return upload.asked(_definition(found, version), fields), if_match or found.revision


def _definition(task: types.Task, version: types.Version | None) -> dict[str, Any]:
    """The definition of a version, else of the task's active one, as JSON."""
    if version is not None and version.definition is not None:
        return version.definition.model_dump(mode="json", exclude_none=True)
    kept = set(types.DefinitionFields.__annotations__)
    return task.profile.model_dump(mode="json", exclude_none=True, include=kept)
