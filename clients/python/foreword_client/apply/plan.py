"""The plan: what has to change so that tasks are as the files say. Pure functions, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from foreword_client.apply.changes import (
    Activate,
    ActualTask,
    Change,
    Configure,
    Create,
    Define,
    Delete,
    Difference,
    EndSplit,
    Pin,
    Redefine,
    Refuse,
    Split,
    Step,
    Unpin,
    Upload,
    WantedTask,
    WantedVersion,
)
from foreword_client.apply.differences import differences
from foreword_client.apply.files import InvalidFileError
from foreword_client.apply.models import Settings


def plan(
    wanted: Iterable[WantedTask],
    actual: Mapping[str, ActualTask],
    pruned: Iterable[ActualTask] = (),
) -> list[Change]:
    """Return the changes, deletions last. Empty if everything is as wanted.

    Raises `InvalidFileError` for a digest that no version has, and for one version named twice.
    """
    changes = (_changed(task, actual.get(task.name)) for task in wanted)
    deleted = (Change(task.name, "delete", task.revision, (Delete(),), ()) for task in pruned)
    return [change for change in (*changes, *deleted) if change.steps]


def _changed(wanted: WantedTask, actual: ActualTask | None) -> Change:
    if actual is None:
        return _created(wanted)
    numbers = tuple(_number(version, actual) for version in wanted.versions)
    _check_distinct(wanted, numbers)
    steps = (
        *_settings_steps(wanted, actual),
        *_version_steps(wanted, actual, numbers),
        *_traffic_steps(wanted, actual, numbers),
        *_pin_steps(wanted, actual, numbers),
    )
    found = tuple(differences(wanted, actual, numbers, steps))
    return Change(wanted.name, "change", actual.revision, steps, found, numbers)


def _created(wanted: WantedTask) -> Change:
    absent = ActualTask(wanted.name, 0)
    numbers = tuple(_number(version, absent) for version in wanted.versions)
    steps = (
        *_version_steps(wanted, absent, numbers),
        *_traffic_steps(wanted, absent, numbers),
        *_pin_steps(wanted, absent, numbers),
    )
    lines = differences(wanted, absent, numbers, steps)
    found = tuple(Difference(line.path, None, line.after) for line in lines)
    is_plain = steps and wanted.settings == Settings()  # then the upload creates the task
    create = () if is_plain else (Create(wanted.settings, wanted.definition),)
    return Change(wanted.name, "create", None, (*create, *steps), found, numbers)


def _number(wanted: WantedVersion, actual: ActualTask) -> int | None:
    """Return the version that is as wanted, if there is one."""
    versions = actual.versions
    alike = [n for n in wanted.held_by if versions[n].is_asked_like(wanted.definition)]
    if not wanted.can_upload and not wanted.held_by:
        raise InvalidFileError(f"{wanted.place}: no version of the task has this digest")
    return preferred(alike, actual)


def preferred(numbers: Iterable[int], actual: ActualTask) -> int | None:
    """Return the one of equal versions that is in use: active, with traffic or pinned; or else the
    newest. None for none."""
    weights, pinned = actual.weights or {}, actual.pinned
    return max(
        numbers, key=lambda n: (n == actual.active, n in weights, n in pinned, n), default=None
    )


def _check_distinct(wanted: WantedTask, numbers: tuple[int | None, ...]) -> None:
    for index, number in enumerate(numbers):
        if number is not None and number in numbers[:index]:
            place = wanted.versions[index].place
            raise InvalidFileError(f"{place}: this is version {number}, which is named above")


def _settings_steps(wanted: WantedTask, actual: ActualTask) -> Iterator[Step]:
    definition = wanted.definition
    if definition is not None and not definition.is_asked_like(actual.definition):
        yield Define(wanted.settings, definition)
        return
    names = (n for n in Settings.model_fields if _of(wanted, n) != _of(actual, n))
    if fields := {name: _of(wanted, name) for name in names}:
        yield Configure(fields)


def _of(task: WantedTask | ActualTask, name: str) -> Any:
    """Return a setting as plain data. Every limit is named, as null clears one."""
    return task.settings.model_dump(mode="json")[name]


def _version_steps(
    wanted: WantedTask, actual: ActualTask, numbers: tuple[int | None, ...]
) -> Iterator[Step]:
    for index, (version, number) in enumerate(zip(wanted.versions, numbers, strict=True)):
        is_first = index == 0
        if number is not None:
            if is_first and number != actual.active:
                yield Activate(index)
            continue
        if wanted.keeps_traffic and actual.weights is not None:
            raise InvalidFileError(
                f"{version.place}: the task's traffic is split: name its versions under `versions`"
            )
        held = preferred(version.held_by, actual)
        if held is None:
            yield Upload(index, version.definition, activate=is_first)
        else:
            prompt = actual.versions[held].prompt
            definition = version.definition.with_fields({"prompt": prompt})
            yield Redefine(index, held, definition, activate=is_first)


def _traffic_steps(
    wanted: WantedTask, actual: ActualTask, numbers: tuple[int | None, ...]
) -> Iterator[Step]:
    if wanted.keeps_traffic or not wanted.versions:
        return
    shares = {i: version.traffic for i, version in enumerate(wanted.versions) if version.traffic}
    ends_split = numbers[0] is None or numbers[0] != actual.active
    if shares.keys() == {0}:
        if actual.weights is not None and not ends_split:
            yield EndSplit()
        return
    weights = {numbers[index]: weight for index, weight in shares.items()}
    rule = wanted.rollback_if
    if not ends_split and weights == actual.weights and rule == actual.rollback_if:
        return
    if actual.rollback_reason is not None and None not in numbers:
        # Applying the same file again would restart what the rule has stopped.
        yield Refuse(f"its split was ended by its rule: {actual.rollback_reason}")
    else:
        yield Split(shares, rule)


def _pin_steps(
    wanted: WantedTask, actual: ActualTask, numbers: tuple[int | None, ...]
) -> Iterator[Step]:
    if not wanted.versions or all(version.pinned is None for version in wanted.versions):
        return
    keep = {n for n, v in zip(numbers, wanted.versions, strict=True) if v.pinned}
    for index, version in enumerate(wanted.versions):
        if version.pinned and numbers[index] not in actual.pinned:
            yield Pin(index)
    yield from (Unpin(number) for number in sorted(actual.pinned - keep))
