from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch import zeros

from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.errors import QuotaExceeded, StoreFull
from prefix_store.manifest import Profile
from prefix_store.prefix import Prefix
from prefix_store.registry.quotas import Quotas
from prefix_store.registry.registry import Registry
from prefix_store.store import PrefixStore
from prefix_store.testing import draft

Open = Callable[..., Registry]


@pytest.fixture
def limited(database_url: str) -> Iterator[Open]:
    opened: list[Registry] = []

    def limited(**quotas: int) -> Registry:
        opened.append(Registry(database_url, quotas=Quotas(**quotas)))
        return opened[-1]

    yield limited
    for registry in opened:
        registry.close()


def add(registry: Registry, task: str, content: str = "x") -> int:
    return registry.add_version(task, draft(content), activate=False, create=True).version


def test_a_task_too_many_is_refused_by_either_door(limited: Open) -> None:
    registry = limited(max_tasks=2)
    add(registry, "a")
    registry.create_task("b", Profile())

    with pytest.raises(QuotaExceeded):
        registry.create_task("c", Profile())
    with pytest.raises(QuotaExceeded):
        add(registry, "c")
    assert [task.name for task in registry.list_tasks()] == ["a", "b"]
    assert add(registry, "a") == 2
    registry.delete_task("a")
    assert add(registry, "c") == 1


def test_a_version_too_many_is_refused_until_one_is_deleted(limited: Open) -> None:
    registry = limited(max_versions_per_task=2)
    for _ in range(2):
        add(registry, "a")

    with pytest.raises(QuotaExceeded):
        add(registry, "a")
    assert add(registry, "b") == 1
    registry.delete_version("a", 1)
    assert add(registry, "a") == 3  # the refused one took no number


def test_bytes_are_counted_once_for_each_artifact(limited: Open) -> None:
    registry = limited(max_store_bytes=10)
    for task, content in (("a", "12345"), ("b", "12345"), ("b", "67890")):
        add(registry, task, content)

    with pytest.raises(StoreFull):
        add(registry, "c", "!")
    with pytest.raises(StoreFull):
        registry.check_room(1)
    registry.check_room(0)
    registry.delete_version("b", 2)
    assert add(registry, "c", "!") == 1


def test_a_store_that_is_full_keeps_no_bytes(limited: Open, tmp_path: Path) -> None:
    registry = limited(max_store_bytes=10)
    blobs = FileBlobStore(tmp_path / "blobs")
    prefix = Prefix((zeros(1, 1, 1),), (zeros(1, 1, 1),), 1, "")

    with pytest.raises(StoreFull):
        PrefixStore(blobs, registry).put(prefix)
    assert list(blobs) == []


def test_threads_together_do_not_go_beyond(limited: Open) -> None:
    registry = limited(max_versions_per_task=5)

    def one(i: int) -> bool:
        try:
            add(registry, "a", str(i))
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(one, range(12))) == 5


def test_a_rehearsal_changes_nothing_and_is_refused_alike(limited: Open) -> None:
    registry = limited(max_versions_per_task=1)

    rehearsed = registry.add_version("a", draft(), activate=True, create=True, dry_run=True)
    assert (rehearsed.task, rehearsed.version) == ("a", 1)
    assert registry.list_tasks() == []
    add(registry, "a")
    with pytest.raises(QuotaExceeded):
        registry.add_version("a", draft(), activate=True, create=False, dry_run=True)
    assert (registry.history("a"), registry.get_task("a").num_versions) == ([], 1)
