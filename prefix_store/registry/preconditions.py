"""On what terms a change of the registry is asked for: in which state, and whether once only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from prefix_store.digest import Digest


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """A request that may come again, by the key its client gave it, and must count once."""

    route: str
    task: str
    key: str
    request_digest: Digest
    """Of everything that was asked; another request must not use the same key."""
    answer: Callable[[Any], str]
    """From what the change returns to what is kept, in the change's own transaction."""
    principal: str = ""
    """Whose keys these are; empty where nobody is told apart."""


@dataclass(frozen=True, slots=True)
class ActivationSeen:
    """The activation that was in force when a request began."""

    activation: int | None
    """Its number in the history; None where nothing was active."""


@dataclass(frozen=True, slots=True)
class Preconditions:
    """The default: whatever the state, and as often as it is asked for."""

    revisions: frozenset[int] | None = None
    """The revisions of the task that the change may be made to; None for any."""
    idempotent: IdempotentRequest | None = None
    seen: ActivationSeen | None = None
    """What the change may replace; None: whatever is in force."""

    def after(self, describe: Callable[[Any], Any]) -> Preconditions:
        """The same, where what the change returns is described before it is answered."""
        if (request := self.idempotent) is None:
            return self
        return replace(
            self, idempotent=replace(request, answer=lambda made: request.answer(describe(made)))
        )


UNCONDITIONAL = Preconditions()
