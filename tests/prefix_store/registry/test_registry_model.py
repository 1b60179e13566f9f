"""Any order of calls, against a model made of dicts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from prefix_store.definition import Definition
from prefix_store.errors import (
    NothingActive,
    NothingToRollBack,
    PrefixStoreError,
    TaskExists,
    TrafficSplit,
    UnknownTask,
    UnknownVersion,
    VersionActive,
)
from prefix_store.manifest import Profile
from prefix_store.registry.registry import Registry, ServingVersion
from prefix_store.registry.replica import Replica
from prefix_store.testing import draft
from tests.sqlite import new_sqlite

NAMES = st.sampled_from(["a", "b"])
NUMBERS = st.integers(1, 5)
TEMPLATES = st.sampled_from([None, "{prompt}", "Q: {prompt}"])


@dataclass
class ModelTask:
    alive: set[int] = field(default_factory=set)
    stack: list[int] = field(default_factory=list)
    """Versions that a rollback goes back through; the last one is active."""
    history: list[int] = field(default_factory=list)
    split: set[int] = field(default_factory=set)
    """Versions that share the traffic."""
    templates: dict[int, str | None] = field(default_factory=dict)
    """Template of each version."""


def answer(
    route: Callable[..., ServingVersion], *asked: object
) -> ServingVersion | type[PrefixStoreError]:
    try:
        return route(*asked)
    except PrefixStoreError as exc:
        return type(exc)


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.registry = Registry(new_sqlite(Path(self.folder.name)))
        self.replica = Replica(self.registry, max_age_s=3600)
        self.late_replica = Replica(self.registry, max_age_s=3600)
        self.registry.database.after_write = self.replica.refresh
        self.tasks: dict[str, ModelTask] = {}
        self.last: dict[str, int] = {}

    def teardown(self) -> None:
        self.registry.close()
        self.folder.cleanup()

    def expect(self, task: str, number: int | None = None) -> type[PrefixStoreError] | None:
        if task not in self.tasks:
            return UnknownTask
        return UnknownVersion if number and number not in self.tasks[task].alive else None

    @rule(task=NAMES)
    def create(self, task: str) -> None:
        if task in self.tasks:
            with pytest.raises(TaskExists):
                self.registry.create_task(task, Profile())
        else:
            self.registry.create_task(task, Profile())
            self.tasks[task] = ModelTask()

    @rule(task=NAMES)
    def delete(self, task: str) -> None:
        if error := self.expect(task):
            with pytest.raises(error):
                self.registry.delete_task(task)
        else:
            self.registry.delete_task(task)
            del self.tasks[task]

    @rule(task=NAMES, activate=st.booleans(), create=st.booleans(), template=TEMPLATES)
    def add_version(self, task: str, activate: bool, create: bool, template: str | None) -> None:
        asked = draft().model_copy(update={"definition": Definition(template=template)})
        if task not in self.tasks and not create:
            with pytest.raises(UnknownTask):
                self.registry.add_version(task, asked, activate=activate, create=False)
            return
        manifest = self.registry.add_version(task, asked, activate=activate, create=create)
        model = self.tasks.setdefault(task, ModelTask())
        self.last[task] = self.last.get(task, 0) + 1
        assert manifest.version == self.last[task]
        self.added(task, template)
        if activate:
            model.split = set()
            self.activated(task)

    def added(self, task: str, template: str | None) -> None:
        model, number = self.tasks[task], self.last[task]
        model.alive.add(number)
        model.templates[number] = template

    def activated(self, task: str) -> None:
        model, number = self.tasks[task], self.last[task]
        model.stack.append(number)
        model.history.append(number)

    @rule(task=NAMES, template=TEMPLATES)
    def redefine(self, task: str, template: str | None) -> None:
        """Change the profile's template, as a client up to 0.1.1 does."""
        profile = Profile(template=template, description="new")
        model = self.tasks.get(task)
        if model is None or not model.stack:
            if model is not None:
                self.registry.set_profile(task, profile)
            return
        if template == self.registry.get_task(task).profile.template:
            self.registry.set_profile(task, profile)
            return
        redefined = self.registry.resolve(task, model.stack[-1]).redefined(
            Definition(template=template)
        )
        if model.split:
            with pytest.raises(TrafficSplit):
                self.registry.set_profile(task, profile, redefined=redefined)
            return
        self.registry.set_profile(task, profile, redefined=redefined)
        self.last[task] += 1
        self.added(task, template)
        self.activated(task)

    @rule(task=NAMES, number=NUMBERS)
    def activate(self, task: str, number: int) -> None:
        if error := self.expect(task, number):
            with pytest.raises(error):
                self.registry.activate(task, number)
            return
        assert self.registry.activate(task, number).version == number
        model = self.tasks[task]
        if model.stack[-1:] != [number]:
            model.stack.append(number)
            model.history.append(number)
        elif model.split:
            model.history.append(number)
        model.split = set()

    @rule(task=NAMES, numbers=st.sets(NUMBERS, max_size=3))
    def set_traffic(self, task: str, numbers: set[int]) -> None:
        error = self.expect(task)
        if error is None and not self.tasks[task].stack:
            error = NothingActive
        if error is None and numbers - self.tasks[task].alive:
            error = UnknownVersion
        weights = dict.fromkeys(numbers, 1)
        if error:
            with pytest.raises(error):
                self.registry.set_traffic(task, weights)
            return
        model = self.tasks[task]
        assert self.registry.set_traffic(task, weights).version == model.stack[-1]
        if numbers or model.split:
            model.history.append(model.stack[-1])
        model.split = numbers

    @rule(task=NAMES)
    def rollback(self, task: str) -> None:
        if error := self.expect(task):
            with pytest.raises(error):
                self.registry.rollback(task)
            return
        model = self.tasks[task]
        if model.split:
            assert self.registry.rollback(task).version == model.stack[-1]
            model.history.append(model.stack[-1])
            model.split = set()
            return
        beneath = model.stack[:-1]
        while beneath and (beneath[-1] not in model.alive or beneath[-1] == model.stack[-1]):
            beneath.pop()
        if not beneath:
            with pytest.raises(NothingToRollBack):
                self.registry.rollback(task)
            return
        assert self.registry.rollback(task).version == beneath[-1]
        model.stack = beneath
        model.history.append(beneath[-1])

    @rule(task=NAMES, number=NUMBERS)
    def delete_version(self, task: str, number: int) -> None:
        error = self.expect(task, number)
        if error is None and number in {*self.tasks[task].stack[-1:], *self.tasks[task].split}:
            error = VersionActive
        if error:
            with pytest.raises(error):
                self.registry.delete_version(task, number)
        else:
            self.registry.delete_version(task, number)
            self.tasks[task].alive.remove(number)

    @rule()
    def catch_up(self) -> None:
        """Another server reads what has changed since it last did."""
        self.late_replica.refresh()
        self.compare(self.late_replica)

    @invariant()
    def a_replica_routes_as_the_registry_does(self) -> None:
        self.compare(self.replica)

    def compare(self, replica: Replica) -> None:
        asked = [(number, key) for number in (None, 1, 2, 3, 4, 5) for key in "abcd"]
        for task in ("a", "b"):
            for number, key in asked:
                routes = (self.registry.serving_version, replica.serving_version)
                here, there = (answer(route, task, number, key) for route in routes)
                assert here == there

    @invariant()
    def the_registry_says_what_the_model_says(self) -> None:
        listed = {task.name: task for task in self.registry.list_tasks()}
        assert listed.keys() == self.tasks.keys()
        for name, model in self.tasks.items():
            active = model.stack[-1] if model.stack else None
            assert listed[name].active_version == active
            assert listed[name].num_versions == len(model.alive)
            versions = {m.version: m.definition.template for m in self.registry.list_versions(name)}
            assert versions == {number: model.templates[number] for number in model.alive}
            if active:
                assert listed[name].profile.template == model.templates[active]
            assert [a.version for a in self.registry.history(name)] == model.history[::-1]
            assert set(self.registry.traffic(name) or ()) == model.split
            if active:
                answering = {self.registry.resolve(name, None, key).version for key in "abcdefgh"}
                assert answering <= (model.split or {active})
            else:
                with pytest.raises(NothingActive):
                    self.registry.resolve(name)


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
