"""Tasks: profiles, limits, traffic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypedDict

from pydantic import Field

from foreword_client.types.base import Answer
from foreword_client.types.generation import Defaults
from foreword_client.types.versions import GoldenPrompt


class DefinitionFields(TypedDict, total=False):
    """Parts of a definition. None restores a default; a part left out stays."""

    template: str | None
    """`{prompt}` and named fields, such as `Review: {prompt}\\nLanguage: {language}`."""
    chat: bool | None
    """A plain prompt becomes one user message of the base model's chat template."""
    defaults: dict[str, Any] | None
    """For what a request leaves out: max_tokens, temperature, top_p, top_k, min_p, seed, stop,
    stop_token_ids; the form of answers: response_format, regex, choice, rank."""


class TaskQuery(TypedDict, total=False):
    """Which tasks to list, and in which order. What is left out, or None, is the server's default:
    all tasks by name."""

    search: str | None
    """A text that the name or the description contains, in upper or lower case."""
    state: Literal["active", "split", "inactive"] | None
    """A version is active; versions share the traffic; no version is active."""
    sort: Literal["name", "-name", "created", "-created", "updated", "-updated"] | None
    """`-` reverses the order."""


class PushFields(DefinitionFields, total=False):
    """Parts of a version's definition, and of its task's profile."""

    description: str | None
    limits: dict[str, Any] | None
    """Limits of a request: max_tokens, max_prompt_tokens; and of the task: max_concurrency."""
    weight: float | None
    """Tokens per token of a task of weight 1, while both have work waiting."""


class ProfileFields(PushFields, total=False):
    """Parts of a task's profile. In an update, None restores a default; a part left out stays.

    A change of template, chat or defaults makes a new version with the active one's prefix.
    """

    golden: Sequence[Mapping[str, Any]] | None
    """Prompts that every version must answer as expected before it may be active:
    `{"prompt": ..., "expect": text or token ids}`."""


class TaskLimits(Answer):
    """Limits of a task."""

    max_tokens: int | None = None
    max_prompt_tokens: int | None = None
    max_concurrency: int | None = None


class Profile(Answer):
    """How a task treats its prompts."""

    description: str = ""
    template: str | None = None
    chat: bool = False
    defaults: Defaults = Defaults()
    limits: TaskLimits = TaskLimits()
    golden: list[GoldenPrompt] = Field([])
    weight: float = 1.0


class Task(Answer):
    """A task. `digest` and `residency` are set where a single task was requested."""

    name: str
    profile: Profile = Profile()
    active_version: int | None = None
    num_versions: int
    revision: int | None = None
    """Increases with every change; pass it as `if_match`."""
    created_at: datetime
    updated_at: datetime
    weights: dict[int, int] | None = None
    """Weights of the versions that share the traffic, if any do."""
    digest: str | None = None
    """Digest of the active version."""
    residency: str | None = None
    """Where the active prefix is: `device`, `host` or `disk`."""


class TaskPage(Answer):
    """A page of tasks, ordered by name."""

    tasks: list[Task]
    next_after: str | None = None
