"""Metadata of a version (immutable) and of a task (mutable). Data, never code."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from prefix_store.errors import DefinitionMismatch
from prefix_store.rollback import RollbackRule
from prefix_store.sampling import AnswerFields, SamplingFields

TASK_NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TaskName = Annotated[str, StringConstraints(pattern=TASK_NAME_PATTERN)]


class Message(BaseModel):
    """One chat message."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=1_000_000)


class PromptFormat(BaseModel):
    """How prompts after this prefix are built."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    add_special_tokens: bool = True
    """False where the prefix already holds the beginning-of-sequence token (text prefixes)."""
    messages: tuple[Message, ...] | None = None
    """Chat messages that the prefix was computed from. A request's messages continue them."""


class Check(BaseModel):
    """One entry of the verification report."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    passed: bool
    detail: str = ""


class GoldenPrompt(BaseModel):
    """A prompt and the start of its greedy completion, checked before a version is activated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = Field(min_length=1, max_length=10_000)
    """Prompt as a request would send it; the task's template or chat template is applied."""
    expect: (
        Annotated[str, StringConstraints(min_length=1, max_length=10_000)]
        | Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=1024, fail_fast=True)]
    )
    """Expected start of the completion: text, or token ids."""


GoldenPrompts = Annotated[tuple[GoldenPrompt, ...], Field(max_length=16, fail_fast=True)]

ScoreName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_.-]{1,64}$")]
Score = Annotated[float, Field(allow_inf_nan=False)]


class Evaluation(BaseModel):
    """Scores measured by the trainer before the upload. Not checked by the server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_examples: int = Field(ge=1)
    """Number of held-out examples."""
    scores: dict[ScoreName, Score] = Field(max_length=32)


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
    prompt: PromptFormat = PromptFormat()
    verification: tuple[Check, ...] = ()
    golden: GoldenPrompts = ()
    """Golden prompts of the upload. Those of the task's profile are checked in addition."""
    evaluation: Evaluation | None = None
    """Evaluation that came with the upload."""

    def as_version(self, task: str, version: int, *, at: datetime, by: str | None) -> Manifest:
        """Return the manifest of this draft as version `version` of `task`."""
        return Manifest(**dict(self), task=task, version=version, created_at=at, created_by=by)


# The bases stand in this order so that a manifest begins with task and version.
class Manifest(Draft, Identity):
    """One version of a task. Immutable."""

    created_at: datetime
    created_by: str | None = None


class Defaults(SamplingFields, AnswerFields):
    """A task's values for what a request leaves out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _read_choices_as_rank(cls, data: Any) -> Any:
        """Read the names that `rank` had in registries and files up to 0.1.1."""
        if not isinstance(data, dict) or not data.keys() & {"choices", "rank_by"}:
            return data
        rest = {name: value for name, value in data.items() if name not in ("choices", "rank_by")}
        if (texts := data.get("choices")) is None:
            return rest
        if rest.get("rank") is not None:
            raise ValueError("`choices` is the old name of `rank`: set `rank` only")
        return rest | {"rank": {"texts": texts, "by": data.get("rank_by") or "sum"}}


class Limits(BaseModel):
    """Upper limits of a task, in addition to the server's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    max_prompt_tokens: int | None = Field(None, ge=1, le=1_000_000)
    max_concurrency: int | None = Field(None, ge=1, le=4096)
    """Number of requests that run concurrently; further ones wait."""


class Profile(BaseModel):
    """Mutable settings of a task: template, defaults, limits, scheduling weight."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = Field("", max_length=10_000)
    template: str | None = Field(None, max_length=100_000)
    """`{prompt}` and named fields, such as `Review: {prompt}\\nLanguage: {language}`."""
    chat: bool = False
    """Send a plain `prompt` as one user message through the base model's chat template."""
    defaults: Defaults = Defaults()
    limits: Limits = Limits()
    weight: float = Field(1.0, ge=0.01, le=100, allow_inf_nan=False)
    """Share of the step's token budget under contention, relative to a task of weight 1."""
    golden: GoldenPrompts = ()
    """Golden prompts that every version must pass before it can be activated."""


class Definition(BaseModel):
    """How prompts for a prefix are built: the content of `foreword.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str | None = Field(None, max_length=100_000)
    chat: bool = False
    defaults: Defaults = Defaults()
    """Includes the stop strings."""
    prompt: PromptFormat | None = None
    """None: the default of the upload's format."""

    @model_validator(mode="after")
    def _no_empty_messages(self) -> Self:
        messages = (self.prompt and self.prompt.messages) or ()
        if any(not message.content for message in messages):
            raise ValueError("a message is empty")
        return self

    @classmethod
    def of(cls, profile: Profile, prompt: PromptFormat) -> Definition:
        """Build the definition of a version from its prompt format and its task's profile."""
        defaults, template, chat = profile.defaults, profile.template, profile.chat
        return cls(template=template, chat=chat, defaults=defaults, prompt=prompt)

    def adopted_by(self, task: Task | None) -> Profile:
        """Return the task's profile after it adopts this definition.

        A new task takes all of it. A task with versions must have the same template and chat
        setting already, and keeps its own defaults. Raises `DefinitionMismatch`.
        """
        profile = Profile() if task is None else task.profile
        is_new = task is None or task.num_versions == 0
        is_untouched = is_new and (profile.template, profile.chat) == (None, False)
        if (profile.template, profile.chat) != (self.template, self.chat) and not is_untouched:
            raise DefinitionMismatch(
                "the upload's foreword.json and the task's profile differ in template or chat: "
                "upload it as a new task, or change the profile first"
            )
        changes: dict[str, Any] = {"template": self.template, "chat": self.chat}
        if is_new and profile.defaults == Defaults():
            changes["defaults"] = self.defaults
        return profile.model_copy(update=changes)


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
