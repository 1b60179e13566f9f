"""The registry's tables over time: one file in `versions/` for every change, run by alembic.

A change only adds, so that a server of the version before goes on beside it, and all changes that
a database lacks are one transaction: a kill leaves the old tables or the new ones.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from prefix_store.errors import StorageFailure

_FIRST = "0001"


def known() -> list[str]:
    """The revisions that this code knows, in order."""
    return sorted(path.name[:4] for path in (Path(__file__).parent / "versions").glob("0*.py"))


def is_current(connection: Connection) -> bool:
    """Whether nothing is to be done. Raises `StorageFailure` for a database from the future."""
    revision = _revision(connection)
    revisions = known()
    if revision is not None and revision not in revisions:
        raise StorageFailure(
            f"the registry's database is of a newer Foreword (revision {revision}; this one knows "
            f"{revisions[-1]}): start that one, or restore a backup made before the upgrade"
        )
    return revision == revisions[-1]


def upgrade(connection: Connection) -> None:
    """Bring the tables up to date within the connection's transaction, which must be a writer's."""
    if connection.dialect.name == "postgresql":  # SQLite has but one writer
        connection.execute(text("SELECT pg_advisory_xact_lock(0x666f7265)"))
    if is_current(connection):  # another process was faster
        return
    # A start with nothing to do, which is nearly every start, need not import it.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "prefix_store:migrations")
    if _revision(connection) is None and inspect(connection).has_table("tasks"):
        command.stamp(config, _FIRST)  # version 0.1.0 made its tables without alembic
    command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision
