from __future__ import annotations

import multiprocessing
import re
import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from prefix_store import migrations
from prefix_store.database.schema import metadata
from prefix_store.errors import StorageFailure
from prefix_store.manifest import Profile
from prefix_store.registry.registry import Registry
from prefix_store.testing import draft
from tests.crash.operations import make_old_database
from tests.postgres import Postgres


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


def open_and_close(path: Path) -> None:
    Registry(f"sqlite:///{path}").close()


def tables(path: Path) -> dict[str, str]:
    """Return the CREATE statement of each table and index, with whitespace normalised: SQLite
    writes a column that was added after a space."""
    connection = sqlite3.connect(path)
    query = "SELECT name, sql FROM sqlite_master WHERE sql NOT NULL AND name NOT LIKE 'sqlite_%'"
    found = {
        name: re.sub(r" (?=[,)])", "", " ".join(sql.replace('"', "").split()))
        for name, sql in connection.execute(query)
    }
    connection.close()
    return found


def test_the_migrations_make_what_the_code_describes(path: Path) -> None:
    open_and_close(path)
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
    engine.dispose()

    assert differences == []


def test_the_migrations_make_the_same_tables_as_the_code(path: Path, tmp_path: Path) -> None:
    """Closer than alembic looks: constraints, autoincrement, and so on."""
    open_and_close(path)
    described = tmp_path / "described.db"
    engine = create_engine(f"sqlite:///{described}")
    metadata.create_all(engine)
    engine.dispose()
    made = tables(path)
    del made["alembic_version"]

    assert made == tables(described)


def test_a_database_of_version_0_1_0_is_upgraded_with_all_that_is_in_it(path: Path) -> None:
    make_old_database(path)
    registry = Registry(f"sqlite:///{path}")

    assert registry.resolve("x").version == 3
    assert [manifest.version for manifest in registry.list_versions("y")] == [2, 3]
    assert registry.add_version("y", draft(), activate=True, create=False).version == 4
    assert registry.rollback("x").version == 2
    assert registry.get_task("x").revision == 2
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
    make_old_database(path)
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


def test_the_migrations_make_what_the_code_describes_in_postgresql(postgres: Postgres) -> None:
    url = postgres.new_database(is_migrated=False)
    open_url(url)
    engine = create_engine(url)
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
    engine.dispose()

    assert differences == []


def open_url(url: str) -> None:
    Registry(url).close()


def test_processes_that_start_at_once_share_a_new_postgresql(postgres: Postgres) -> None:
    url = postgres.new_database(is_migrated=False)
    context = multiprocessing.get_context("spawn")
    starts = [context.Process(target=open_url, args=(url,)) for _ in range(3)]
    for process in starts:
        process.start()
    for process in starts:
        process.join(60)

    assert [process.exitcode for process in starts] == [0] * 3


@pytest.mark.parametrize("old", [False, True])
def test_processes_that_start_at_once_all_find_the_new_tables(path: Path, old: bool) -> None:
    if old:
        make_old_database(path)
    context = multiprocessing.get_context("spawn")
    starts = [context.Process(target=open_and_close, args=(path,)) for _ in range(4)]
    for process in starts:
        process.start()
    for process in starts:
        process.join(60)

    assert [process.exitcode for process in starts] == [0] * 4
    registry = Registry(f"sqlite:///{path}")
    assert registry.create_task("z", Profile()).name == "z"
    registry.close()


def test_the_revisions_are_one_line() -> None:
    config = Config()
    config.set_main_option("script_location", "prefix_store:migrations")
    scripts = ScriptDirectory.from_config(config)

    assert [script.revision for script in scripts.walk_revisions()][::-1] == migrations.known()
