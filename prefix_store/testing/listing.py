"""Contract of the list of tasks: searched, filtered, sorted, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import pytest

from prefix_store.errors import InvalidName
from prefix_store.manifest import Profile, Task
from prefix_store.registry.queries import Sort, cursor
from prefix_store.registry.registry import Registry
from prefix_store.testing.samples import draft


def names(tasks: Sequence[Task]) -> str:
    """Return the names, in one text."""
    return " ".join(task.name for task in tasks)


class ListingContract:
    """Contract of `list_tasks`. Needs the fixture `registry`, an empty registry."""

    @pytest.mark.parametrize("sort", get_args(Sort))
    def test_pages_of_every_order_follow_each_other(self, registry: Registry, sort: Sort) -> None:
        for name in ("b", "a", "d", "c", "e"):
            registry.create_task(name, Profile())
        for name in ("d", "a"):
            registry.set_profile(name, Profile(weight=2))
        orders = {"name": "abcde", "created": "badce", "updated": "bceda"}
        expected = orders[sort.removeprefix("-")][:: -1 if sort.startswith("-") else 1]

        found, after = "", None
        while page := registry.list_tasks(after, limit=2, sort=sort):
            found += "".join(task.name for task in page)
            after = cursor(page[-1], sort)

        assert found == expected

    def test_a_page_begins_where_the_last_one_ended_whatever_has_changed(
        self, registry: Registry
    ) -> None:
        for name in ("a", "b", "c", "d"):
            registry.create_task(name, Profile())
        after = cursor(registry.list_tasks(limit=2, sort="created")[-1], "created")
        registry.delete_task("b")
        registry.set_profile("a", Profile(weight=2))
        registry.create_task("e", Profile())

        assert names(registry.list_tasks(after, sort="created")) == "c d e"

    def test_tasks_are_found_by_name_and_description(self, registry: Registry) -> None:
        registry.create_task("refund_us", Profile())
        registry.create_task("billing", Profile(description='Refunds 100 % of "it", \\u0041'))
        registry.create_task("other", Profile(description="x\0y", template="refund {prompt}"))
        for search, found in {
            "REFUND": "billing refund_us",
            "100 %": "billing",
            "0%": "",
            "fund_u": "refund_us",
            "a_b": "",
            '"it"': "billing",
            "\\u0041": "billing",
            "A": "",
            "description": "",
        }.items():
            assert names(registry.list_tasks(search=search)) == found, search
        assert names(registry.list_tasks(search="refund", globs=("b*",))) == "billing"

    def test_tasks_are_found_by_what_is_active(self, registry: Registry) -> None:
        registry.create_task("idle", Profile())
        for name in ("one", "split"):
            registry.add_version(name, draft("1"), activate=True, create=True)
            registry.add_version(name, draft("2"), activate=False, create=False)
        registry.set_traffic("split", {1: 1, 2: 1})
        registry.add_version("gone", draft(), activate=True, create=True)
        registry.delete_task("gone")

        assert names(registry.list_tasks(state="active")) == "one split"
        assert names(registry.list_tasks(state="split")) == "split"
        assert names(registry.list_tasks(state="inactive")) == "idle"

    @pytest.mark.parametrize("after", ["a", "a@", "a@b", "a@2026-01-01", "@2026-01-01T00:00:00Z"])
    def test_a_cursor_of_another_order_is_refused(self, registry: Registry, after: str) -> None:
        with pytest.raises(InvalidName):
            registry.list_tasks(after, sort="created")
        if after != "a":
            with pytest.raises(InvalidName):
                registry.list_tasks(after)
