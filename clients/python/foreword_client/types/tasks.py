"""Tasks: profiles, limits, traffic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict

from pydantic import Field

from foreword_client.types.base import Answer
from foreword_client.types.generation import Defaults
from foreword_client.types.versions import GoldenPrompt


class ProfileFields(TypedDict, total=False):
    """The parts of a task's profile. In an update, None clears a part; one left out stays."""

    description: str | None
    template: str | None
    """`{prompt}` and named fields, such as `Review: {prompt}\\nLanguage: {language}`."""
    chat: bool | None
    """A plain prompt is taken as one user message of the base model's chat template."""
    defaults: dict[str, Any] | None
    """For what a request leaves out: max_tokens, temperature, top_p, top_k, min_p, seed, stop,
    stop_token_ids; or what
    answers have to be: response_format, regex, choice, rank."""
    limits: dict[str, Any] | None
    """What a request may ask for at most: max_tokens, max_prompt_tokens; max_concurrency."""
    golden: Sequence[Mapping[str, Any]] | None
    """Prompts that a version must answer as expected before it may be active:
    `{"prompt": ..., "expect": text or token ids}`."""
    weight: float | None
    """Tokens it gets for each of a task of weight 1, where there are not enough for both."""


class TaskLimits(Answer):
    """What a task allows at most."""

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
    """A task. `digest` and `residency` are known where one task was asked for."""

    name: str
    profile: Profile = Profile()
    active_version: int | None = None
    num_versions: int
    revision: int | None = None
    """Goes up with every change; `if_match` takes it."""
    created_at: datetime
    updated_at: datetime
    weights: dict[int, int] | None = None
    """Of the versions that share the traffic, if any do."""
    digest: str | None = None
    """Of the active version."""
    residency: str | None = None
    """Where the active prefix is: `device`, `host` or `disk`."""


class TaskPage(Answer):
    """Some tasks, in the order of their names."""

    tasks: list[Task]
    next_after: str | None = None


class Traffic(Answer):
    """Who gets a task's requests: the versions with a weight, or all of them the active one."""

    task: str
    active_version: int | None = None
    weights: dict[int, int] | None = None
    warning: str | None = None
