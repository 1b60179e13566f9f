"""A model of a server: tasks whose versions are a letter, for the prefix, and a definition."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from foreword_client.apply.changes import (
    Activate,
    ActualTask,
    Change,
    Configure,
    Create,
    Define,
    EndSplit,
    Pin,
    Redefine,
    Split,
    Step,
    Unpin,
    Upload,
    WantedTask,
    WantedVersion,
)
from foreword_client.apply.models import Definition, RollbackRule, Settings


@dataclass
class Stored:
    """A task of the model: versions are a prefix and a definition."""

    name: str
    settings: Settings = field(default_factory=Settings)
    versions: dict[int, tuple[str, Definition]] = field(default_factory=dict)
    active: int | None = None
    weights: dict[int, int] | None = None
    rule: RollbackRule | None = None
    pinned: set[int] = field(default_factory=set)
    revision: int = 1

    def actual(self) -> ActualTask:
        versions = {number: definition for number, (_, definition) in self.versions.items()}
        asked = versions[self.active] if self.active else Definition()
        return ActualTask(
            self.name,
            self.revision,
            self.settings,
            asked,
            self.active,
            self.weights,
            self.rule,
            versions=versions,
            pinned=frozenset(self.pinned),
        )

    def add(self, content: str, definition: Definition, *, activate: bool) -> int:
        number = max(self.versions, default=0) + 1
        self.versions[number] = (content, definition)
        if activate:
            self.activate(number)
        return number

    def activate(self, number: int) -> None:
        self.active, self.weights, self.rule = number, None, None


@dataclass(frozen=True)
class Wish:
    """What a file says of a version."""

    content: str
    definition: Definition
    traffic: int
    pinned: bool


def wanted(
    wishes: list[Wish],
    settings: Settings,
    stored: Stored | None,
    rule: RollbackRule | None = None,
) -> WantedTask:
    held = {} if stored is None else stored.versions
    versions = tuple(
        WantedVersion(
            label=wish.content,
            place=f"versions.{index}",
            definition=wish.definition,
            held_by=frozenset(n for n, (content, _) in held.items() if content == wish.content),
            traffic=wish.traffic,
            pinned=wish.pinned,
        )
        for index, wish in enumerate(wishes)
    )
    return WantedTask("x", settings, versions, rollback_if=rule)


def carry_out(change: Change, stored: Stored | None, wishes: list[Wish]) -> Stored:
    task = stored or Stored("x")
    numbers = list(change.numbers)
    for step in change.steps:
        do(step, task, numbers, wishes)
        task.revision += 1
    return task


def do(step: Step, task: Stored, numbers: list[Any], wishes: list[Wish]) -> None:
    match step:
        case Create(settings) | Define(settings):
            task.settings = settings
        case Configure(fields):
            old = task.settings.model_dump(mode="json")
            task.settings = Settings.model_validate(old | dict(fields))
        case Upload(index, definition, activate):
            content = wishes[index].content
            numbers[index] = task.add(content, definition, activate=activate)
        case Redefine(index, of, definition, activate):
            content = task.versions[of][0]
            numbers[index] = task.add(content, definition, activate=activate)
        case Activate(index):
            task.activate(numbers[index])
        case Split(weights, rule):
            task.weights = {numbers[index]: weight for index, weight in weights.items()}
            task.rule = rule
        case EndSplit():
            task.weights, task.rule = None, None
        case Pin(index):
            task.pinned.add(numbers[index])
        case Unpin(version):
            task.pinned.remove(version)
