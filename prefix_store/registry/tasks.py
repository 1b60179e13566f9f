"""The registry's tasks and their profiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, select

from prefix_store.database.database import Database
from prefix_store.database.schema import tasks
from prefix_store.digest import Digest
from prefix_store.errors import ActivationOvertaken, TaskExists, TrafficSplit
from prefix_store.manifest import Draft, Profile, Task
from prefix_store.reference import check_task_name
from prefix_store.registry import answers, audit, definitions, queries, rows, traffic
from prefix_store.registry.audit import NOBODY, Actor
from prefix_store.registry.preconditions import UNCONDITIONAL, Preconditions
from prefix_store.registry.quotas import Quotas


class TaskRegistry:
    """Creates, changes, lists and deletes tasks. Holds the database and the quotas."""

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
            digest = Digest.of(rows.profile_json(profile).encode())
            audit.append(connection, by, "create_task", task=name, digest=digest)
            return rows.read_task(connection, name)

    def set_profile(
        self,
        name: str,
        profile: Profile,
        preconditions: Preconditions = UNCONDITIONAL,
        by: Actor = NOBODY,
        redefined: Draft | None = None,
        change: Callable[[Profile], Profile] | None = None,
    ) -> Task:
        """Replace a task's profile.

        `redefined` is the active version with the profile's definition. It becomes the task's next
        version, and active, in the same transaction. `change` makes the profile from the current
        one; it is repeated here, so that a change which came meanwhile is not lost.

        Raises `UnknownTask`, `PreconditionFailed`, `QuotaExceeded`, `TrafficSplit`, and
        `ActivationOvertaken` if the definition differs from the active version's without it, or
        from the one of `profile` because of such a change.
        """
        with self._write() as connection:
            row = rows.lock(connection, name, preconditions)
            if redefined is not None:
                self._redefine(connection, row, redefined, by)
            found = rows.read_task(connection, name)
            changed = profile if change is None else change(found.profile)
            _check_definition(found, changed, profile)
            _write_profile(connection, name, changed, by)
            return rows.read_task(connection, name)

    def _redefine(self, connection: Connection, task: Row[Any], draft: Draft, by: Actor) -> None:
        name, active = task.name, task.active_seq
        if traffic.read(connection, [active]):
            raise TrafficSplit(
                f"the traffic of {name} is split between versions: upload a version with the new "
                "definition, or end the split first"
            )
        number = rows.next_number(connection, name)
        rows.add(connection, draft.as_version(name, number, at=rows.now(), by=by.key))
        self._quotas.check_versions(connection, name)
        rows.set_active(connection, name, number, "activate", parent=active, by=by.key)
        digest = Digest(draft.digest)
        audit.append(connection, by, "push_and_activate", task=name, version=number, digest=digest)

    def get_task(self, name: str) -> Task:
        """Return a task. Raises `UnknownTask`."""
        with self._read() as connection:
            return rows.read_task(connection, name)

    def list_tasks(
        self,
        after: str | None = None,
        limit: int = 100,
        globs: Sequence[str] = ("*",),
        *,
        search: str = "",
        state: queries.State | None = None,
        sort: queries.Sort = "name",
    ) -> list[Task]:
        """Return at most `limit` tasks that follow the cursor `after`, in the order `sort`.

        `search`: what their name or description contains, in upper or lower case. The cursor of
        the next page is `queries.cursor` of the last task. Raises `InvalidName`.
        """
        page = queries.page_of_tasks(after, limit, globs, search, state, sort)
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


def _check_definition(task: Task, changed: Profile, checked: Profile) -> None:
    """Raise `ActivationOvertaken` if the definition of a changed profile is not the active
    version's or, without one, not the one that was checked."""
    known = checked if task.active_version is None else task.profile
    if changed.definition_fields != known.definition_fields:
        raise ActivationOvertaken(
            f"the definition of {task.name} was changed while this request was running: send it "
            "again"
        )


def _write_profile(connection: Connection, task: str, profile: Profile, by: Actor) -> None:
    """Write a task's profile and an audit row."""
    definitions.fill_in(connection, task)
    text = rows.profile_json(profile)
    rows.change(connection, task, profile=text)
    audit.append(connection, by, "set_profile", task=task, digest=Digest.of(text.encode()))
