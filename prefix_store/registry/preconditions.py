"""Preconditions of a change to the registry: expected revision, activation, idempotency."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from prefix_store.digest import Digest


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """A request with an idempotency key, which is answered without a second change if repeated."""

    route: str
    task: str
    key: str
    request_digest: Digest
    """Digest of the whole request; a different request must not use the same key."""
    answer: Callable[[Any], str]
    """Serialises the change's result to the answer that is stored in the change's transaction."""
    principal: str = ""
    """Namespace of the key: the API key's id; empty on a server without keys."""


class NoLongerWanted(Exception):
    """The client of a change disconnected before the commit. Nothing has changed."""


@dataclass(frozen=True, slots=True)
class CurrentActivation:
    """The activation that was in force when a request started."""

    seq: int | None
    """Sequence number in the history; None if nothing was active."""


@dataclass(frozen=True, slots=True)
class Preconditions:
    """Conditions under which a change is made. The default has none."""

    revisions: frozenset[int] | None = None
    """Accepted revisions of the task; None for any."""
    idempotent: IdempotentRequest | None = None
    expected_activation: CurrentActivation | None = None
    """Activation that the change may replace; None for any."""
    is_wanted: Callable[[], bool] | None = None
    """Asked last, just before the commit; None for always."""

    def after(self, describe: Callable[[Any], Any]) -> Preconditions:
        """Return a copy that applies `describe` to the change's result before it is serialised."""
        if (request := self.idempotent) is None:
            return self
        return replace(
            self, idempotent=replace(request, answer=lambda made: request.answer(describe(made)))
        )


UNCONDITIONAL = Preconditions()
