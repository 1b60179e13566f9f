"""What a plan changes, line by line: `defaults.max_tokens: 16 -> 27`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel

from foreword_client.apply.changes import (
    Activate,
    ActualTask,
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
)
from foreword_client.apply.models import Definition, RollbackRule


def differences(
    wanted: WantedTask,
    actual: ActualTask,
    numbers: tuple[int | None, ...],
    steps: Iterable[Step],
) -> Iterator[Difference]:
    """Return what the steps of a task change, line by line."""
    yield from _compared(actual.settings, wanted.settings)
    if wanted.definition is not None:
        yield from _compared(actual.definition, wanted.definition)
    for step in steps:
        yield from _difference(step, wanted, actual, numbers)


def _difference(
    step: Step, wanted: WantedTask, actual: ActualTask, numbers: tuple[int | None, ...]
) -> Iterator[Difference]:
    active = None if actual.active is None else f"v{actual.active}"
    match step:
        case Upload(index):
            where, version = _where(wanted, index), wanted.versions[index]
            yield Difference(f"{where}prefix", None if index else active, f"new: {version.label}")
            before = Definition() if index else actual.definition
            yield from _compared(before, version.definition, where)
        case Redefine(index, of):
            where, before = _where(wanted, index), actual.versions[of]
            yield Difference(f"{where}version", f"v{of}", f"new, with the prefix of v{of}")
            yield from _compared(before, step.definition, where)
        case Activate(index):
            yield Difference("active", active, f"v{numbers[index]}")
        case Split(weights, rule):
            after = {_named(index, numbers): weight for index, weight in weights.items()}
            if after != _shares(actual):
                yield Difference("traffic", _shares(actual), after)
            if rule != actual.rollback_if:
                yield Difference("rollback_if", _rule(actual.rollback_if), _rule(rule))
        case Refuse(reason):
            yield Difference("traffic", _shares(actual), f"refused: {reason}")
        case EndSplit():
            yield Difference("traffic", _shares(actual), active)
        case Pin(index):
            yield Difference("pinned", None, _named(index, numbers))
        case Unpin(version):
            yield Difference("pinned", f"v{version}", None)


def _where(wanted: WantedTask, index: int) -> str:
    return "" if len(wanted.versions) == 1 else f"versions.{index}."


def _named(index: int, numbers: tuple[int | None, ...]) -> str:
    return f"versions.{index}" if numbers[index] is None else f"v{numbers[index]}"


def _shares(actual: ActualTask) -> Any:
    if actual.weights is None:
        return None if actual.active is None else f"v{actual.active}"
    return {f"v{number}": weight for number, weight in actual.weights.items()}


def _rule(rule: RollbackRule | None) -> Any:
    return None if rule is None else rule.model_dump(exclude_defaults=True)


def _compared(before: BaseModel, after: BaseModel, where: str = "") -> Iterator[Difference]:
    old, new = _flat(before), _flat(after)
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) != new.get(name):
            yield Difference(f"{where}{name}", old.get(name), new.get(name))


def _flat(model: BaseModel) -> dict[str, Any]:
    """Return the fields of settings or a definition by path, as plain data, without what is unset
    and without `prompt`, which belongs to the prefix."""
    found: dict[str, Any] = {}
    for name, value in model.model_dump(mode="json", exclude_none=True).items():
        if name in ("limits", "defaults"):
            found |= {f"{name}.{key}": one for key, one in value.items()}
        elif name != "prompt" and value not in ("", []):
            found[name] = value
    return found
