"""The definition of a version: how prompts are built and answers are made. Data, never code."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, Tag, model_validator

from prefix_store.sampling import AnswerFields, SamplingFields
from prefix_store.wording import by_type

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


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


class GoldenPrompt(BaseModel):
    """A prompt and the start of its greedy completion, checked before a version is activated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = Field(min_length=1, max_length=10_000)
    """Prompt as a request would send it; the task's template or chat template is applied."""
    expect: Annotated[
        Annotated[str, StringConstraints(min_length=1, max_length=10_000), Tag("(text)")]
        | Annotated[
            tuple[TokenId, ...],
            Field(min_length=1, max_length=1024, fail_fast=True),
            Tag("(token ids)"),
        ],
        by_type(
            {str: "(text)", list: "(token ids)", tuple: "(token ids)"},
            "must be a string or a list of token ids",
        ),
    ]
    """Expected start of the completion: text, or token ids."""


MAX_GOLDEN_PROMPTS = 16
GoldenPrompts = Annotated[
    tuple[GoldenPrompt, ...], Field(max_length=MAX_GOLDEN_PROMPTS, fail_fast=True)
]

ScoreName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_.-]{1,64}$")]
Score = Annotated[float, Field(allow_inf_nan=False)]


class Evaluation(BaseModel):
    """Scores measured by the trainer before the upload. Not checked by the server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_examples: int = Field(ge=1)
    """Number of held-out examples."""
    scores: dict[ScoreName, Score] = Field(max_length=32)


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


class DefinitionFields(BaseModel):
    """Fields that a definition and a task's profile share: a profile shows those of its task's
    active version, or holds those for its first one."""

    template: str | None = Field(None, max_length=100_000)
    """`{prompt}` and named fields, such as `Review: {prompt}\\nLanguage: {language}`."""
    chat: bool = False
    """Send a plain `prompt` as one user message through the base model's chat template."""
    defaults: Defaults = Defaults()
    """Includes the stop strings and the form of the answer."""

    @property
    def definition_fields(self) -> dict[str, Any]:
        """The shared fields alone."""
        return {name: getattr(self, name) for name in DefinitionFields.model_fields}


class Definition(DefinitionFields):
    """How a version is asked: the content of `foreword.json`. Immutable, like the version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: PromptFormat | None = None
    """None: the default of the upload's format."""

    @model_validator(mode="after")
    def _no_empty_messages(self) -> Self:
        messages = (self.prompt and self.prompt.messages) or ()
        if any(not message.content for message in messages):
            raise ValueError("a message is empty")
        return self

    @property
    def prompt_format(self) -> PromptFormat:
        return self.prompt or PromptFormat()

    def completed(self, current: DefinitionFields) -> Definition:
        """Return the definition of a task's next version, given the current one.

        Without `defaults` it keeps those of a version that is prompted in the same way.
        """
        is_same = (self.template, self.chat) == (current.template, current.chat)
        if "defaults" in self.model_fields_set or not is_same:
            return self
        return self.model_copy(update={"defaults": current.defaults})
