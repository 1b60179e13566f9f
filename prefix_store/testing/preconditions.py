from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from prefix_store.digest import Digest
from prefix_store.errors import (
    IdempotencyMismatch,
    PreconditionFailed,
    RequestInProgress,
    VersionActive,
)
from prefix_store.manifest import Profile
from prefix_store.registry.preconditions import IdempotentRequest, Preconditions
from prefix_store.registry.registry import Registry
from prefix_store.testing.samples import draft


class PreconditionContract:
    """Contract of revisions and idempotent requests. Needs the fixture `registry`, an empty one."""

    def test_every_change_of_a_task_gives_it_another_revision(self, registry: Registry) -> None:
        seen = [registry.create_task("x", Profile()).revision]
        for change in (
            lambda: registry.set_profile("x", Profile(chat=True)),
            lambda: registry.add_version("x", draft("1"), activate=True, create=False),
            lambda: registry.add_version("x", draft("2"), activate=False, create=False),
            lambda: registry.activate("x", 2),
            lambda: registry.rollback("x"),
            lambda: registry.delete_version("x", 2),
        ):
            change()
            seen.append(registry.get_task("x").revision)
        registry.delete_task("x")
        seen.append(registry.create_task("x", Profile()).revision)

        assert seen == sorted(set(seen))

    def test_a_change_for_another_state_is_refused(self, registry: Registry) -> None:
        registry.add_version("x", draft("1"), activate=True, create=True)
        registry.add_version("x", draft("2"), activate=False, create=False)
        old = Preconditions(frozenset({registry.get_task("x").revision}))
        registry.activate("x", 2, preconditions=old)
        before = registry.get_task("x")

        for change in (
            lambda: registry.set_profile("x", Profile(chat=True), old),
            lambda: registry.add_version(
                "x", draft(), activate=True, create=True, preconditions=old
            ),
            lambda: registry.activate("x", 1, preconditions=old),
            lambda: registry.rollback("x", preconditions=old),
            lambda: registry.delete_version("x", 1, old),
            lambda: registry.delete_task("x", old),
        ):
            with pytest.raises(PreconditionFailed):
                change()
        assert registry.get_task("x") == before

    def test_of_two_changes_of_one_state_one_is_made(self, registry: Registry) -> None:
        preconditions = Preconditions(frozenset({registry.create_task("x", Profile()).revision}))

        def push(i: int) -> bool:
            try:
                registry.add_version(
                    "x", draft(str(i)), activate=True, create=False, preconditions=preconditions
                )
            except PreconditionFailed:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(push, range(16))) == 1
        assert registry.get_task("x").num_versions == 1

    def test_an_answer_is_kept_with_the_change(self, registry: Registry) -> None:
        request = IdempotentRequest(
            "push", "x", "key", Digest.of(b"asked"), answer=lambda m: f"v{m.version}"
        )
        assert registry.answer(request) is None
        registry.add_version(
            "x",
            draft(),
            activate=True,
            create=True,
            preconditions=Preconditions(idempotent=request),
        )

        assert registry.answer(request) == "v1"
        for other in (
            replace(request, route="other"),
            replace(request, task="other"),
            replace(request, key="other"),
            replace(request, principal="other"),
        ):
            assert registry.answer(other) is None
        with pytest.raises(IdempotencyMismatch):
            registry.answer(replace(request, request_digest=Digest.of(b"other")))

    def test_a_change_that_was_answered_is_not_made_again(self, registry: Registry) -> None:
        preconditions = Preconditions(
            idempotent=IdempotentRequest("push", "x", "key", Digest.of(b"asked"), answer=str)
        )

        def push(i: int) -> bool:
            try:
                registry.add_version(
                    "x", draft(str(i)), activate=True, create=True, preconditions=preconditions
                )
            except RequestInProgress:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(push, range(16))) == 1
        assert registry.get_task("x").num_versions == 1

    def test_a_change_that_is_refused_leaves_no_answer(self, registry: Registry) -> None:
        request = IdempotentRequest("delete", "x", "key", Digest.of(b"asked"), answer=str)
        registry.add_version("x", draft(), activate=True, create=True)

        with pytest.raises(VersionActive):
            registry.delete_version("x", 1, Preconditions(idempotent=request))
        assert registry.answer(request) is None

    def test_old_answers_are_forgotten(self, registry: Registry) -> None:
        request = IdempotentRequest("push", "x", "key", Digest.of(b"asked"), answer=str)
        registry.add_version(
            "x",
            draft(),
            activate=True,
            create=True,
            preconditions=Preconditions(idempotent=request),
        )

        assert registry.forget_answers(older_than_s=60) == 0
        assert registry.forget_answers(older_than_s=0) == 1
        assert registry.answer(request) is None
