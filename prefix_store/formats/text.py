"""JSON uploads: text or messages, which one forward turns into a prefix, or a version (`prefix_of`)
whose prefix is used again."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prefix_store import strict_json, wording
from prefix_store.definition import Definition, Evaluation, GoldenPrompts, Message
from prefix_store.errors import InvalidArtifact
from prefix_store.prefix import PrefixOf, TextPrompt
from prefix_store.reference import MAX_VERSION

MAX_CHARS = 4_000_000
MAX_MESSAGES = 1024


class JsonUpload(BaseModel):
    """A JSON body: text that becomes a prefix, or a version whose prefix is used again; and how
    the new version is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str | None = Field(None, min_length=1, max_length=MAX_CHARS)
    messages: tuple[Message, ...] | None = Field(
        None, min_length=1, max_length=MAX_MESSAGES, fail_fast=True
    )
    prefix_of: int | None = Field(
        None, strict=True, ge=1, le=MAX_VERSION, description="Number of a version of this task."
    )
    definition: Definition | None = Field(
        None,
        description="How the version is asked. Default: as the active version, with `prefix_of` as "
        "that version.",
    )
    golden: GoldenPrompts | None = Field(
        None, description="Prompts, and how their answers must begin."
    )
    evaluation: Evaluation | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [self.text, self.messages, self.prefix_of]
        if sum(value is not None for value in given) != 1:
            raise ValueError("give exactly one of `text`, `messages` and `prefix_of`")
        if self.messages is not None and any(not message.content for message in self.messages):
            raise ValueError("a message is empty")
        if self.prefix_of is None and self.definition is not None and self.definition.prompt:
            raise ValueError(
                "leave out `definition.prompt`, which follows from `text` and `messages`"
            )
        return self

    def source(self) -> TextPrompt | PrefixOf:
        """Return the source of the prefix."""
        if self.prefix_of is not None:
            return PrefixOf(self.prefix_of)
        if self.messages is None:
            return TextPrompt(text=self.text)
        return TextPrompt(messages=tuple(message.model_dump() for message in self.messages))


def read(data: bytes) -> JsonUpload:
    """Parse a JSON body. Raises `InvalidArtifact`."""
    try:
        return JsonUpload.model_validate(strict_json.parse(data))
    except ValidationError as error:
        raise InvalidArtifact(wording.first(error)) from None
    except ValueError as error:
        raise InvalidArtifact(f"the body is not valid JSON: {error}") from None
