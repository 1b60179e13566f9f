"""OpenAI's request bodies, as far as they have a meaning here. Unknown fields are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from server.api.schemas import MAX_TOKENS, Priority, StopString, TokenIds
from server.errors import InvalidRequest
from server.prompt import DEFAULT_MAX_TOKENS, GenerateParams

MAX_CHOICES = 64
CHAT_MAX_TOKENS = 1024
"""A chat client expects a whole answer without saying how long it may be."""


class Loose(BaseModel):
    """What OpenAI's clients and their relatives send: more than we read."""

    model_config = ConfigDict(extra="ignore")


class StreamOptions(Loose):
    """Whether a stream ends with a chunk that holds the usage."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class OpenAIRequest(Loose):
    """The fields that completions and chat share."""

    model: str = Field(max_length=512)
    """A task, `task@version`, or the base model's name."""
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1, le=1_000_000, description="-1 and 0: all tokens.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopString | list[StopString] | None = Field(None, description="At most 16 strings.")
    ignore_eos: bool | None = None
    priority: Priority | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=1_000_000)
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: dict[str, float] | None = None

    def refuse_unsupported(self) -> None:
        """Raises `InvalidRequest` for what would silently be something else."""
        _refuse(n=self.n not in (None, 1), logit_bias=bool(self.logit_bias))
        _refuse(presence_penalty=bool(self.presence_penalty))
        _refuse(frequency_penalty=bool(self.frequency_penalty))

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self) -> dict[str, Any]:
        """These fields as `GenerateParams` takes them."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        if stop is not None and len(stop) > 16:
            raise InvalidRequest("at most 16 stop strings")
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k is None else max(0, self.top_k),
            "seed": None if self.seed is None else self.seed % 2**63,
            "stop": None if stop is None else tuple(stop),
            "ignore_eos": bool(self.ignore_eos),
            "priority": self.priority or 0,
        }


class CompletionRequest(OpenAIRequest):
    """One prompt or several; each gets a choice."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_CHOICES)]
    )
    best_of: int | None = Field(None, ge=1, le=1_000_000)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=1_000_000)
    suffix: str | None = None

    def params(self) -> list[GenerateParams]:
        """One for each prompt. Raises `InvalidRequest` for what is not supported."""
        self.refuse_unsupported()
        _refuse(best_of=self.best_of not in (None, 1), echo=bool(self.echo))
        _refuse(logprobs=self.logprobs is not None, suffix=bool(self.suffix))
        sampling = self.sampling()
        return [
            GenerateParams(prompt=prompt, default_max_tokens=DEFAULT_MAX_TOKENS, **sampling)
            for prompt in self._prompts()
        ]

    def _prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[i for i in self.prompt if isinstance(i, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]


class TextPart(Loose):
    """A part of a message's content. Only text is taken."""

    type: Literal["text"]
    text: str


class OpenAIMessage(Loose):
    """A chat message; `developer` is another word for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """Role and text, as a chat template takes them."""
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return {"role": role, "content": self.content}
        return {"role": role, "content": "\n".join(part.text for part in self.content)}


class ChatRequest(OpenAIRequest):
    """Messages for the base model's chat template, behind the task's prefix."""

    messages: list[OpenAIMessage] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    logprobs: bool | None = None
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None

    def params(self) -> GenerateParams:
        """Raises `InvalidRequest` for what is not supported."""
        self.refuse_unsupported()
        _refuse(logprobs=bool(self.logprobs), tools=bool(self.tools))
        _refuse(response_format=(self.response_format or {}).get("type", "text") != "text")
        sampling = self.sampling()
        if self.max_completion_tokens is not None:
            sampling["max_tokens"] = self.max_completion_tokens
        return GenerateParams(
            messages=[message.plain() for message in self.messages],
            default_max_tokens=CHAT_MAX_TOKENS,
            **sampling,
        )


def _refuse(**fields: bool) -> None:
    for name, is_set in fields.items():
        if is_set:
            raise InvalidRequest(f"`{name}` is not supported by this server")
