"""On what terms a change of the registry is asked for: in which state, and whether once only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefix_store.digest import Digest


@dataclass(frozen=True, slots=True)
class Once:
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
class Terms:
    """The default: whatever the state, and as often as it is asked for."""

    revisions: frozenset[int] | None = None
    """The revisions of the task that the change may be made to; None for any."""
    once: Once | None = None


ANY = Terms()
