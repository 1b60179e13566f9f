"""Metadata of a version (immutable) and of a task (mutable). Data, never code."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    computed_field,
    model_validator,
)

from prefix_store.definition import (
    Definition,
    DefinitionFields,
    Evaluation,
    GoldenPrompts,
    PromptFormat,
)
from prefix_store.rollback import RollbackRule

TASK_NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
TaskName = Annotated[str, StringConstraints(pattern=TASK_NAME_PATTERN)]


class Check(BaseModel):
    """One entry of the verification report."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    passed: bool
    detail: str = ""


class Identity(BaseModel):
    """A task and a version number."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    version: int = Field(ge=1)


class Draft(BaseModel):
    """Metadata of a version before the registry assigns its number."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: str
    num_virtual_tokens: int
    position_offset: int
    num_bytes: int
    dtype: str
    base_model: str
    fingerprint: str
    source_format: str
    source_digest: str
    """Digest of the uploaded bytes."""
    definition: Definition = Definition()
    verification: tuple[Check, ...] = ()
    golden: GoldenPrompts = ()
    """Golden prompts of the upload. Those of the task's profile are checked in addition."""
    evaluation: Evaluation | None = None
    """Evaluation that came with the upload."""

    @model_validator(mode="before")
    @classmethod
    def _read_prompt_as_definition(cls, data: Any) -> Any:
        """Read manifests up to 0.1.1, which had no definition except its `prompt`."""
        if not isinstance(data, dict) or "prompt" not in data:
            return data
        rest = {name: value for name, value in data.items() if name != "prompt"}
        return {"definition": {"prompt": data["prompt"]}} | rest

    @computed_field  # type: ignore[prop-decorator]
    @property
    def prompt(self) -> PromptFormat:
        """The definition's `prompt`, under its name up to 0.1.1."""
        return self.definition.prompt_format

    def with_checks(self, checks: Sequence[Check]) -> Draft:
        """Return this draft with more entries in its verification report."""
        return self.model_copy(update={"verification": (*self.verification, *checks)})

    def as_version(self, task: str, version: int, *, at: datetime, by: str | None) -> Manifest:
        """Return the manifest of this draft as version `version` of `task`."""
        return Manifest(**dict(self), task=task, version=version, created_at=at, created_by=by)


# The bases stand in this order so that a manifest begins with task and version.
class Manifest(Draft, Identity):
    """One version of a task. Immutable."""

    created_at: datetime
    created_by: str | None = None

    def redefined(self, definition: Definition) -> Draft:
        """Return the draft of a version with this prefix and another definition.

        Its golden prompts are kept and must be checked again; its evaluation was measured with the
        old definition.
        """
        kept = {name: getattr(self, name) for name in Draft.model_fields}
        checks = tuple(check for check in self.verification if check.name != "golden")
        changes = {"definition": definition, "verification": checks, "evaluation": None}
        return Draft(**kept).model_copy(update=changes)


class TaskLimits(BaseModel):
    """Upper limits of a task, in addition to the server's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    max_prompt_tokens: int | None = Field(None, ge=1, le=1_000_000)
    max_concurrency: int | None = Field(None, ge=1, le=4096)
    """Number of requests that run concurrently; further ones wait."""


class Profile(DefinitionFields):
    """Settings of a task. Description, limits, weight and golden prompts change in place; a change
    of the definition's fields makes a new version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = Field("", max_length=10_000)
    limits: TaskLimits = TaskLimits()
    weight: float = Field(1.0, ge=0.01, le=100, allow_inf_nan=False)
    """Share of the step's token budget under contention, relative to a task of weight 1."""
    golden: GoldenPrompts = ()
    """Golden prompts that every version must pass before it can be activated."""


class Task(BaseModel):
    """A task as stored in the registry."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    profile: Profile
    active_version: int | None
    num_versions: int
    revision: int
    """Incremented with every change of the task or its versions."""
    created_at: datetime
    updated_at: datetime


class Activation(BaseModel):
    """One entry of a task's activation history."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seq: int
    version: int
    action: Literal["activate", "rollback", "traffic"]
    weights: dict[int, int] | None = None
    """Traffic weights by version while this is in force; None: `version` gets all traffic."""
    rollback_if: RollbackRule | None = None
    """The rule by which the split ends by itself."""
    reason: str | None = None
    """Why a split ended by itself."""
    at: datetime
    by: str | None = None
