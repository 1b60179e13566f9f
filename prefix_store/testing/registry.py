from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from prefix_store.digest import Digest
from prefix_store.errors import (
    InvalidName,
    NothingActive,
    NothingToRollBack,
    TaskExists,
    UnknownTask,
    UnknownVersion,
    VersionActive,
    VersionQuarantined,
)
from prefix_store.manifest import Profile
from prefix_store.registry.audit import Actor
from prefix_store.registry.registry import Registry
from prefix_store.testing.definitions import DefinitionContract
from prefix_store.testing.listing import ListingContract
from prefix_store.testing.preconditions import PreconditionContract
from prefix_store.testing.samples import HOSTILE_NAMES, draft


class RegistryContract(PreconditionContract, DefinitionContract, ListingContract):
    """Contract of a registry. Needs the fixture `registry`, an empty registry."""

    def test_a_new_task_is_empty(self, registry: Registry) -> None:
        task = registry.create_task("x", Profile(description="short"))

        assert registry.get_task("x") == task
        assert (task.active_version, task.num_versions) == (None, 0)
        assert task.profile.description == "short"
        assert task.created_at.tzinfo == UTC
        assert abs(datetime.now(UTC) - task.created_at).total_seconds() < 60

    def test_a_task_is_created_once(self, registry: Registry) -> None:
        registry.create_task("x", Profile())

        with pytest.raises(TaskExists):
            registry.create_task("x", Profile())

    @pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
    def test_a_hostile_name_is_invalid_to_write_and_unknown_to_read(
        self, registry: Registry, name: str
    ) -> None:
        with pytest.raises(InvalidName):
            registry.create_task(name, Profile())
        with pytest.raises(InvalidName):
            registry.add_version(name, draft(), activate=True, create=True)
        for read in (registry.resolve, registry.get_task, registry.history, registry.delete_task):
            with pytest.raises(UnknownTask):
                read(name)

    def test_a_profile_is_replaced(self, registry: Registry) -> None:
        before = registry.create_task("x", Profile())
        after = registry.set_profile("x", Profile(template="Q: {prompt}"))

        assert registry.get_task("x") == after
        assert after.profile.template == "Q: {prompt}"
        assert after.updated_at > before.updated_at
        with pytest.raises(UnknownTask):
            registry.set_profile("y", Profile())

    def test_tasks_are_listed_page_by_page(self, registry: Registry) -> None:
        for name in ("b", "a", "d", "c"):
            registry.create_task(name, Profile())
        registry.delete_task("c")

        assert [task.name for task in registry.list_tasks()] == ["a", "b", "d"]
        assert [task.name for task in registry.list_tasks(limit=2)] == ["a", "b"]
        assert [task.name for task in registry.list_tasks("b", limit=2)] == ["d"]

    def test_versions_count_from_one(self, registry: Registry) -> None:
        first = registry.add_version("x", draft("1"), activate=False, create=True, by=Actor("me"))
        second = registry.add_version("x", draft("2"), activate=False, create=False)

        assert (first.version, second.version) == (1, 2)
        assert (first.task, first.created_by, first.digest) == ("x", "me", draft("1").digest)
        assert registry.list_versions("x") == [first, second]
        assert registry.get_version("x", 2) == registry.resolve("x", 2) == second
        assert registry.get_task("x").num_versions == 2

    def test_a_version_of_an_unknown_task_needs_create(self, registry: Registry) -> None:
        with pytest.raises(UnknownTask):
            registry.add_version("x", draft(), activate=True, create=False)

        assert registry.list_tasks() == []

    def test_resolve_says_what_is_missing(self, registry: Registry) -> None:
        registry.add_version("x", draft(), activate=False, create=True)

        with pytest.raises(UnknownTask):
            registry.resolve("y")
        with pytest.raises(NothingActive):
            registry.resolve("x")
        for number in (-1, 0, 2, 2**31, 2**64, 10**30):
            with pytest.raises(UnknownVersion):
                registry.resolve("x", number)

    def test_activation_moves_the_pointer(self, registry: Registry) -> None:
        for content in "12":
            registry.add_version("x", draft(content), activate=True, create=True)
        activation = registry.activate("x", 1, by=Actor("me"))

        assert registry.resolve("x").version == registry.get_task("x").active_version == 1
        assert (activation.version, activation.action, activation.by) == (1, "activate", "me")
        assert [line.version for line in registry.history("x")] == [1, 2, 1]
        assert registry.history("x", limit=1) == [activation]

    def test_activating_the_active_version_changes_nothing(self, registry: Registry) -> None:
        registry.add_version("x", draft(), activate=True, create=True)

        assert registry.activate("x", 1) == registry.history("x")[0]
        assert len(registry.history("x")) == 1

    def test_an_unknown_version_is_not_activated(self, registry: Registry) -> None:
        registry.add_version("x", draft(), activate=True, create=True)

        for number in (0, 2, 2**70):
            with pytest.raises(UnknownVersion):
                registry.activate("x", number)
        assert registry.resolve("x").version == 1

    def test_rollbacks_walk_back_and_stop_at_the_first(self, registry: Registry) -> None:
        for content in "123":
            registry.add_version("x", draft(content), activate=True, create=True)

        assert registry.rollback("x").version == 2
        assert registry.rollback("x", by=Actor("me")).version == 1
        with pytest.raises(NothingToRollBack):
            registry.rollback("x")
        assert registry.resolve("x").version == 1
        assert [(line.version, line.action) for line in registry.history("x")] == [
            (1, "rollback"), (2, "rollback"), (3, "activate"), (2, "activate"), (1, "activate"),
        ]  # fmt: skip

    def test_a_rollback_after_an_activation_after_a_rollback(self, registry: Registry) -> None:
        for content in "123":
            registry.add_version("x", draft(content), activate=True, create=True)
        registry.rollback("x")
        registry.activate("x", 3)

        assert [registry.rollback("x").version for _ in range(2)] == [2, 1]

    def test_a_rollback_skips_deleted_versions(self, registry: Registry) -> None:
        for content in "123":
            registry.add_version("x", draft(content), activate=True, create=True)
        registry.delete_version("x", 2)

        assert registry.rollback("x").version == 1

    def test_a_rollback_goes_to_another_version(self, registry: Registry) -> None:
        for content in "12":
            registry.add_version("x", draft(content), activate=True, create=True)
        registry.activate("x", 1)
        registry.delete_version("x", 2)

        with pytest.raises(NothingToRollBack):
            registry.rollback("x")

    def test_the_active_version_is_not_deleted(self, registry: Registry) -> None:
        registry.add_version("x", draft(), activate=True, create=True)

        with pytest.raises(VersionActive):
            registry.delete_version("x", 1)
        assert registry.resolve("x").version == 1

    def test_a_deleted_version_is_gone_and_its_number_with_it(self, registry: Registry) -> None:
        for content in "12":
            registry.add_version("x", draft(content), activate=False, create=True)
        registry.delete_version("x", 2)

        for refused in (registry.resolve, registry.activate, registry.delete_version):
            with pytest.raises(UnknownVersion):
                refused("x", 2)
        assert registry.add_version("x", draft("3"), activate=False, create=False).version == 3
        assert [manifest.version for manifest in registry.list_versions("x")] == [1, 3]

    def test_a_task_made_anew_starts_empty_and_counts_on(self, registry: Registry) -> None:
        registry.create_task("x", Profile(description="old"))
        registry.add_version("x", draft("1"), activate=True, create=False)
        registry.delete_task("x")
        for read in (registry.resolve, registry.get_task, registry.list_versions):
            with pytest.raises(UnknownTask):
                read("x")
        task = registry.create_task("x", Profile())

        assert (task.active_version, task.num_versions, task.profile) == (None, 0, Profile())
        assert registry.history("x") == []
        with pytest.raises(NothingToRollBack):
            registry.rollback("x")
        assert registry.add_version("x", draft("2"), activate=True, create=False).version == 2
        assert [line.version for line in registry.history("x")] == [2]

    def test_digests_are_those_of_living_versions(self, registry: Registry) -> None:
        for content in "123":
            registry.add_version("x", draft(content), activate=False, create=True)
        registry.add_version("y", draft("3"), activate=False, create=True)
        registry.delete_version("x", 1)
        registry.delete_task("y")

        assert registry.digests() == {Digest.of(b"2"), Digest.of(b"3")}
        assert registry.digests(deleted_within_s=60) == {Digest.of(c) for c in (b"1", b"2", b"3")}

    def test_threads_adding_versions_get_numbers_without_a_gap(self, registry: Registry) -> None:
        def push(i: int) -> int:
            return registry.add_version("x", draft(str(i)), activate=True, create=True).version

        with ThreadPoolExecutor(16) as pool:
            numbers = sorted(pool.map(push, range(16)))

        assert numbers == list(range(1, 17))
        assert registry.resolve("x").version == registry.history("x")[0].version == 16

    def test_a_version_of_an_unusable_blob_is_not_made_active(self, registry: Registry) -> None:
        for content in "123":
            registry.add_version("x", draft(content), activate=True, create=True)
        unusable = {Digest.of(b"2")}

        with pytest.raises(VersionQuarantined):
            registry.activate("x", 2, unusable=unusable)
        with pytest.raises(VersionQuarantined):  # and no other one instead
            registry.rollback("x", unusable=unusable)
        assert registry.resolve("x").version == 3
        assert registry.activate("x", 1, unusable=unusable).version == 1

    def test_ping(self, registry: Registry) -> None:
        registry.ping()
