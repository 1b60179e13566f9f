"""Request bodies of OpenAI's routes, with vLLM's additions as far as they are supported.

A field that would silently be ignored is refused: `openai_fields` has the table.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, Tag, field_validator

from prefix_store import strict_json
from prefix_store.sampling import MAX_TOKENS, Choice, Rank, Regex, ResponseFormat
from prefix_store.wording import by_kind, by_type
from server.api.schemas import openai_fields
from server.api.schemas.generate import MAX_MESSAGES, USE_RANK, NumTop, TemplateFields, TokenIds
from server.api.schemas.openai_fields import Fields, Open
from server.errors import InvalidRequest, UnsupportedParameter
from server.generation.constraint import ANYTHING, Constraint, of_fields
from server.generation.prompt import DEFAULT_MAX_TOKENS, GenerateParams
from server.generation.sampling import RequestOptions

MAX_CHOICES = 64
MAX_SCHEMA_CHARS = 256 << 10
"""Maximum length of a schema sent as text: it is parsed on the event loop."""
MAX_PARTS = 4096
"""Text parts in all messages of a chat."""
CHAT_MAX_TOKENS = 1024
"""Default `max_tokens` of chats, whose clients expect a whole answer without naming a length."""


def _kind_of_prompt(value: object) -> str | None:
    """The branch of `Prompts`: a list's is that of its first item."""
    if not isinstance(value, list):
        return "(text)" if isinstance(value, str) else None
    first = value[0] if value else ""
    if isinstance(first, str):
        return "(texts)"
    return "(lists)" if isinstance(first, list) else "(ids)"


_Prompts = Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)
Prompts = Annotated[
    Annotated[str, Tag("(text)")]
    | Annotated[TokenIds, Tag("(ids)")]
    | Annotated[list[str], _Prompts, Tag("(texts)")]
    | Annotated[list[TokenIds], _Prompts, Tag("(lists)")],
    by_kind(_kind_of_prompt, "must be a string, a list of token ids, or a list of either"),
]
JsonSchema = Annotated[
    Annotated[dict[str, Any], Tag("(schema)")] | Annotated[str, Tag("(text)")],
    by_type({dict: "(schema)", str: "(text)"}, "must be a JSON schema"),
]


class StreamOptions(Open):
    """Options for token counts in a stream."""

    unserved: ClassVar[Fields] = openai_fields.STREAM_OPTIONS

    include_usage: bool | None = None
    """Send the usage in a last chunk of its own."""
    continuous_usage_stats: bool | None = None
    """Send it in every chunk too."""


class StructuredOutputs(Open):
    """vLLM's `structured_outputs`."""

    unserved: ClassVar[Fields] = openai_fields.STRUCTURED_OUTPUTS

    json_: JsonSchema | None = Field(None, alias="json")
    """A schema, as an object or as text."""
    json_object: bool | None = None
    regex: Regex | None = None
    choice: Choice | None = None

    def constraint(self) -> Constraint | None:
        """Raises `InvalidRequest` and `UnsupportedParameter`."""
        self.refuse_unsupported("structured_outputs.")
        schema = _schema(self.json_)
        if self.json_object:
            schema = {"type": "object"} if schema is None else schema
        form = None
        if schema is not None:
            form = {"type": "json_schema", "json_schema": {"schema": schema}}
        return of_fields({"response_format": form, "regex": self.regex, "choice": self.choice})


def _schema(given: dict[str, Any] | str | None) -> dict[str, Any] | None:
    if not isinstance(given, str):
        return given
    if len(given) > MAX_SCHEMA_CHARS:
        raise InvalidRequest(f"a JSON schema has at most {MAX_SCHEMA_CHARS} characters")
    try:
        schema = strict_json.parse(given.encode())
    except ValueError:
        schema = None
    if not isinstance(schema, dict):
        raise InvalidRequest("a JSON schema is an object, or the text of one")
    return schema


