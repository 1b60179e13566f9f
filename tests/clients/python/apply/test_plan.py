"""The plan as a pure function: carried out on a model of a server, it gives what was wanted, and
after that there is nothing left to plan."""

from __future__ import annotations

from dataclasses import replace

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreword_client.apply.changes import (
    ActualTask,
    Define,
    Delete,
    Redefine,
    Refuse,
    Split,
    Upload,
    WantedTask,
    WantedVersion,
)
from foreword_client.apply.files import InvalidFileError
from foreword_client.apply.models import Defaults, Definition, Limits, RollbackRule, Settings
from foreword_client.apply.plan import plan
from tests.clients.python.apply.model_server import Stored, Wish, carry_out, wanted

DEFINITIONS = (
    Definition(),
    Definition(template="Q: {prompt}"),
    Definition(chat=True, defaults=Defaults(max_tokens=7, stop=["\n"])),
)
SETTINGS = (
    Settings(),
    Settings(description="d", limits=Limits(max_tokens=9)),
    Settings(weight=2.0, limits=Limits(max_concurrency=1)),
)
RULES = (None, RollbackRule(golden_fails=True), RollbackRule(error_rate_above=0.1))
CONTENTS = ("a", "b", "c")


def check_is_as_wanted(task: Stored, wishes: list[Wish], settings: Settings) -> None:
    assert task.settings == settings
    assert task.active is not None
    first = wishes[0]
    assert task.versions[task.active] == (first.content, first.definition)
    shares = task.weights or {task.active: 1}
    served = [(*task.versions[number], weight) for number, weight in shares.items()]
    split = [wish for wish in wishes if wish.traffic]
    one = split == [first]
    expected = [(w.content, w.definition, 1 if one else w.traffic) for w in split]
    assert sorted(served, key=repr) == sorted(expected, key=repr)
    pinned = [task.versions[number] for number in task.pinned]
    kept = [(w.content, w.definition) for w in wishes if w.pinned]
    assert sorted(pinned, key=repr) == sorted(kept, key=repr)


definitions = st.sampled_from(DEFINITIONS)
versions = st.builds(Wish, st.sampled_from(CONTENTS), definitions, st.integers(0, 3), st.booleans())


@st.composite
def lists_of_wishes(draw: st.DrawFn) -> list[Wish]:
    drawn = draw(
        st.lists(versions, min_size=1, max_size=3, unique_by=lambda w: (w.content, repr(w)[:60]))
    )
    unique = {(w.content, repr(w.definition)): w for w in drawn}
    wishes = list(unique.values())
    if not any(wish.traffic for wish in wishes):
        wishes[0] = replace(wishes[0], traffic=1)
    return wishes


@st.composite
def stored_tasks(draw: st.DrawFn) -> Stored:
    """Any state that the server can be in, also one without a version."""
    task = Stored("x", settings=draw(st.sampled_from(SETTINGS)))
    pairs = draw(st.lists(st.tuples(st.sampled_from(CONTENTS), definitions), max_size=4))
    for content, definition in pairs:
        task.add(content, definition, activate=True)
    numbers = list(task.versions)
    if not numbers or draw(st.booleans()):
        return task
    task.activate(draw(st.sampled_from(numbers)))
    task.pinned = draw(st.sets(st.sampled_from(numbers)))
    weights = draw(st.dictionaries(st.sampled_from(numbers), st.integers(1, 3), max_size=3))
    task.weights = weights or None
    task.rule = draw(st.sampled_from(RULES)) if weights else None
    return task


@hypothesis.settings(deadline=None)
@given(
    st.one_of(st.none(), stored_tasks()),
    lists_of_wishes(),
    st.sampled_from(SETTINGS),
    st.sampled_from(RULES),
)
def test_a_plan_leads_to_what_is_wanted_and_then_there_is_none(
    stored: Stored | None, wishes: list[Wish], settings: Settings, rule: RollbackRule | None
) -> None:
    actual = {} if stored is None else {"x": stored.actual()}

    for change in plan([wanted(wishes, settings, stored, rule)], actual):
        assert change.action == ("create" if stored is None else "change")
        stored = carry_out(change, stored, wishes)

    assert stored is not None
    check_is_as_wanted(stored, wishes, settings)
    assert stored.rule == (rule if stored.weights else None)
    assert plan([wanted(wishes, settings, stored, rule)], {"x": stored.actual()}) == []


@hypothesis.settings(deadline=None)
@given(stored_tasks(), lists_of_wishes(), st.integers(0, 8))
def test_a_plan_that_was_cut_short_is_completed_by_the_next(
    stored: Stored, wishes: list[Wish], num_steps: int
) -> None:
    settings = SETTINGS[1]
    for change in plan([wanted(wishes, settings, stored)], {"x": stored.actual()}):
        carry_out(replace(change, steps=change.steps[:num_steps]), stored, wishes)

    for change in plan([wanted(wishes, settings, stored)], {"x": stored.actual()}):
        carry_out(change, stored, wishes)

    check_is_as_wanted(stored, wishes, settings)


