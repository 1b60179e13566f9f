from __future__ import annotations

import multiprocessing
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, Table, create_engine

from prefix_store import migrations
from prefix_store.errors import StorageFailure
from prefix_store.manifest import Profile
from prefix_store.registry import Registry
from prefix_store.schema import metadata, open_database
from prefix_store.testing import draft


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


def open_and_close(path: Path) -> None:
    Registry(f"sqlite:///{path}").close()


def tables(path: Path) -> dict[str, str]:
    """Of each table and index, the statement that makes it, but for its layout."""
    connection = sqlite3.connect(path)
    query = "SELECT name, sql FROM sqlite_master WHERE sql NOT NULL AND name NOT LIKE 'sqlite_%'"
    found = {
        name: " ".join(sql.replace('"', "").split()) for name, sql in connection.execute(query)
    }
    connection.close()
    return found


def make_version_0_1_0(path: Path) -> None:
    """A database as that version made it, with a task of two versions; the first is active."""
    old = MetaData()
    engine = create_engine(f"sqlite:///{path}")
    at = datetime.now(UTC).replace(tzinfo=None)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE tasks (name VARCHAR(63) NOT NULL, profile TEXT NOT NULL, "
            "active_seq INTEGER, since_seq INTEGER NOT NULL, created_at DATETIME NOT NULL, "
            "updated_at DATETIME NOT NULL, deleted_at DATETIME, PRIMARY KEY (name))"
        )
        connection.exec_driver_sql(
            "CREATE TABLE versions (task VARCHAR(63) NOT NULL, number INTEGER NOT NULL, "
            "manifest TEXT NOT NULL, digest VARCHAR(71) NOT NULL, created_at DATETIME NOT NULL, "
            "deleted_at DATETIME, PRIMARY KEY (task, number))"
        )
        connection.exec_driver_sql(
            "CREATE TABLE activations (seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, "
            "task VARCHAR(63) NOT NULL, version INTEGER NOT NULL, action VARCHAR(16) NOT NULL, "
            "parent INTEGER, at DATETIME NOT NULL, by TEXT)"
        )
        connection.exec_driver_sql("CREATE INDEX activations_of_a_task ON activations (task, seq)")
        rows = {
            "tasks": [{"name": "x", "profile": "{}", "active_seq": 1, "since_seq": 0}],
            "versions": [
                {
                    "task": "x",
                    "number": number,
                    "manifest": draft().as_version("x", number, at=at, by=None).model_dump_json(),
                    "digest": draft().digest,
                }
                for number in (1, 2)
            ],
            "activations": [{"task": "x", "version": 1, "action": "activate", "at": at}],
        }
        for name, values in rows.items():
            table = Table(name, old, autoload_with=connection)
            times = {column: at for column in ("created_at", "updated_at") if column in table.c}
            connection.execute(table.insert(), [row | times for row in values])
    engine.dispose()


def test_the_migrations_make_what_the_code_describes(path: Path) -> None:
    open_and_close(path)
    engine = open_database(f"sqlite:///{path}")
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
    engine.dispose()

    assert differences == []


def test_the_migrations_make_the_same_tables_as_the_code(path: Path, tmp_path: Path) -> None:
    """Closer than alembic looks: constraints, autoincrement, and so on."""
    open_and_close(path)
    described = tmp_path / "described.db"
    engine = open_database(f"sqlite:///{described}")
    metadata.create_all(engine)
    engine.dispose()
    made = tables(path)
    del made["alembic_version"]

    assert made == tables(described)


def test_a_database_of_version_0_1_0_is_upgraded_with_all_that_is_in_it(path: Path) -> None:
    make_version_0_1_0(path)
    registry = Registry(f"sqlite:///{path}")

    assert registry.resolve("x").version == 1
    assert [manifest.version for manifest in registry.list_versions("x")] == [1, 2]
    assert registry.add_version("x", draft(), activate=True, create=False).version == 3
    assert registry.rollback("x").version == 1
    registry.close()
    open_and_close(path.with_name("new.db"))
    assert tables(path).keys() == tables(path.with_name("new.db")).keys()


def test_a_start_with_nothing_to_do_needs_no_lock(path: Path) -> None:
    open_and_close(path)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")

    open_and_close(path)
    blocker.close()


def test_a_database_from_the_future_is_refused_and_left_alone(path: Path) -> None:
    open_and_close(path)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '0999'")
    connection.commit()
    connection.close()
    before = tables(path)

    with pytest.raises(StorageFailure, match=r"newer Foreword \(revision 0999"):
        Registry(f"sqlite:///{path}")
    assert tables(path) == before


def test_a_migration_that_fails_leaves_the_old_tables(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_version_0_1_0(path)
    before = tables(path)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("power")

    with monkeypatch.context() as patch:
        patch.setattr("alembic.runtime.migration.HeadMaintainer._update_version", fail)
        patch.setattr("alembic.runtime.migration.HeadMaintainer._insert_version", fail)
        with pytest.raises(RuntimeError, match="power"):
            Registry(f"sqlite:///{path}")

    assert tables(path) == before
    open_and_close(path)


@pytest.mark.parametrize("old", [False, True])
def test_processes_that_start_at_once_all_find_the_new_tables(path: Path, old: bool) -> None:
    if old:
        make_version_0_1_0(path)
    context = multiprocessing.get_context("spawn")
    starts = [context.Process(target=open_and_close, args=(path,)) for _ in range(4)]
    for process in starts:
        process.start()
    for process in starts:
        process.join(60)

    assert [process.exitcode for process in starts] == [0] * 4
    registry = Registry(f"sqlite:///{path}")
    assert registry.create_task("y", Profile()).name == "y"
    registry.close()


def test_the_revisions_are_one_line() -> None:
    config = Config()
    config.set_main_option("script_location", "prefix_store:migrations")
    scripts = ScriptDirectory.from_config(config)

    assert [script.revision for script in scripts.walk_revisions()][::-1] == migrations.known()