class OpenAIRequest(Open, RequestOptions):
    """The fields that completions and chat share."""

    unserved: ClassVar[Fields] = openai_fields.REQUEST

    model: str = Field(max_length=512)
    """A task, `task@version`, or the base model's name."""
    top_k: int | None = Field(None, ge=-1, le=1_000_000, description="-1 and 0: all tokens.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchema | None = None
    guided_regex: Regex | None = None
    guided_choice: Choice | None = None
    rank: Rank | None = Field(
        None, description="Nothing is generated: the answer is the most likely of these texts."
    )
    fields: TemplateFields | None = Field(
        None, description="For the named fields of a task's template."
    )
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    def refuse_unsupported(self, place: str = "") -> None:
        for name in (self.model_extra or {}).keys() & {"choices", "rank_by"}:
            raise UnsupportedParameter(name, USE_RANK)
        super().refuse_unsupported(place)
        if self.stream_options is not None:
            self.stream_options.refuse_unsupported("stream_options.")
            if not self.stream:
                raise UnsupportedParameter(
                    "stream_options", "`stream_options` needs `stream: true`"
                )

    @property
    def num_choices(self) -> int:
        """Number of choices for each prompt."""
        return self.n or 1

    def per_choice(self, **changes: Any) -> list[RequestOptions]:
        """The options of each choice of a prompt: they differ in the seed."""
        top_k = None if self.top_k is None else max(0, self.top_k)
        return [
            self.options(top_k=top_k, seed=self._seed_of(choice), **changes)
            for choice in range(self.num_choices)
        ]

    def _seed_of(self, choice: int) -> int | None:
        return None if self.seed is None else (self.seed + choice) % 2**63

    def constraint(self) -> Constraint | None:
        """The form of the answer, from OpenAI's field, vLLM's two generations of fields, or `rank`.

        Raises `InvalidRequest` for more than one.
        """
        one = self.structured_outputs or StructuredOutputs()
        old = StructuredOutputs(
            json=self.guided_json, regex=self.guided_regex, choice=self.guided_choice
        )
        forms = [
            of_fields({"response_format": self.response_format}),
            of_fields({"rank": self.rank}),
            *(each.constraint() for each in (one, old)),
        ]
        limiting = [form for form in forms if form not in (None, ANYTHING)]
        if len(limiting) > 1:
            raise InvalidRequest("the form of the answer is given twice")
        return limiting[0] if limiting else forms[0]


class CompletionRequest(OpenAIRequest):
    """One or several prompts, with `n` choices each."""

    prompt: Prompts
    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS, description="0 goes with `echo`.")
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES, description="As many as `n`.")
    echo: bool | None = None
    logprobs: NumTop | None = None

    def params(self) -> list[GenerateParams]:
        """One request for each choice. Raises `InvalidRequest` for what is not supported."""
        self.refuse_unsupported()
        if self.best_of not in (None, self.num_choices):
            raise UnsupportedParameter("best_of", "`best_of` other than `n` is not supported")
        if self.max_tokens == 0 and not self.echo:
            raise UnsupportedParameter("max_tokens", "`max_tokens` 0 goes with `echo` only")
        prompts = self._prompts()
        if len(prompts) * self.num_choices > MAX_CHOICES:
            raise UnsupportedParameter("n", f"at most {MAX_CHOICES} choices in one request")
        constraint = self.constraint()
        return [
            GenerateParams(
                prompt=prompt,
                fields=self.fields or {},
                options=options,
                default_max_tokens=DEFAULT_MAX_TOKENS,
                logprobs=self.logprobs,
                prompt_logprobs=self.logprobs if self.echo else None,
                constraint=constraint,
            )
            for prompt in prompts
            for options in self.per_choice()
        ]

    def _prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return cast("list[str | list[int]]", self.prompt)


class TextPart(Open):
    """A part of a message's content. Only text is supported."""

    unserved: ClassVar[Fields] = openai_fields.TEXT_PART

    type: Literal["text"]
    text: str


_CONTENT = 'must be a string, or a list of parts such as {"type": "text", "text": "..."}'
Content = Annotated[
    Annotated[str, Tag("(text)")]
    | Annotated[list[TextPart], Field(min_length=1, fail_fast=True), Tag("(parts)")],
    by_type({str: "(text)", list: "(parts)"}, _CONTENT),
]


class OpenAIMessage(Open):
    """A chat message. `developer` means `system`."""

    unserved: ClassVar[Fields] = openai_fields.MESSAGE

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None
    """Null beside tool calls, which are refused by their own name."""

    def plain(self, place: str) -> dict[str, str]:
        """Role and text as a chat template takes them. `place` is the message's, for errors.

        Raises `UnsupportedParameter`.
        """
        self.refuse_unsupported(f"{place}.")
        role = "system" if self.role == "developer" else self.role
        if self.content is None:
            raise UnsupportedParameter(
                f"{place}.content", f"`{place}.content` {_CONTENT}, not null"
            )
        if isinstance(self.content, str):
            return {"role": role, "content": self.content}
        for i, part in enumerate(self.content):
            part.refuse_unsupported(f"{place}.content[{i}].")
        return {"role": role, "content": "\n".join(part.text for part in self.content)}


class ChatRequest(OpenAIRequest):
    """Messages for the base model's chat template, after the task's prefix."""

    messages: list[OpenAIMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    logprobs: bool | None = None
    top_logprobs: NumTop | None = None

    @field_validator("messages", mode="before")
    @classmethod
    def _few_parts(cls, messages: Any) -> Any:
        """Count the parts before any is validated."""
        first = messages[:MAX_MESSAGES] if isinstance(messages, list) else []
        contents = (message.get("content") for message in first if isinstance(message, dict))
        if sum(len(content) for content in contents if isinstance(content, list)) > MAX_PARTS:
            raise ValueError(f"at most {MAX_PARTS} parts in all messages")
        return messages

    def params(self) -> list[GenerateParams]:
        """One request for each choice. Raises `InvalidRequest` for what is not supported."""
        self.refuse_unsupported()
        if self.top_logprobs is not None and not self.logprobs:
            raise UnsupportedParameter("top_logprobs", "`top_logprobs` needs `logprobs: true`")
        messages = [each.plain(f"messages[{i}]") for i, each in enumerate(self.messages)]
        max_tokens = self.max_completion_tokens
        if max_tokens is None:
            max_tokens = self.max_tokens
        constraint = self.constraint()
        return [
            GenerateParams(
                messages=messages,
                fields=self.fields or {},
                options=options,
                default_max_tokens=CHAT_MAX_TOKENS,
                logprobs=(self.top_logprobs or 0) if self.logprobs else None,
                constraint=constraint,
            )
            for options in self.per_choice(max_tokens=max_tokens)
        ]