@hypothesis.settings(deadline=None)
@given(stored_tasks(), lists_of_wishes())
def test_a_version_is_made_only_where_none_is_as_wanted(stored: Stored, wishes: list[Wish]) -> None:
    pairs = list(stored.versions.values())

    [*changes] = plan([wanted(wishes, SETTINGS[0], stored)], {"x": stored.actual()})

    steps = [step for change in changes for step in change.steps]
    made = {step.index for step in steps if isinstance(step, Upload | Redefine)}
    assert made == {
        index for index, w in enumerate(wishes) if (w.content, w.definition) not in pairs
    }
    uploaded = {wishes[step.index].content for step in steps if isinstance(step, Upload)}
    assert uploaded.isdisjoint(content for content, _ in pairs)


def test_the_active_version_stays_active_among_equal_ones() -> None:
    task = Stored("x")
    for _ in range(3):
        task.add("a", DEFINITIONS[1], activate=True)
    task.activate(2)

    assert plan([wanted([Wish("a", DEFINITIONS[1], 1, False)], SETTINGS[0], task)],
                {"x": task.actual()}) == []  # fmt: skip


def test_a_version_in_use_is_preferred_among_equal_ones() -> None:
    """Or a pin would move to the newest one as soon as another version is active."""
    task = Stored("x")
    for content in "abb":
        task.add(content, DEFINITIONS[0], activate=True)
    task.activate(2)
    wishes = [Wish("a", DEFINITIONS[0], 1, False), Wish("b", DEFINITIONS[0], 0, True)]

    for change in plan([wanted(wishes, SETTINGS[0], task)], {"x": task.actual()}):
        carry_out(change, task, wishes)

    assert task.pinned == {2}
    assert plan([wanted(wishes, SETTINGS[0], task)], {"x": task.actual()}) == []


def test_a_digest_that_no_version_has_is_refused() -> None:
    task = Stored("x")
    missing = WantedVersion("sha256:12", "t.yaml: tasks.x.prefix", Definition(), can_upload=False)

    with pytest.raises(InvalidFileError, match=r"t\.yaml: tasks\.x\.prefix: no version"):
        plan([WantedTask("x", Settings(), (missing,))], {"x": task.actual()})


def test_a_version_that_is_named_twice_is_refused() -> None:
    task = Stored("x")
    task.add("a", Definition(), activate=True)
    held = frozenset((1,))
    twice = tuple(WantedVersion("a", f"versions.{i}", Definition(), held) for i in range(2))

    with pytest.raises(InvalidFileError, match="this is version 1"):
        plan([WantedTask("x", Settings(), twice)], {"x": task.actual()})


def test_a_split_that_its_rule_has_ended_is_not_started_again() -> None:
    task = Stored("x")
    for content in "ba":
        task.add(content, Definition(), activate=True)
    wishes = [Wish("a", Definition(), 9, False), Wish("b", Definition(), 1, False)]
    ended = {"x": replace(task.actual(), rollback_reason="too many errors")}

    [again] = plan([wanted(wishes, Settings(), task)], ended)
    without = plan([wanted(wishes[:1], Settings(), task)], ended)
    [better] = plan(
        [wanted([wishes[0], Wish("c", Definition(), 1, False)], Settings(), task)], ended
    )

    assert again.steps == (Refuse("its split was ended by its rule: too many errors"),)
    assert without == []
    assert [type(step) for step in better.steps] == [Upload, Split]


def test_tasks_are_deleted_last() -> None:
    old = ActualTask("a", revision=4)
    new = WantedTask("b", Settings(description="new"))

    changes = plan([new], {}, [old])

    assert [(change.task, change.action, change.revision) for change in changes] == [
        ("b", "create", None),
        ("a", "delete", 4),
    ]
    assert changes[1].steps == (Delete(),)


def test_a_task_without_versions_gets_its_definition_in_its_profile() -> None:
    task = Stored("x")
    asked = WantedTask("x", Settings(), definition=DEFINITIONS[1])

    [change] = plan([asked], {"x": task.actual()})

    assert change.steps == (Define(Settings(), DEFINITIONS[1]),)


def test_a_plan_says_what_it_changes() -> None:
    task = Stored("x", settings=Settings(weight=1.0, limits=Limits(max_tokens=3)))
    task.add("a", DEFINITIONS[1], activate=True)
    wishes = [Wish("a", DEFINITIONS[0], 9, False), Wish("b", DEFINITIONS[0], 1, True)]

    [change] = plan([wanted(wishes, Settings(weight=2.0), task)], {"x": task.actual()})

    assert [(line.path, line.before, line.after) for line in change.differences] == [
        ("weight", 1.0, 2.0),
        ("limits.max_tokens", 3, None),
        ("versions.0.version", "v1", "new, with the prefix of v1"),
        ("versions.0.template", "Q: {prompt}", None),
        ("versions.1.prefix", None, "new: b"),
        ("traffic", "v1", {"versions.0": 9, "versions.1": 1}),
        ("pinned", None, "versions.1"),
    ]
