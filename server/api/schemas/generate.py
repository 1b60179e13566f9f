"""Bodies and answers of `/generate`, and types that OpenAI's routes share.

Every number has a bound, and every list fails at its first wrong item, because an error takes
longer to build than an item.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, Tag, model_validator

from prefix_store.sampling import MAX_TOKENS, AnswerFields, TokenId
from prefix_store.wording import by_type
from server.api.schemas.admin import Body
from server.generation import constraint
from server.generation.completion import Completion
from server.generation.prompt import GenerateParams
from server.generation.sampling import RequestOptions

MAX_MESSAGES = 1000
USE_RANK = 'no such field: write `"rank": {"texts": [...], "by": "sum"}`'

TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TOKENS, fail_fast=True)]
Prompt = Annotated[
    Annotated[str, Tag("(text)")] | Annotated[TokenIds, Tag("(ids)")],
    by_type({str: "(text)", list: "(ids)"}, "must be a string or a list of token ids"),
]
NumTop = Annotated[int, Field(ge=0, le=20)]
FieldName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
TemplateFields = Annotated[dict[FieldName, str], Field(max_length=64, fail_fast=True)]
TrafficKey = Annotated[str, StringConstraints(max_length=256)]


class ChatMessage(Body):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class GenerateRequest(Body, RequestOptions, AnswerFields):
    """A prompt or chat messages for one task."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "The weather today is", "max_tokens": 32}]}
    )

    prompt: Prompt | None = Field(None, description="Text, or token ids taken as they are.")
    messages: list[ChatMessage] | None = Field(
        None, min_length=1, max_length=MAX_MESSAGES, fail_fast=True
    )
    fields: TemplateFields = Field(
        default_factory=dict, description="For the named fields of a template."
    )
    logprobs: NumTop | None = Field(
        None,
        description="Log-probabilities of the tokens, and of this many most likely ones at each "
        "position.",
    )
    prompt_logprobs: NumTop | None = Field(
        None, description="Like `logprobs`, for the prompt's tokens."
    )
    stream: bool = Field(False, description="Answer with server-sent events.")
    return_token_ids: bool = False
    traffic_key: TrafficKey | None = Field(
        None,
        description="Requests with the same key get the same version, where versions share the "
        "traffic. Also as the header `X-Traffic-Key`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _no_old_names(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.keys() & {"choices", "rank_by"}:
            raise ValueError(USE_RANK)
        return data

    @model_validator(mode="after")
    def _one_prompt(self) -> GenerateRequest:
        if self.prompt is not None and self.messages is not None:
            raise ValueError("send `prompt` or `messages`, not both")
        if self.prompt is None and self.messages is None and not self.fields:
            raise ValueError("send a `prompt` or `messages`")
        return self

    def params(self) -> GenerateParams:
        messages = None
        if self.messages is not None:
            messages = [{"role": m.role, "content": m.content} for m in self.messages]
        return GenerateParams(
            prompt=self.prompt,
            messages=messages,
            fields=self.fields,
            options=self.options(),
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
            constraint=constraint.of_fields(dict(self)),
        )


class LikelyToken(BaseModel):
    """A candidate token."""

    token_id: int
    token: str
    logprob: float


class ScoredToken(LikelyToken):
    """A token, and the most likely tokens at its position."""

    logprob: float | None  # type: ignore[assignment]
    """None for a prompt's first token, which nothing precedes."""
    top: list[LikelyToken]


class RankedText(BaseModel):
    """One of the texts of a ranking."""

    text: str
    logprob: float = Field(description="Log-probability after the prompt: sum over its tokens.")
    num_tokens: int
    probability: float = Field(description="Relative to the other texts: all add up to 1.")


class Usage(BaseModel):
    """Token counts of one request."""

    prefix_tokens: int
    prompt_tokens: int
    cached_tokens: int = Field(description="Prompt tokens served from the prompt cache.")
    completion_tokens: int


class Timings(BaseModel):
    """Milliseconds since the request arrived."""

    queue_ms: float
    first_token_ms: float | None
    total_ms: float


class GenerateResponse(BaseModel):
    """A completion. A stream's `done` event has all but `text`."""

    id: str
    task: str | None
    version: int | None
    digest: str | None
    text: str
    token_ids: list[int] | None
    logprobs: list[ScoredToken] | None = Field(None, description="Present if asked for.")
    prompt_logprobs: list[ScoredToken] | None = Field(None, description="Present if asked for.")
    finish_reason: Literal["stop", "length", "abort"]
    usage: Usage
    timings: Timings
    ranking: list[RankedText] | None = Field(
        None, description="With `rank`: its texts in their order, scored."
    )


def ranking_of(completion: Completion) -> list[dict[str, Any]] | None:
    """The scored texts, where the answer is one of given texts."""
    ranking = completion.ranking
    return None if ranking is None else [text._asdict() for text in ranking]
