"""Definitions: checks, and the version that a change of a definition makes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

from prefix_store.definition import DefinitionFields
from prefix_store.manifest import Draft, Profile, Task
from prefix_store.registry.registry import Registry
from server.cancellation import in_thread
from server.engine.ipc.protocol import Engine
from server.errors import BaseModelMismatch
from server.generation.constraint import of_defaults
from server.generation.grammar_check import GrammarCheck
from server.generation.prompt import check_vocabulary
from server.publishing.verification import Verification
from server.text import template

P = ParamSpec("P")
T = TypeVar("T")


class Definitions:
    """Checks definitions. `executor` runs what must stay off the event loop."""

    def __init__(
        self,
        registry: Registry,
        engine: Engine,
        grammars: GrammarCheck,
        verification: Verification,
        *,
        executor: Executor,
    ) -> None:
        self._registry = registry
        self._engine = engine
        self.grammars = grammars
        self._verification = verification
        self._executor = executor

    async def redefined(self, task: Task, profile: Profile) -> Draft | None:
        """Return the active version with the definition that `profile` has, after checking it.

        None if the definition stays as it is, or if no version is active.

        Raises `GoldenPromptFailed`, `BaseModelMismatch`, and the errors of an invalid definition.
        """
        await self.check(profile)
        if task.active_version is None or profile.definition_fields == (
            task.profile.definition_fields
        ):
            return None
        manifest = await self._run_in_thread(
            self._registry.get_version, task.name, task.active_version
        )
        if manifest.fingerprint != self._engine.info.fingerprint:
            raise BaseModelMismatch("the active version was made for another base model")
        draft = manifest.redefined(manifest.definition.model_copy(update=profile.definition_fields))
        return draft.with_checks(await self._verification.require_golden(draft, profile))

    async def check(self, definition: DefinitionFields) -> None:
        """Refuse a definition by which no request could be served."""
        if token_ids := definition.defaults.stop_token_ids:
            check_vocabulary(token_ids, self._engine.info)
        if (grammar := await self._run_in_thread(_grammar, definition)) is not None:
            await self.grammars.check(grammar)

    async def _run_in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await in_thread(self._executor, work, *args, **kwargs)


def _grammar(definition: DefinitionFields) -> str | None:
    """Return the grammar of a definition's answers, if any.

    Raises `TemplateMismatch` for a template that no request could fill in, `InvalidRequest` and
    `InvalidGrammar` for answers in a form that does not exist.
    """
    if definition.template is not None:
        template.parse(definition.template)
    return of_defaults(definition.defaults).grammar()
