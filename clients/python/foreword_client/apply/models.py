"""What a file of tasks may say: strict pydantic models, with the bounds that the server has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    model_validator,
)

_TASK_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
DEFINITION_FIELDS = ("template", "chat", "defaults")
SETTINGS = ("description", "weight", "limits", "golden")
"""Fields that belong to the task and not to a version."""


class Model(BaseModel):
    """Base class: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _task_name(name: str) -> str:
    if not _TASK_NAME.fullmatch(name):
        raise ValueError("a task's name is 1 to 63 of a-z, 0-9, _ and -, not first _ or -")
    return name


def _or_empty(value: Any) -> Any:
    return {} if value is None else value


TaskName = Annotated[str, AfterValidator(_task_name)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Answer = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
GoldenText = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]


class Rank(Model):
    """Texts of which the most likely is the answer."""

    texts: list[Answer] = Field(min_length=1, max_length=64)
    by: Literal["sum", "mean"] = "sum"


class Defaults(Model):
    """A task's values for what a request leaves out: sampling, stop strings, form of the answer."""

    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: Annotated[list[StopString], Field(max_length=16), BeforeValidator(_as_list)] | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=64)
    response_format: dict[str, JsonValue] | None = None
    regex: str | None = Field(None, min_length=1, max_length=65_536)
    choice: list[Answer] | None = Field(None, min_length=1, max_length=1000)
    rank: Rank | None = None

    @model_validator(mode="after")
    def _has_one_form(self) -> Self:
        forms = ("response_format", "regex", "choice", "rank")
        given = [name for name in forms if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"set only one of {' and '.join(given)}")
        return self


class Limits(Model):
    """Upper limits of a task."""

    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    max_prompt_tokens: int | None = Field(None, ge=1, le=1_000_000)
    max_concurrency: int | None = Field(None, ge=1, le=4096)


class GoldenPrompt(Model):
    """A prompt, and how its greedy answer must begin: text or token ids."""

    prompt: GoldenText
    expect: GoldenText | Annotated[list[TokenId], Field(min_length=1, max_length=1024)]


class Message(Model):
    """One chat message of a prefix."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1, max_length=1_000_000)


class Settings(Model):
    """What belongs to the task and not to a version."""

    description: str = Field("", max_length=10_000)
    weight: float = Field(1.0, ge=0.01, le=100, allow_inf_nan=False)
    limits: Limits = Limits()
    golden: list[GoldenPrompt] = Field([], max_length=16)

    @classmethod
    def of(cls, found: BaseModel) -> Settings:
        """Take the settings from a model that has these fields, ours or the client's."""
        return cls.model_validate(found.model_dump(include=set(SETTINGS)))


class VersionSpec(Model):
    """A version: its prefix, and how it is asked."""

    prefix: str | None = Field(None, min_length=1, max_length=4096)
    """A path, relative to the file's folder; a URL; or `sha256:...` of a version of the task."""
    text: str | None = Field(None, min_length=1, max_length=4_000_000)
    messages: list[Message] | None = Field(None, min_length=1, max_length=1000)
    template: str | None = Field(None, max_length=100_000)
    chat: bool = False
    defaults: Defaults = Defaults()
    pinned: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the fields, of `prefix`, `text` and `messages`, that are set."""
        names = ("prefix", "text", "messages")
        return tuple(name for name in names if getattr(self, name) is not None)

    @property
    def definition(self) -> dict[str, Any]:
        """The parts of the definition that are given; null counts as given."""
        given = DEFINITION_FIELDS
        return {name: getattr(self, name) for name in given if name in self.model_fields_set}


class SharedVersion(VersionSpec):
    """One of several versions of a task."""

    traffic: int = Field(ge=0, le=1_000_000)
    """Its weight. 0: stored, and answers only requests that name it."""

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if len(self.sources) != 1:
            raise ValueError("give exactly one of prefix, text and messages")
        return self


class RollbackRule(Model):
    """When the first version gets all the traffic back: any condition, met by any other version."""

    error_rate_above: float | None = Field(None, ge=0, lt=1, allow_inf_nan=False)
    first_token_p95_ms_above: float | None = Field(None, gt=0, allow_inf_nan=False)
    total_p95_ms_above: float | None = Field(None, gt=0, allow_inf_nan=False)
    golden_fails: bool = False
    min_requests: int = Field(50, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _has_a_condition(self) -> Self:
        given = self.model_dump(exclude={"min_requests"}).values()
        if all(value in (None, False) for value in given):
            raise ValueError("a rule needs a condition, such as error_rate_above")
        return self

    @classmethod
    def of_answer(cls, found: BaseModel | None) -> Self | None:
        """Take the rule from a server's answer."""
        if found is None:
            return None
        return cls.model_validate(found.model_dump(include=set(cls.model_fields)))


class TaskSpec(VersionSpec, Settings):
    """A task: its settings, and its one version, or `versions`, of which the first is active."""

    versions: list[SharedVersion] | None = Field(None, min_length=1, max_length=16)
    rollback_if: RollbackRule | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if len(self.sources) > 1:
            raise ValueError(f"set only one of {' and '.join(self.sources)}")
        if self.versions is None:
            if self.rollback_if is not None:
                raise ValueError("rollback_if goes with versions that share the traffic")
            return self
        beside = sorted(self.model_fields_set & VersionSpec.model_fields.keys())
        if beside:
            raise ValueError(f"{beside[0]} belongs into each of the versions, not beside them")
        num_served = sum(version.traffic > 0 for version in self.versions)
        if not num_served:
            raise ValueError("at least one version needs traffic above 0")
        if self.rollback_if is not None and num_served == 1:
            raise ValueError("rollback_if goes with versions that share the traffic")
        return self


class TasksFile(Model):
    """A file of tasks, by name."""

    tasks: dict[TaskName, Annotated[TaskSpec, BeforeValidator(_or_empty)]]


class Definition(Model):
    """How a version is asked."""

    template: str | None = None
    chat: bool = False
    defaults: Defaults = Defaults()
    prompt: dict[str, Any] | None = None
    """How prompts continue a prefix that was computed from text; None: as its format has it."""

    @classmethod
    def of_answer(cls, found: BaseModel) -> Definition:
        """Take the definition from a server's answer. Fields of newer servers are left out."""
        data = found.model_dump(include=set(cls.model_fields), exclude_none=True)
        defaults = data.get("defaults", {})
        known = {name: defaults[name] for name in defaults.keys() & Defaults.model_fields.keys()}
        return cls.model_validate(data | {"defaults": known})

    def with_fields(self, given: Mapping[str, Any]) -> Definition:
        """Return a copy in which the given fields replace ours."""
        return self.model_copy(update=dict(given))

    def is_asked_like(self, other: Definition) -> bool:
        """Whether requests are treated alike. `prompt` belongs to the prefix and is left out."""
        return all(getattr(self, name) == getattr(other, name) for name in DEFINITION_FIELDS)

    def to_json(self) -> dict[str, Any]:
        """Return plain data without what is unset: the same for equal definitions."""
        return self.model_dump(mode="json", exclude_none=True)
