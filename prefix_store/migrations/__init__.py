"""The registry's tables over time: one file in `versions/` for every change, run by alembic.

A change only adds, so that a server of the version before goes on beside it, and all changes that
a database lacks are one transaction: a kill leaves the old tables or the new ones.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock

from sqlalchemy import Connection, inspect, text

from prefix_store.errors import StorageFailure

_FIRST = "0001"
_ALEMBIC = Lock()  # it keeps what it is doing in its modules


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


def is_empty(connection: Connection) -> bool:
    """Whether there are no tables yet."""
    return _revision(connection) is None and not inspect(connection).has_table("tasks")


def upgrade(connection: Connection) -> None:
    """Bring the tables up to date within the connection's transaction, which must be a writer's."""
    if is_current(connection):  # another process was faster
        return
    # A start with nothing to do, which is nearly every start, need not import it.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "prefix_store:migrations")
    with _ALEMBIC:
        if _revision(connection) is None and not is_empty(connection):
            command.stamp(config, _FIRST)  # version 0.1.0 made its tables without alembic
        command.upgrade(config, "head")
    if not is_current(connection):  # alembic takes files that it cannot list for no files
        raise StorageFailure("the registry's database cannot be upgraded: changes are missing")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision
