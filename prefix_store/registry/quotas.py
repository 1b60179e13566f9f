"""Quotas of the registry, checked in the transaction that adds to it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from prefix_store.database.schema import tasks, versions
from prefix_store.errors import QuotaExceeded, StoreFull


@dataclass(frozen=True, slots=True)
class Quotas:
    """Limits of tasks, versions and bytes; None: no limit. Exact, as writers are serialised."""

    max_tasks: int | None = None
    max_versions_per_task: int | None = None
    max_store_bytes: int | None = None
    """Total size of the artifacts that versions refer to, each counted once.
    `PrefixStore.check_room` adds those that no version refers to."""

    def check_tasks(self, connection: Connection) -> None:
        """Check after inserting a task. Raises `QuotaExceeded`."""
        if self.max_tasks is None:
            return
        query = select(func.count()).select_from(tasks).where(tasks.c.deleted_at.is_(None))
        if connection.execute(query).scalar_one() > self.max_tasks:
            raise QuotaExceeded(f"the limit of {self.max_tasks} tasks is reached")

    def check_versions(self, connection: Connection, task: str) -> None:
        """Check after inserting a version. Raises `QuotaExceeded`, `StoreFull`."""
        alive = versions.c.deleted_at.is_(None)
        if self.max_versions_per_task is not None:
            query = select(func.count()).select_from(versions).where(versions.c.task == task, alive)
            if connection.execute(query).scalar_one() > self.max_versions_per_task:
                raise QuotaExceeded(
                    f"the limit is {self.max_versions_per_task} versions per task: delete one first"
                )
        self.check_bytes(connection, 0)

    def check_bytes(self, connection: Connection, num_more: int) -> None:
        """Check whether `num_more` bytes still fit. Raises `StoreFull`."""
        if self.max_store_bytes is None:
            return
        artifacts = select(versions.c.digest, func.max(versions.c.num_bytes).label("num_bytes"))
        kept = artifacts.where(versions.c.deleted_at.is_(None)).group_by(versions.c.digest)
        query = select(func.coalesce(func.sum(kept.subquery().c.num_bytes), 0))
        if connection.execute(query).scalar_one() + num_more > self.max_store_bytes:
            raise StoreFull(
                f"the limit of {self.max_store_bytes} bytes of prefixes is reached: delete "
                "versions first"
            )
