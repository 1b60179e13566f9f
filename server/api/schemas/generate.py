"""What goes over the wire at /generate, and what OpenAI's routes share with it. Every number has a
bound, and every list fails at its first wrong item: an error takes longer than an item."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.types import Strict

from prefix_store.manifest import ChoiceText
from server.api.schemas.admin import Body
from server.engine.params import RequestSampling
from server.generation import constraint
from server.generation.constraint import RankBy
from server.generation.prompt import GenerateParams

MAX_TOKENS = 1_000_000
MAX_PRIORITY = 1000

TokenId = Annotated[int, Strict(), Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TOKENS, fail_fast=True)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StopStrings = Annotated[list[StopString], Field(fail_fast=True)]
Priority = Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
NumTop = Annotated[int, Field(ge=0, le=20)]
LogitBias = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")],
        Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)],
    ],
    Field(max_length=1024, fail_fast=True),
]
ResponseFormat = Annotated[
    dict[str, Any],
    Field(
        description="In OpenAI's shape: the answer is JSON, of a schema.",
        examples=[{"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}],
    ),
]
Regex = Annotated[str, StringConstraints(min_length=1, max_length=65_536)]
OneOf = Annotated[list[ChoiceText], Field(min_length=1, max_length=1000, fail_fast=True)]
Ranked = Annotated[list[ChoiceText], Field(min_length=1, max_length=64, fail_fast=True)]
FieldName = Annotated[str, StringConstraints(min_length=1, max_length=64)]

TrafficKey = Annotated[str, StringConstraints(max_length=256)]


class Wishful(Protocol):
    """The fields that all generating routes have in common."""

    min_tokens: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: dict[str, float] | None


def wishes(body: Wishful, *, logprobs: int | None, prompt_logprobs: int | None) -> RequestSampling:
    """What a body asks for, as the engine takes it."""
    biases = {int(token_id): bias for token_id, bias in (body.logit_bias or {}).items()}
    penalty = body.repetition_penalty
    return RequestSampling(
        min_tokens=body.min_tokens or 0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=1.0 if penalty is None else penalty,
        logit_bias=tuple(biases.items()),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


class SamplingFields(Body):
    """How tokens are chosen, and how soon. What is left out comes from the task's profile, then the
    server."""

    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=0, le=1_000_000, description="0: all tokens.")
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: StopString | StopStrings | None = Field(None, description="At most 16 strings.")
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(
        None, ge=0, le=MAX_TOKENS, description="Before so many tokens the text does not end."
    )
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: LogitBias | None = Field(None, description="By token id.")
    logprobs: NumTop | None = Field(
        None, description="Log-probabilities of the tokens, and of so many of the likeliest."
    )
    prompt_logprobs: NumTop | None = Field(None, description="The same of the prompt's tokens.")
    response_format: ResponseFormat | None = None
    regex: Regex | None = Field(None, description="The answer matches it from start to end.")
    choice: OneOf | None = Field(None, description="The answer is generated, and is one of these.")
    choices: Ranked | None = Field(
        None, description="Nothing is generated: the answer is the likeliest of these."
    )
    rank_by: RankBy | None = Field(
        None, description="Of the log-probabilities of a choice's tokens. Default: sum."
    )
    priority: Priority | None = Field(
        None, description="Lower goes earlier, among the requests of one task. Default: 0."
    )

    @model_validator(mode="after")
    def _few_stop_strings(self) -> SamplingFields:
        if isinstance(self.stop, list) and len(self.stop) > 16:
            raise ValueError("at most 16 stop strings")
        return self

    def sampling(self) -> dict[str, Any]:
        """These fields as `GenerateParams` takes them."""
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": self.seed,
            "stop": None if stop is None else tuple(stop),
            "ignore_eos": bool(self.ignore_eos),
            "priority": self.priority or 0,
            "constraint": constraint.of_fields(dict(self)),
            "wishes": wishes(self, logprobs=self.logprobs, prompt_logprobs=self.prompt_logprobs),
        }


class ChatMessage(Body):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class GenerateRequest(SamplingFields):
    """A prompt, or chat messages, for one task."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "The weather today is", "max_tokens": 32}]}
    )

    prompt: str | TokenIds | None = Field(None, description="Text, or token ids taken as they are.")
    messages: list[ChatMessage] | None = Field(None, min_length=1, max_length=1000, fail_fast=True)
    fields: dict[FieldName, str] = Field(
        default_factory=dict,
        max_length=64,
        fail_fast=True,
        description="For the named fields of a template.",
    )
    stream: bool = Field(False, description="Answer with server-sent events.")
    return_token_ids: bool = False
    traffic_key: TrafficKey | None = Field(
        None,
        description="Requests with the same key get the same version, where versions share the "
        "traffic. Also as the header `X-Traffic-Key`.",
    )

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
            prompt=self.prompt, messages=messages, fields=self.fields, **self.sampling()
        )


class LikelyToken(BaseModel):
    """A token that could have come."""

    token_id: int
    token: str
    logprob: float


class ScoredToken(LikelyToken):
    """A token, and those that were likeliest in its place."""

    logprob: float | None  # type: ignore[assignment]
    """None for a prompt's first token: nothing is known of what comes before it."""
    top: list[LikelyToken]


class ScoredChoice(BaseModel):
    """One of the texts that an answer was chosen from."""

    text: str
    logprob: float = Field(description="Of the text behind the prompt: the sum over its tokens.")
    num_tokens: int
    probability: float = Field(description="Beside the others; those of all add up to 1.")


class Usage(BaseModel):
    """Tokens of one request."""

    prefix_tokens: int
    prompt_tokens: int
    cached_tokens: int = Field(description="Of the prompt; found computed.")
    completion_tokens: int


class Timings(BaseModel):
    """Milliseconds since the request arrived."""

    queue_ms: float
    first_token_ms: float | None
    total_ms: float


class GenerateResponse(BaseModel):
    """A completion. A stream's `done` event is the same without `text`."""

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
    choices: list[ScoredChoice] | None = Field(
        None, description="Where the text was chosen: all it was chosen from."
    )
