"""Schema migrations of the registry: one file in `versions/` per change, run by alembic.

Migrations only add, so that servers of the previous release keep working during an upgrade. All
pending migrations run in one transaction: a kill leaves the old schema or the new one.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock

from sqlalchemy import Connection, inspect, text

from prefix_store.errors import StorageFailure

_FIRST = "0001"
_ALEMBIC = Lock()  # alembic keeps its state in module globals


def known() -> list[str]:
    """Return the revisions that this code knows, in order."""
    return sorted(path.name[:4] for path in (Path(__file__).parent / "versions").glob("0*.py"))


def is_current(connection: Connection) -> bool:
    """Whether the schema is up to date. Raises `StorageFailure` if it is newer than the code."""
    revision = _revision(connection)
    revisions = known()
    if revision is not None and revision not in revisions:
        raise StorageFailure(
            f"the registry's database belongs to a newer Foreword (revision {revision}; this one "
            f"knows {revisions[-1]}): run that one, or restore a backup made before the upgrade"
        )
    return revision == revisions[-1]


def is_empty(connection: Connection) -> bool:
    """Whether there are no tables yet."""
    return _revision(connection) is None and not inspect(connection).has_table("tasks")


def upgrade(connection: Connection) -> None:
    """Run pending migrations in the connection's transaction, which must be a write transaction."""
    if is_current(connection):  # another process was faster
        return
    # Imported late: nearly every start has nothing to migrate.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "prefix_store:migrations")
    with _ALEMBIC:
        if _revision(connection) is None and not is_empty(connection):
            command.stamp(config, _FIRST)  # version 0.1.0 created its tables without alembic
        command.upgrade(config, "head")
    if not is_current(connection):  # alembic ignores a folder of migrations that it cannot list
        raise StorageFailure("the registry's database cannot be upgraded: migrations are missing")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision
