"""The tasks of a server, read for a plan or an export."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import anyio
from pydantic import BaseModel

from foreword_client import types
from foreword_client.apply.changes import ActualTask
from foreword_client.apply.models import Defaults, Definition, RollbackRule, Settings
from foreword_client.async_client import AsyncClient
from foreword_client.errors import ForewordError, UnexpectedAnswerError, UnknownTaskError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Found:
    """A task as the server has it, and the manifests of the versions that it can serve."""

    actual: ActualTask
    manifests: tuple[types.Version, ...]


async def read_task(client: AsyncClient, name: str, fingerprint: str) -> Found | None:
    """Read a task; None if there is none. `fingerprint`: of the server's base model."""
    try:
        # Its revision first: what changes between both reads is noticed when it is written.
        task = await client.task(name)
        versions = await client.versions(name)
    except UnknownTaskError:
        return None
    manifests = tuple(
        version
        for version in versions.versions
        if version.version not in versions.quarantined and version.fingerprint == fingerprint
    )
    return Found(_actual(task, versions, manifests), manifests)


def _actual(
    task: types.Task, versions: types.Versions, usable: Iterable[types.Version]
) -> ActualTask:
    last = max(versions.history, key=lambda activation: activation.seq, default=None)
    return ActualTask(
        name=task.name,
        revision=task.revision or 0,
        settings=Settings.of(task.profile),
        definition=Definition.of_answer(task.profile),
        active=task.active_version,
        weights=task.weights,
        rollback_if=None if last is None else RollbackRule.of_answer(last.rollback_if),
        rollback_reason=None if last is None else last.reason,
        versions={version.version: definition_of(version) for version in usable},
        pinned=frozenset(version.version for version in versions.versions if version.pinned),
    )


def definition_of(version: types.Version) -> Definition:
    """Return how a version is asked.

    Raises `UnexpectedAnswerError` for servers before 0.2, and for newer ones if they have set what
    this client does not know: it would be lost in the next version.
    """
    found = version.definition
    if found is None:
        raise UnexpectedAnswerError("the server is too old: its versions have no definition")
    for answer, kind in ((found, Definition), (found.defaults, Defaults)):
        _check_known(version, answer, kind)
    return Definition.of_answer(found)


def _check_known(version: types.Version, answer: BaseModel, kind: type[BaseModel]) -> None:
    for name, value in (answer.model_extra or {}).items():
        if value is not None and name not in kind.model_fields:
            raise UnexpectedAnswerError(
                f"{version.task} v{version.version} has {name!r}, which this client does not "
                "know: update it"
            )


async def run_all(
    work: Callable[[T], Awaitable[R]], items: Iterable[T], *, concurrency: int
) -> list[R]:
    """Run `work` on all items, some at a time. Returns the results in order.

    The first `ForewordError` ends it: no further item is begun, and the error is raised.
    """
    results: dict[int, R] = {}
    failures: list[ForewordError] = []
    pending = enumerate(items)

    async def worker() -> None:
        for index, item in pending:
            try:
                results[index] = await work(item)
            except ForewordError as exc:
                failures.append(exc)
            if failures:
                return

    async with anyio.create_task_group() as group:
        for _ in range(concurrency):
            group.start_soon(worker)
    if failures:
        raise failures[0]
    return [results[index] for index in sorted(results)]
