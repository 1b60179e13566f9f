from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefix_store.definition import Defaults
from prefix_store.errors import StorageFailure
from prefix_store.manifest import Profile
from prefix_store.registry import rows
from prefix_store.registry.registry import Registry
from prefix_store.sampling import Rank
from prefix_store.testing import RegistryContract, draft


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


@pytest.fixture
def registry(path: Path) -> Iterator[Registry]:
    registry = Registry(f"sqlite:///{path}")
    yield registry
    registry.close()


@pytest.fixture
def any_registry(database_url: str) -> Iterator[Registry]:
    """A registry's URL, SQLite and PostgreSQL in turn."""
    registry = Registry(database_url)
    yield registry
    registry.close()


class TestRegistry(RegistryContract):
    @pytest.fixture
    def registry(self, any_registry: Registry) -> Registry:
        return any_registry


def test_what_was_written_is_there_after_a_restart(
    any_registry: Registry, database_url: str
) -> None:
    manifest = any_registry.add_version("x", draft(), activate=True, create=True)
    any_registry.close()
    again = Registry(database_url)

    assert again.resolve("x") == manifest
    again.close()


def test_two_registries_share_a_database(any_registry: Registry, database_url: str) -> None:
    registry, other = any_registry, Registry(database_url)
    numbers = [
        r.add_version("x", draft(), activate=True, create=True).version
        for r in (registry, other, registry, other)
    ]

    assert numbers == [1, 2, 3, 4]
    assert registry.resolve("x") == other.resolve("x")
    other.close()


def test_commits_are_durable(registry: Registry) -> None:
    with registry.database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_a_locked_database_is_a_storage_failure(
    registry: Registry, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.close()
    monkeypatch.setattr("prefix_store.database.database.BUSY_TIMEOUT_S", 0)
    impatient = Registry(f"sqlite:///{path}")
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")

    with pytest.raises(StorageFailure, match="SQLITE_BUSY"):
        impatient.create_task("x", Profile())
    assert impatient.list_tasks() == []  # readers do not wait for a writer
    blocker.execute("ROLLBACK")
    blocker.close()
    assert impatient.create_task("x", Profile()).name == "x"
    impatient.close()


def test_a_full_disk_is_a_storage_failure_and_changes_nothing(registry: Registry) -> None:
    registry.create_task("x", Profile())
    with registry.database.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(StorageFailure, match="SQLITE_FULL"):
        registry.set_profile("x", Profile(description="x" * 9_000))
    assert registry.get_task("x").profile == Profile()


def test_a_file_that_is_no_database_is_a_storage_failure(path: Path) -> None:
    path.write_bytes(b"not a database" * 1000)

    with pytest.raises(StorageFailure) as refusal:
        Registry(f"sqlite:///{path}")
    assert str(path) not in str(refusal.value)


def test_a_deleted_database_takes_no_writes_and_is_not_made_anew(
    registry: Registry, path: Path
) -> None:
    registry.create_task("x", Profile())
    path.rename(path.with_name("elsewhere.db"))

    with pytest.raises(StorageFailure, match="deleted or replaced"):
        registry.create_task("y", Profile())
    with pytest.raises(StorageFailure, match="deleted or replaced"):
        registry.ping()
    assert registry.get_task("x").name == "x"  # the open connection still reads
    with registry.database.read(), pytest.raises(StorageFailure, match="deleted or replaced"):
        registry.get_task("x")  # a new one would make a new file
    assert not path.exists()

    path.with_name("elsewhere.db").rename(path)
    assert registry.create_task("y", Profile()).name == "y"


def test_a_write_to_a_file_that_is_deleted_meanwhile_is_not_acknowledged(
    registry: Registry, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = rows.create

    def create_and_lose(*args: Any) -> bool:
        path.unlink()
        return create(*args)

    monkeypatch.setattr(rows, "create", create_and_lose)
    with pytest.raises(StorageFailure, match="deleted or replaced"):
        registry.create_task("x", Profile())


def test_a_replaced_database_takes_no_writes(registry: Registry, path: Path) -> None:
    other = path.with_name("other.db")
    Registry(f"sqlite:///{other}").close()
    other.replace(path)

    with pytest.raises(StorageFailure, match="deleted or replaced"):
        registry.create_task("x", Profile())


@pytest.mark.parametrize("content", [None, b""])
def test_an_empty_database_is_not_taken_for_one_that_got_lost(
    path: Path, content: bytes | None
) -> None:
    for _ in range(2):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(StorageFailure, match="missing or empty"):
            Registry(f"sqlite:///{path}", may_create=False)
    Registry(f"sqlite:///{path}").close()
    Registry(f"sqlite:///{path}", may_create=False).close()


def test_a_version_that_cannot_be_written_leaves_no_task_behind(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("power")

    with monkeypatch.context() as patch:
        patch.setattr("prefix_store.registry.rows.set_active", fail)
        with pytest.raises(RuntimeError):
            registry.add_version("x", draft(), activate=True, create=True)

    assert registry.list_tasks() == []
    assert registry.add_version("x", draft(), activate=True, create=True).version == 1


def test_a_stored_profile_names_no_field_that_is_unset() -> None:
    """A server of an earlier version on the same registry refuses fields that it does not know."""
    profile = Profile(defaults=Defaults(min_p=0.1))

    assert json.loads(rows.profile_json(profile))["defaults"] == {"min_p": 0.1}
    assert Profile.model_validate_json(rows.profile_json(profile)) == profile


def test_a_stored_ranking_has_the_names_of_the_version_before() -> None:
    profile = Profile(defaults=Defaults(rank=Rank(texts=("a", "b"), by="mean")))

    stored = rows.profile_json(profile)

    assert json.loads(stored)["defaults"] == {"choices": ["a", "b"], "rank_by": "mean"}
    assert Profile.model_validate_json(stored) == profile
