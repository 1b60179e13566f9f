"""What a plan compares, tasks as wanted and as they are, and what it consists of: changes, step by
step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from foreword_client.apply.models import Definition, RollbackRule, Settings


@dataclass(frozen=True, slots=True)
class WantedVersion:
    """A version that a task is to have."""

    label: str
    """How its prefix is named."""
    place: str
    """Where it stands in a file, for errors."""
    definition: Definition
    held_by: frozenset[int] = frozenset()
    """Versions that have its prefix already."""
    traffic: int = 1
    pinned: bool | None = None
    """None: as it is."""
    can_upload: bool = True
    """False if its prefix is that of an existing version."""


@dataclass(frozen=True, slots=True)
class WantedTask:
    """A task as a file says, compared with the versions that the server has."""

    name: str
    settings: Settings
    versions: tuple[WantedVersion, ...] = ()
    """The first is to be active. Empty: the task keeps its versions."""
    definition: Definition | None = None
    """Of a task that has no version, and gets none: that of its first."""
    keeps_traffic: bool = False
    rollback_if: RollbackRule | None = None


@dataclass(frozen=True, slots=True)
class ActualTask:
    """A task as the server has it."""

    name: str
    revision: int
    settings: Settings = field(default_factory=Settings)
    definition: Definition = field(default_factory=Definition)
    """That of the active version, or of the first if there is none yet."""
    active: int | None = None
    weights: Mapping[int, int] | None = None
    rollback_if: RollbackRule | None = None
    """The rule of the split."""
    rollback_reason: str | None = None
    """Why the last split ended by itself, if nothing came after it."""
    versions: Mapping[int, Definition] = field(default_factory=dict)
    """Versions that can be served."""
    pinned: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Create:
    """Create the task, with its settings."""

    settings: Settings
    definition: Definition | None


@dataclass(frozen=True, slots=True)
class Configure:
    """Change settings."""

    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Define:
    """Replace the profile of a task without versions."""

    settings: Settings
    definition: Definition


@dataclass(frozen=True, slots=True)
class Upload:
    """Upload a prefix with its definition. `index`: which of the wanted versions."""

    index: int
    definition: Definition
    activate: bool


@dataclass(frozen=True, slots=True)
class Redefine:
    """Make a version of the prefix that version `of` has, with another definition."""

    index: int
    of: int
    definition: Definition
    activate: bool


@dataclass(frozen=True, slots=True)
class Activate:
    """Make an existing version active."""

    index: int


@dataclass(frozen=True, slots=True)
class Split:
    """Share the traffic, by index of the wanted versions."""

    weights: Mapping[int, int]
    rollback_if: RollbackRule | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """Do nothing more, for a reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class EndSplit:
    """Give the active version all the traffic."""


@dataclass(frozen=True, slots=True)
class Pin:
    """Keep a wanted version's prefix on the device."""

    index: int


@dataclass(frozen=True, slots=True)
class Unpin:
    """Let a version's prefix be evicted."""

    version: int


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete the task."""


Step = (
    Create | Configure | Define | Upload | Redefine | Activate | Split | Refuse
    | EndSplit | Pin | Unpin | Delete
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Difference:
    """One line of a plan. None: there is none."""

    path: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Change:
    """Everything that has to be done to one task, in order."""

    task: str
    action: Literal["create", "change", "delete"]
    revision: int | None
    """The revision that was seen; None: there was no such task."""
    steps: tuple[Step, ...]
    differences: tuple[Difference, ...]
    numbers: tuple[int | None, ...] = ()
    """Numbers of the wanted versions; None for those that have to be made."""
