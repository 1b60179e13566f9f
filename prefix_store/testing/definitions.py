from __future__ import annotations

import pytest
from sqlalchemy import update

from prefix_store.database.schema import tasks, versions
from prefix_store.definition import Defaults, Definition
from prefix_store.errors import ActivationOvertaken, TrafficSplit
from prefix_store.manifest import Draft, Manifest, Profile
from prefix_store.registry.preconditions import NoLongerWanted, Preconditions
from prefix_store.registry.registry import Registry
from prefix_store.testing.samples import draft


def asked(template: str | None, content: str = "x") -> Draft:
    """Build a draft with a template."""
    return draft(content).model_copy(update={"definition": Definition(template=template)})


def add(registry: Registry, template: str | None, *, activate: bool = True) -> Manifest:
    return registry.add_version("x", asked(template), activate=activate, create=True)


def template(registry: Registry, number: int | None = None) -> tuple[str | None, str | None]:
    """Return the template that requests get, and the one that the profile shows."""
    serving = registry.serving_version("x", number, "")
    return serving.manifest.definition.template, serving.profile.template


def redefine(registry: Registry, profile: Profile) -> None:
    active = registry.resolve("x")
    definition = active.definition.model_copy(update=profile.definition_fields)
    registry.set_profile("x", profile, redefined=active.redefined(definition))


def forget_definitions(registry: Registry) -> None:
    """Make all versions as a server up to 0.1.1 writes them."""
    with registry.database.write() as connection:
        connection.execute(update(versions).values(definition=None))


class DefinitionContract:
    """Contract of definitions: each version keeps its own."""

    def test_activation_and_rollback_move_the_definition(self, registry: Registry) -> None:
        add(registry, "one {prompt}")
        add(registry, "two {prompt}")
        add(registry, "three {prompt}", activate=False)
        assert template(registry) == ("two {prompt}",) * 2

        registry.activate("x", 3)
        assert template(registry) == ("three {prompt}",) * 2
        for expected in ("two {prompt}", "one {prompt}"):
            registry.rollback("x")
            assert template(registry) == (expected,) * 2
        assert template(registry, 3) == ("three {prompt}", "one {prompt}")

    def test_versions_that_share_the_traffic_keep_their_own_definitions(
        self, registry: Registry
    ) -> None:
        add(registry, "one {prompt}")
        add(registry, "two {prompt}", activate=False)
        registry.set_traffic("x", {1: 1, 2: 1})

        found = {
            (m.version, m.definition.template)
            for m in (registry.serving_version("x", None, str(i)).manifest for i in range(64))
        }

        assert found == {(1, "one {prompt}"), (2, "two {prompt}")}

    def test_a_profile_with_another_definition_makes_a_version_of_the_same_blob(
        self, registry: Registry
    ) -> None:
        first = add(registry, None)
        redefine(registry, Profile(description="d", defaults=Defaults(max_tokens=3)))

        second = registry.resolve("x")
        assert (second.version, second.digest) == (2, first.digest)
        assert second.definition.defaults.max_tokens == 3
        assert registry.get_task("x").profile.description == "d"
        assert registry.rollback("x").version == 1
        found = registry.get_task("x").profile
        assert (found.defaults, found.description) == (Defaults(), "d")

    def test_a_split_task_does_not_get_another_definition(self, registry: Registry) -> None:
        add(registry, None)
        add(registry, None, activate=False)
        registry.set_traffic("x", {1: 1, 2: 1})
        before = registry.get_task("x"), registry.list_versions("x")

        with pytest.raises(TrafficSplit):
            redefine(registry, Profile(template="{prompt}!", description="d"))

        assert (registry.get_task("x"), registry.list_versions("x")) == before

    def test_a_definition_is_not_changed_without_a_version(self, registry: Registry) -> None:
        add(registry, None)

        with pytest.raises(ActivationOvertaken):
            registry.set_profile("x", Profile(chat=True))
        assert not registry.get_task("x").profile.chat

    def test_an_operational_change_keeps_a_definition_that_came_meanwhile(
        self, registry: Registry
    ) -> None:
        def heavier(profile: Profile) -> Profile:
            return profile.model_copy(update={"weight": 2.0})

        add(registry, "one {prompt}")
        read = registry.get_task("x").profile
        add(registry, "two {prompt}")

        registry.set_profile("x", heavier(read), change=heavier)

        found = registry.get_task("x").profile
        assert (found.template, found.weight) == ("two {prompt}", 2.0)

    def test_an_inherited_definition_must_still_be_current(self, registry: Registry) -> None:
        registry.create_task("x", Profile(template="{prompt}!"))

        with pytest.raises(ActivationOvertaken):
            registry.add_version(
                "x", asked("{prompt}?"), activate=True, create=False, is_inherited=True
            )
        registry.add_version(
            "x", asked("{prompt}!"), activate=True, create=False, is_inherited=True
        )
        assert registry.resolve("x").version == 1

    def test_a_version_is_not_activated_for_a_client_that_left_before_the_commit(
        self, registry: Registry
    ) -> None:
        add(registry, "one {prompt}")
        before = registry.get_task("x"), registry.list_versions("x"), registry.history("x")

        with pytest.raises(NoLongerWanted):
            registry.add_version(
                "x",
                asked("two {prompt}"),
                activate=True,
                create=False,
                preconditions=Preconditions(is_wanted=lambda: False),
            )

        assert before == (
            registry.get_task("x"),
            registry.list_versions("x"),
            registry.history("x"),
        )

    def test_a_version_of_an_older_server_is_asked_as_its_profile_says(
        self, registry: Registry
    ) -> None:
        add(registry, "old {prompt}")
        forget_definitions(registry)
        assert template(registry) == ("old {prompt}",) * 2

        add(registry, "new {prompt}")

        assert template(registry, 1)[0] == "old {prompt}"
        assert template(registry) == ("new {prompt}",) * 2

    def test_a_profile_shows_the_definition_even_if_an_older_server_changed_it(
        self, registry: Registry
    ) -> None:
        add(registry, "one {prompt}")
        with registry.database.write() as connection:
            connection.execute(update(tasks).values(profile="{}"))

        assert registry.get_task("x").profile.template == "one {prompt}"
        redefine(registry, Profile())
        assert template(registry) == (None, None)
