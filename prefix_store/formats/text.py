"""Text uploads: `{"text": ...}` or `{"messages": [...]}`, which one forward turns into a prefix."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prefix_store import strict_json
from prefix_store.errors import InvalidArtifact
from prefix_store.manifest import GoldenPrompt, GoldenPrompts, Message
from prefix_store.prefix import TextPrompt
from prefix_store.safetensors_gate import shown

MAX_CHARS = 4_000_000
MAX_MESSAGES = 1024


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str | None = Field(None, min_length=1, max_length=MAX_CHARS)
    messages: tuple[Message, ...] | None = Field(
        None, min_length=1, max_length=MAX_MESSAGES, fail_fast=True
    )
    golden: GoldenPrompts = ()

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.text is None) == (self.messages is None):
            raise ValueError("give either text or messages")
        if self.messages is not None and any(not message.content for message in self.messages):
            raise ValueError("a message is empty")
        return self


def read(data: bytes) -> tuple[TextPrompt, tuple[GoldenPrompt, ...]]:
    """Parse a JSON body into its prompt and golden prompts. Raises `InvalidArtifact`."""
    try:
        body = _Body.model_validate(strict_json.parse(data))
    except ValidationError as error:
        raise InvalidArtifact(_describe(error)) from None
    except ValueError as error:
        raise InvalidArtifact(f"the body is not valid JSON: {error}") from None
    if body.messages is None:
        return TextPrompt(text=body.text), body.golden
    messages = tuple(message.model_dump() for message in body.messages)
    return TextPrompt(messages=messages), body.golden


def _describe(error: ValidationError) -> str:
    """Describe the first error without echoing the input."""
    first = error.errors(include_input=False, include_context=False, include_url=False)[0]
    where = ".".join(shown(at).strip("'") for at in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]
