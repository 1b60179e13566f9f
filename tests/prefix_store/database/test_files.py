"""Files of the registry deleted or replaced while it is open: nothing acknowledged is lost."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefix_store.database.files import DatabaseFiles
from prefix_store.errors import StorageFailure
from prefix_store.manifest import Profile
from prefix_store.registry.registry import Registry
from tests.sqlite import new_sqlite

OTHER = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("CREATE TABLE of_another_process (x)")
os._exit(0)  # leaves its write-ahead log behind, as a killed process does
"""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry with two tasks, which are in its write-ahead log only."""
    registry = Registry(new_sqlite(tmp_path))
    registry.create_task("first", Profile())
    registry.create_task("second", Profile())
    yield registry
    registry.close()


def delete(folder: Path, *suffixes: str) -> None:
    for suffix in suffixes:
        (folder / f"registry.db{suffix}").unlink()


def tasks_in(path: Path, copy: Path) -> list[str]:
    """What a server finds that starts with this file alone."""
    shutil.copy(path, copy)
    with sqlite3.connect(copy) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    registry = Registry(f"sqlite:///{copy}", may_create=False)
    names = [task.name for task in registry.list_tasks()]
    registry.close()
    return names


@pytest.mark.parametrize("suffixes", [("-wal", "-shm"), ("-wal",), ("-shm",)])
def test_a_deleted_log_is_saved_into_the_database(
    registry: Registry,
    tmp_path: Path,
    suffixes: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    delete(tmp_path, *suffixes)

    for name in ("third", "fourth"):
        with pytest.raises(StorageFailure, match=r"saved in registry\.db: restart"):
            registry.create_task(name, Profile())

    assert tasks_in(tmp_path / "registry.db", tmp_path / "copy.db") == ["first", "second"]
    assert [task.name for task in registry.list_tasks()] == ["first", "second"]
    assert len(caplog.records) == 1


def test_the_health_check_saves_it_too(registry: Registry, tmp_path: Path) -> None:
    delete(tmp_path, "-wal", "-shm")

    with pytest.raises(StorageFailure, match="saved"):
        registry.check()

    assert tasks_in(tmp_path / "registry.db", tmp_path / "copy.db") == ["first", "second"]


def test_a_log_deleted_during_a_change_fails_that_change(
    registry: Registry, tmp_path: Path
) -> None:
    def change() -> None:
        with registry.database.write() as connection:
            connection.exec_driver_sql("UPDATE tasks SET revision = 7")
            delete(tmp_path, "-wal", "-shm")

    with pytest.raises(StorageFailure, match="saved"):
        change()

    assert tasks_in(tmp_path / "registry.db", tmp_path / "copy.db") == ["first", "second"]


def test_a_deleted_database_is_copied(registry: Registry, tmp_path: Path) -> None:
    delete(tmp_path, "", "-wal", "-shm")

    for _ in range(2):
        with pytest.raises(StorageFailure, match=r"saved in registry\.rescued-1\.db: stop"):
            registry.create_task("third", Profile())

    (tmp_path / "registry.rescued-1.db").rename(tmp_path / "registry.db")  # as the message says
    assert tasks_in(tmp_path / "registry.db", tmp_path / "copy.db") == ["first", "second"]
    assert list(tmp_path.glob("registry.rescued*")) == []


def test_what_another_process_wrote_meanwhile_is_left_as_it_is(
    registry: Registry, tmp_path: Path
) -> None:
    delete(tmp_path, "-wal", "-shm")
    command = [sys.executable, "-c", OTHER, str(tmp_path / "registry.db")]
    subprocess.run(command, check=True, timeout=60)
    files = [(tmp_path / f"registry.db{suffix}").read_bytes() for suffix in ("", "-wal")]

    with pytest.raises(StorageFailure, match=r"saved in registry\.rescued-1\.db"):
        registry.create_task("third", Profile())

    assert [(tmp_path / f"registry.db{suffix}").read_bytes() for suffix in ("", "-wal")] == files
    copied = tasks_in(tmp_path / "registry.rescued-1.db", tmp_path / "copy.db")
    assert copied == ["first", "second"]


def test_files_that_are_put_back_are_used_again(registry: Registry, tmp_path: Path) -> None:
    names = [path.name for path in tmp_path.glob("registry.db*")]
    for name in names:
        (tmp_path / name).rename(tmp_path / f"away.{name}")
    with pytest.raises(StorageFailure):
        registry.create_task("third", Profile())
    for name in names:
        (tmp_path / f"away.{name}").rename(tmp_path / name)

    registry.create_task("third", Profile())

    assert {task.name for task in registry.list_tasks()} == {"first", "second", "third"}


def test_what_cannot_be_saved_is_tried_again(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: DatabaseFiles) -> str:
        raise OSError(28, "No space left on device")

    delete(tmp_path, "")
    with monkeypatch.context() as patched:
        patched.setattr(DatabaseFiles, "_copy", full)
        with pytest.raises(StorageFailure, match="restore it, or restart"):
            registry.check()

    with pytest.raises(StorageFailure, match="saved"):
        registry.check()
