"""`apply` from files to results: read, checked and planned in full before the first write."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread
from pydantic import BaseModel

from foreword_client.apply import execute
from foreword_client.apply.changes import (
    ActualTask,
    Change,
    WantedTask,
)
from foreword_client.apply.execute import Report, Result, result_of
from foreword_client.apply.files import DeclaredTask, InvalidFileError
from foreword_client.apply.plan import plan
from foreword_client.apply.resolve import OpenedTask, open_task, resolve
from foreword_client.apply.sources import Source
from foreword_client.apply.state import Found, read_task, run_all
from foreword_client.async_client import AsyncClient

Progress = Callable[[int, int], None]
"""Called with the number of tasks read, and of all tasks."""
Confirm = Callable[[Sequence[str]], None]
"""Called with the tasks that will be deleted. Raises to stop."""

_PAST = {"create": "created", "change": "changed", "delete": "deleted"}


class Applied(BaseModel):
    """What `apply` did, or would do."""

    dry_run: bool
    created: int = 0
    changed: int = 0
    deleted: int = 0
    unchanged: int = 0
    failed: int = 0
    left_out: int = 0
    """Tasks that were not deleted because something had failed."""
    tasks: list[Result] = []
    """All but the unchanged ones."""

    @property
    def summary(self) -> str:
        """One line: `3 created, 2 changed, 495 unchanged`."""
        verbs = ("create", "change", "delete")
        words = [f"to {verb}" if self.dry_run else _PAST[verb] for verb in verbs]
        numbers = (self.created, self.changed, self.deleted)
        counts = dict(zip(words, numbers, strict=True))
        always = {*words[:2], "unchanged"}
        counts |= {"unchanged": self.unchanged, "failed": self.failed, "left out": self.left_out}
        return ", ".join(f"{n} {word}" for word, n in counts.items() if n or word in always)


@dataclass(frozen=True, slots=True)
class Options:
    """How to apply."""

    prune: bool = False
    dry_run: bool = False
    concurrency: int = 4


@dataclass(frozen=True, slots=True)
class _Prepared:
    changes: list[Change]
    num_unchanged: int
    sources: Mapping[str, tuple[Source, ...]]


async def apply(
    client: AsyncClient,
    declared: Mapping[str, DeclaredTask],
    options: Options,
    *,
    report: Report,
    progress: Progress,
    confirm: Confirm,
) -> Applied:
    """Make the server's tasks as files declare them.

    Raises `InvalidFileError` before anything is written, and errors after which nothing can go on.
    """
    with tempfile.TemporaryDirectory(prefix="foreword-apply-") as scratch:
        prepared = await _prepare(client, declared, options, Path(scratch), progress)
        changes = prepared.changes
        if options.dry_run:
            results = [result_of(change, "planned") for change in changes]
        else:
            if doomed := [change.task for change in changes if change.action == "delete"]:
                confirm(doomed)
            results = await execute.execute(
                client,
                changes,
                prepared.sources,
                concurrency=options.concurrency,
                report=report,
            )
    return _counted(results, prepared.num_unchanged, dry_run=options.dry_run)


def _counted(results: list[Result], num_unchanged: int, *, dry_run: bool) -> Applied:
    ended = [result for result in results if result.status in ("done", "planned")]

    def number(action: str) -> int:
        return sum(result.action == action for result in ended)

    return Applied(
        dry_run=dry_run,
        created=number("create"),
        changed=number("change"),
        deleted=number("delete"),
        unchanged=num_unchanged,
        failed=sum(result.status == "failed" for result in results),
        left_out=sum(result.status == "left_out" for result in results),
        tasks=results,
    )


async def _prepare(
    client: AsyncClient,
    declared: Mapping[str, DeclaredTask],
    options: Options,
    scratch: Path,
    progress: Progress,
) -> _Prepared:
    info = await client.info()
    opened: dict[str, OpenedTask] = {}
    found: dict[str, Found | None] = {}

    async def read(task: DeclaredTask) -> WantedTask:
        opened[task.name] = await anyio.to_thread.run_sync(open_task, task, scratch)
        found[task.name] = await read_task(client, task.name, info.fingerprint)
        wanted = await anyio.to_thread.run_sync(_resolved, opened[task.name], found[task.name])
        progress(len(found), len(declared))
        return wanted

    wanted = await run_all(read, declared.values(), concurrency=options.concurrency)
    actual = {name: one.actual for name, one in found.items() if one is not None}
    pruned = await _unnamed(client, declared) if options.prune else []
    changes = plan(wanted, actual, pruned)
    num_written = sum(change.action != "delete" for change in changes)
    sources = {name: task.sources for name, task in opened.items()}
    return _Prepared(changes, len(declared) - num_written, sources)


def _resolved(task: OpenedTask, found: Found | None) -> WantedTask:
    try:
        return resolve(task, found)
    except OSError as exc:
        raise InvalidFileError(f"{task.declared.at('prefix')}: {exc.strerror or exc}") from None


async def _unnamed(client: AsyncClient, declared: Mapping[str, DeclaredTask]) -> list[ActualTask]:
    """Return the server's tasks that no file names."""
    tasks = (task for task in await client.tasks() if task.name not in declared)
    return [ActualTask(task.name, task.revision or 0) for task in tasks]
