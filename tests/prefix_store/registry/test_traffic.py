"""Who gets which version: proportions, stickiness, and how little a change of weights moves."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from sqlalchemy.event import listen

from prefix_store.digest import Digest
from prefix_store.errors import (
    ActivationOvertaken,
    NothingActive,
    NothingToRollBack,
    UnknownTask,
    UnknownVersion,
    VersionActive,
    VersionQuarantined,
)
from prefix_store.manifest import Profile
from prefix_store.registry.audit import Actor
from prefix_store.registry.preconditions import Preconditions
from prefix_store.registry.registry import Registry
from prefix_store.registry.traffic import choose
from prefix_store.rollback import RollbackRule
from prefix_store.testing import draft

KEYS = [f"user {i}" for i in range(2000)]
WEIGHTS = st.dictionaries(st.integers(1, 50), st.integers(1, 1000), min_size=1, max_size=5)


def drawn(weights: dict[int, int], task: str = "x") -> list[int]:
    return [choose(weights, task, key) for key in KEYS]


@settings(max_examples=30, deadline=None)
@given(WEIGHTS)
def test_each_version_gets_its_part(weights: dict[int, int]) -> None:
    found = drawn(weights)

    for version, weight in weights.items():
        part = weight / sum(weights.values())
        allowed = 5 * (part * (1 - part) / len(KEYS)) ** 0.5  # five standard deviations
        assert found.count(version) / len(KEYS) == pytest.approx(part, abs=allowed + 1e-9)


@settings(max_examples=50)
@given(WEIGHTS, st.text(), st.integers(2, 9))
def test_a_key_sticks(weights: dict[int, int], key: str, factor: int) -> None:
    """Whatever the order of the weights, and whatever their scale."""
    backwards = {version: factor * weights[version] for version in sorted(weights, reverse=True)}

    assert choose(weights, "x", key) == choose(backwards, "x", key)


@settings(max_examples=30, deadline=None)
@given(WEIGHTS, st.integers(1, 50), st.integers(1, 1000))
def test_keys_move_to_the_version_that_gets_more_and_nowhere_else(
    weights: dict[int, int], version: int, more: int
) -> None:
    before = drawn(weights)
    after = drawn(weights | {version: weights.get(version, 0) + more})

    assert {b for a, b in zip(before, after, strict=True) if a != b} <= {version}


def test_from_one_percent_to_ten_moves_nine_percent_of_the_keys() -> None:
    before, after = drawn({3: 99, 4: 1}), drawn({3: 90, 4: 10})

    moved = sum(a != b for a, b in zip(before, after, strict=True)) / len(KEYS)
    assert moved == pytest.approx(0.09, abs=0.02)


def test_tasks_are_drawn_independently() -> None:
    x, y = drawn({1: 1, 2: 1}, "x"), drawn({1: 1, 2: 1}, "y")

    assert sum(a == b for a, b in zip(x, y, strict=True)) / len(KEYS) == pytest.approx(
        0.5, abs=0.06
    )


# --- as the registry keeps it ---


@pytest.fixture
def split(registry: Registry) -> Registry:
    """A task with the versions 1 to 4, 3 of them active one after the other; 3 is active."""
    for content in "1234":
        registry.add_version("x", draft(content), activate=content != "4", create=True)
    return registry


def answering(registry: Registry, num_keys: int = 300) -> set[int]:
    return {registry.resolve("x", None, str(key)).version for key in range(num_keys)}


def test_versions_share_the_traffic_until_it_is_taken_back(split: Registry) -> None:
    made = split.set_traffic("x", {3: 1, 4: 1}, by=Actor("me"))

    assert (made.action, made.version, made.weights, made.by) == ("traffic", 3, {3: 1, 4: 1}, "me")
    assert split.history("x")[0] == made
    assert split.traffic("x") == {3: 1, 4: 1}
    assert split.get_task("x").active_version == 3
    assert answering(split) == {3, 4}
    assert split.resolve("x", 1, "any").version == 1
    assert [split.resolve("x", None, "k").version for _ in range(5)] == (
        [choose({3: 1, 4: 1}, "x", "k")] * 5
    )
    split.set_traffic("x", {})
    assert (answering(split), split.traffic("x")) == ({3}, None)
    assert split.set_traffic("x", {}) == split.history("x")[0]


def test_one_version_may_get_all_of_it_without_being_active(split: Registry) -> None:
    split.set_traffic("x", {4: 7})

    assert answering(split) == {4}
    assert split.get_task("x").active_version == 3


@pytest.mark.parametrize("promoted", [3, 4])
def test_a_promotion_ends_the_split(split: Registry, promoted: int) -> None:
    split.set_traffic("x", {3: 1, 4: 1})

    assert split.activate("x", promoted).version == promoted
    assert (answering(split), split.traffic("x")) == ({promoted}, None)
    assert split.rollback("x").version == (2 if promoted == 3 else 3)
    assert split.traffic("x") is None


def test_a_rollback_takes_the_split_back_first(split: Registry) -> None:
    split.set_traffic("x", {3: 1, 4: 1})
    split.set_traffic("x", {3: 1, 4: 3})

    assert [split.rollback("x").version for _ in range(3)] == [3, 2, 1]
    assert answering(split) == {1}
    with pytest.raises(NothingToRollBack):
        split.rollback("x")


def test_a_version_that_gets_traffic_is_not_deleted(split: Registry) -> None:
    split.set_traffic("x", {3: 1, 4: 1})

    with pytest.raises(VersionActive):
        split.delete_version("x", 4)
    split.rollback("x")
    split.delete_version("x", 4)
    assert answering(split) == {3}


def test_a_split_names_versions_that_are_there(split: Registry) -> None:
    split.delete_version("x", 1)
    split.add_version("y", draft("1"), activate=False, create=True)

    for number in (1, 5, 2**40):
        with pytest.raises(UnknownVersion):
            split.set_traffic("x", {3: 1, number: 1})
    with pytest.raises(NothingActive):
        split.set_traffic("y", {1: 1})
    for call in (split.traffic, lambda task: split.set_traffic(task, {})):
        with pytest.raises(UnknownTask):
            call("z")
    assert (split.traffic("x"), split.traffic("y")) == (None, None)


def test_a_task_made_anew_has_no_split(split: Registry) -> None:
    split.set_traffic("x", {3: 1, 4: 1})
    split.delete_task("x")
    split.add_version("x", draft("5"), activate=True, create=True)

    assert (split.traffic("x"), answering(split)) == (None, {5})


def test_pins_are_written_down(split: Registry) -> None:
    split.set_pinned("x", 2, pinned=True)
    split.set_pinned("x", 4, pinned=True)
    split.set_pinned("x", 4, pinned=False)

    assert {(task, number) for task, number, _ in split.pinned()} == {("x", 2)}
    split.delete_version("x", 2)
    assert split.pinned() == set()
    with pytest.raises(UnknownVersion):
        split.set_pinned("x", 2, pinned=True)


def test_a_request_costs_one_query_however_the_traffic_is_split(split: Registry) -> None:
    split.set_traffic("x", {2: 1, 3: 1, 4: 1})
    statements: list[str] = []
    listen(split.database.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

    for version in (None, 1):
        split.resolve("x", version, "key")

    assert len(statements) == 2


# --- splits with a rule ---

RULE = RollbackRule(error_rate_above=0.5)


def expecting(registry: Registry) -> Preconditions:
    return Preconditions(expected_activation=registry.current_activation("x"))


def test_a_rule_is_stored_with_its_split(split: Registry) -> None:
    assert split.guarded_splits() == []
    made = split.set_traffic("x", {3: 1, 4: 1}, rollback_if=RULE)
    assert made.rollback_if == RULE
    assert split.history("x")[0] == made
    assert split.guarded_splits() == [("x", made)]

    split.set_traffic("x", {3: 1, 4: 2})
    assert split.guarded_splits() == []
    split.set_traffic("x", {3: 1, 4: 2}, rollback_if=RULE)
    split.delete_task("x")
    assert split.guarded_splits() == []


def test_a_split_ends_for_a_reason_and_only_once(split: Registry) -> None:
    split.set_traffic("x", {3: 1, 4: 1}, rollback_if=RULE)
    seen = expecting(split)
    made = split.end_split("x", "golden", "v4: wrong", seen)

    assert (made.action, made.version, made.reason) == ("rollback", 3, "v4: wrong")
    assert (split.traffic("x"), answering(split)) == (None, {3})
    with pytest.raises(ActivationOvertaken):
        split.end_split("x", "golden", "v4: wrong", seen)
    assert split.history("x")[0] == made
    assert split.rollback("x").version == 2  # as if there had been no split


def test_a_split_does_not_end_on_a_corrupt_version(split: Registry) -> None:
    split.set_traffic("x", {3: 1, 4: 1}, rollback_if=RULE)
    corrupt = Digest(split.get_version("x", 3).digest)

    with pytest.raises(VersionQuarantined):
        split.end_split("x", "golden", "v4: wrong", expecting(split), {corrupt})
    assert split.traffic("x") == {3: 1, 4: 1}


# --- what is served, for series of metrics ---


def test_activations_are_found_from_the_last_one_on(split: Registry) -> None:
    split.add_version("y", draft("5"), activate=True, create=True)
    first, second = split.activated_since(0, 10)
    assert (first.task, first.versions, first.is_split) == ("x", (3,), False)
    assert (second.task, second.versions) == ("y", (1,))
    assert split.activated_since(0, 1) == [second]
    assert split.activated_since(second.seq, 10) == []

    split.set_traffic("x", {3: 1, 4: 1})
    [found] = split.activated_since(second.seq, 10)
    assert (found.task, found.versions, found.is_split) == ("x", (3, 4), True)
    split.delete_task("x")
    assert split.activated_since(0, 10) == [second]


def test_what_exists_is_found_among_many_names(split: Registry) -> None:
    split.create_task("empty", Profile())
    split.add_version("gone", draft("6"), activate=True, create=True)
    split.delete_task("gone")
    split.delete_version("x", 1)

    names = ["x", "empty", "gone", *(f"never-{number}" for number in range(1200))]
    assert split.alive(names) == {"x": {2, 3, 4}, "empty": set()}
    assert split.alive([]) == {}
