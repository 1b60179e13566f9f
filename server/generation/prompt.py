"""From a request and its version's definition to token ids and sampling parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from prefix_store.definition import Definition, PromptFormat
from prefix_store.manifest import Profile
from prefix_store.sampling import Rank
from server.engine.ipc.messages import EngineInfo
from server.engine.params import BASE_MODEL, SamplingParams, SchedulingParams
from server.errors import InvalidRequest, NotAChat, TemplateMismatch
from server.generation.constraint import Constraint, of_defaults
from server.generation.limits import check_room, check_scores, check_size
from server.generation.ranking import Candidates
from server.generation.sampling import RequestOptions, sampling_params, seed_of
from server.text import template
from server.text.template import Part
from server.text.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateParams:
    """One request. What is None comes from the version's definition, then from the server."""

    prompt: str | list[int] | None = None
    messages: list[dict[str, str]] | None = None
    fields: dict[str, str] = field(default_factory=dict)
    options: RequestOptions = field(default_factory=RequestOptions)
    """With `max_tokens` 0 only the prompt is scored."""
    default_max_tokens: int = DEFAULT_MAX_TOKENS
    """Used where neither the request nor its task sets `max_tokens`."""
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None
    """The form of the answer. None: the task's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptContext:
    """What comes before a prompt, and applies to it: a version and its task's profile."""

    is_base: bool = False
    """No task: a prompt is plain text, and messages are a chat with the base model."""
    num_prefix_tokens: int = 0
    definition: Definition = field(default_factory=Definition)
    profile: Profile = field(default_factory=Profile)
    """Limits and weight; the definition's fields in it may be those of another version."""
    queue: int = BASE_MODEL

    @property
    def prompt_format(self) -> PromptFormat:
        return self.definition.prompt_format

    @property
    def is_chat(self) -> bool:
        """Whether a plain prompt is one user message. True for every prefix computed from messages,
        because only a further message can follow it."""
        return self.definition.chat or self.prompt_format.messages is not None

    @property
    def takes_conversations(self) -> bool:
        """Whether `messages` may be any conversation. A template takes only one prompt."""
        return self.is_base or (self.is_chat and self.definition.template is None)


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A request as the engine takes it."""

    token_ids: list[int]
    sampling: SamplingParams
    """Its `max_tokens` is 1 where none are wanted: the engine scores no prompt without a token."""
    max_tokens: int
    stop: tuple[str, ...]
    scheduling: SchedulingParams
    candidates: Candidates | None = None
    """Texts to rank, instead of a completion."""

    @property
    def num_sequences(self) -> int:
        return 1 if self.candidates is None else len(self.candidates.token_ids)

    @property
    def num_scores(self) -> int:
        """Number of log-probabilities that the answer may have."""
        prompt, own = self.sampling.prompt_logprobs, self.sampling.logprobs
        if self.candidates is not None:
            assert prompt is not None
            num_scored = sum(map(len, self.candidates.token_ids))
            return (num_scored - self.candidates.num_shared * self.num_sequences) * (1 + prompt)
        num_scores = 0 if prompt is None else len(self.token_ids) * (1 + prompt)
        return num_scores + (0 if own is None else self.max_tokens * (1 + own))


def prepare(
    params: GenerateParams, context: PromptContext, *, tokenizer: Tokenizer, info: EngineInfo
) -> EngineRequest:
    """Render, tokenise, fill in defaults, check limits. Slow for long prompts: off the event loop.

    Raises `TemplateMismatch`, `PromptTooLong`, `InvalidGrammar` and `InvalidRequest`.
    """
    token_ids = _prompt_ids(params, context, tokenizer, info)
    check_vocabulary(map(int, params.options.logit_bias or ()), info)
    constraint = params.constraint or of_defaults(context.definition.defaults)
    if constraint.rank is not None:
        return _ranked(params, context, constraint.rank, token_ids, tokenizer=tokenizer, info=info)
    options, defaults = params.options, context.definition.defaults
    max_tokens = _max_tokens(params, context, len(token_ids), info.max_model_len)
    min_tokens = options.min_tokens or 0
    if min_tokens > max_tokens:
        raise InvalidRequest(f"min_tokens is {min_tokens}, max_tokens {max_tokens}")
    grammar = constraint.grammar()
    if grammar is not None and min_tokens:
        raise InvalidRequest("min_tokens cannot be combined with a form of the answer")
    sampling = sampling_params(
        options,
        defaults,
        max_tokens=max(1, max_tokens),
        grammar=grammar,
        logprobs=params.logprobs,
        prompt_logprobs=params.prompt_logprobs,
    )
    check_vocabulary(sampling.stop_token_ids, info)
    stop = options.stop if options.stop is not None else defaults.stop or ()
    return EngineRequest(token_ids, sampling, max_tokens, stop, _scheduling(params, context))


def check_vocabulary(token_ids: Iterable[int], info: EngineInfo) -> None:
    """Check that the model has all token ids, which is not certain for tokenised text either: some
    tokenizers have tokens without an embedding. Raises `InvalidRequest`."""
    if max(token_ids, default=0) >= info.vocab_size:
        raise InvalidRequest(f"a token id beyond the model's vocabulary of {info.vocab_size}")


def prepare_all(
    params: Sequence[GenerateParams],
    context: PromptContext,
    *,
    tokenizer: Tokenizer,
    info: EngineInfo,
) -> list[EngineRequest]:
    """Prepare each request. One that differs from its predecessor in the seed only, as the choices
    of one prompt do, is not tokenised again. Raises what `prepare` raises."""
    prepared: list[EngineRequest] = []
    for i, one in enumerate(params):
        if i and _without_seed(one) == _without_seed(params[i - 1]):
            seed = seed_of(one.options, context.definition.defaults)
            sampling = replace(prepared[-1].sampling, seed=seed)
            prepared.append(replace(prepared[-1], sampling=sampling))
        else:
            prepared.append(prepare(one, context, tokenizer=tokenizer, info=info))
    check_scores(sum(one.num_scores for one in prepared))
    return prepared


def _without_seed(params: GenerateParams) -> GenerateParams:
    return replace(params, options=params.options.options(seed=None))


# --- the prompt ---


def _prompt_ids(
    params: GenerateParams, context: PromptContext, tokenizer: Tokenizer, info: EngineInfo
) -> list[int]:
    """Token ids of the prompt, within the limits of the model and the task."""
    check_size(_texts(params), tokenizer, context.num_prefix_tokens, info)
    token_ids = _token_ids(params, context, tokenizer, info)
    if not token_ids:
        raise InvalidRequest("the prompt has no tokens")
    check_vocabulary(token_ids, info)
    limit = context.profile.limits.max_prompt_tokens
    if limit is not None and len(token_ids) > limit:
        raise InvalidRequest(f"{len(token_ids)} prompt tokens, this task takes {limit}")
    return token_ids


def _token_ids(
    params: GenerateParams,
    context: PromptContext,
    tokenizer: Tokenizer,
    info: EngineInfo,
    then: str = "",
) -> list[int]:
    """Token ids of the prompt followed by the text `then`, tokenised as one text."""
    if params.messages is not None and not context.takes_conversations:
        params = replace(params, messages=None, prompt=_only_message(params.messages))
    if isinstance(params.prompt, list) or params.messages is not None:
        if params.fields:
            raise TemplateMismatch("`fields` go with one text only: no token ids, no conversation")
        if isinstance(params.prompt, list):
            return params.prompt + tokenizer.encode(then, add_special_tokens=False)
    if params.messages is not None:
        return _chat_ids(params.messages, context, tokenizer, then)
    parts = template.fill(context.definition.template, params.prompt, params.fields)
    # A template may repeat a field.
    check_size([p.text for p in parts], tokenizer, context.num_prefix_tokens, info)
    if context.is_chat:
        content = "".join(part.text for part in parts)
        return _chat_ids([{"role": "user", "content": content}], context, tokenizer, then)
    parts = [*parts, Part(then, trusted=False)] if then else parts
    add_special_tokens = context.prompt_format.add_special_tokens
    return tokenizer.encode_parts(parts, add_special_tokens=add_special_tokens)


def _only_message(messages: list[dict[str, str]]) -> str:
    """The prompt of a task that takes no conversations. Raises `NotAChat`."""
    if [message["role"] for message in messages] != ["user"]:
        raise NotAChat(
            "this task answers one prompt at a time: send exactly one user message, and no system "
            "message or conversation"
        )
    return messages[0]["content"]


def _chat_ids(
    messages: list[dict[str, str]], context: PromptContext, tokenizer: Tokenizer, then: str
) -> list[int]:
    previous = [
        {"role": m.role, "content": m.content} for m in context.prompt_format.messages or ()
    ]
    token_ids = tokenizer.encode_chat(messages, after=previous, then=then)
    if previous or context.prompt_format.add_special_tokens:
        return token_ids
    return tokenizer.without_bos(token_ids)


# --- ranking ---


def _ranked(
    params: GenerateParams,
    context: PromptContext,
    rank: Rank,
    prompt_ids: list[int],
    *,
    tokenizer: Tokenizer,
    info: EngineInfo,
) -> EngineRequest:
    """A request that scores the texts of `rank` and generates nothing."""
    # Checked first: a prompt that is too long is not encoded once more with every text.
    check_room(context.num_prefix_tokens, len(prompt_ids), 0, info.max_model_len)
    encoded = [_token_ids(params, context, tokenizer, info, text) for text in rank.texts]
    for ids in encoded:
        check_vocabulary(ids, info)
    candidates = Candidates.of(rank, encoded, prompt_ids)
    num_tokens = max(map(len, encoded)) - len(prompt_ids) + 1
    check_room(context.num_prefix_tokens, len(prompt_ids), num_tokens, info.max_model_len)
    sampling = SamplingParams(
        max_tokens=1, prompt_logprobs=params.logprobs or 0, first_scored=candidates.num_shared
    )
    return EngineRequest(prompt_ids, sampling, 0, (), _scheduling(params, context), candidates)


# --- sampling and limits ---


def _texts(params: GenerateParams) -> list[str]:
    texts = [message["content"] for message in params.messages or []] + [*params.fields.values()]
    return texts + ([params.prompt] if isinstance(params.prompt, str) else [])


def _max_tokens(
    params: GenerateParams, context: PromptContext, num_prompt_tokens: int, max_model_len: int
) -> int:
    """Number of tokens to generate. A requested number must fit; a default is cut to what does."""
    limit = context.profile.limits.max_tokens
    requested = params.options.max_tokens
    if requested is not None and limit is not None and requested > limit:
        raise InvalidRequest(f"max_tokens is {requested}, this task allows {limit}")
    room = max_model_len - context.num_prefix_tokens - num_prompt_tokens
    default = context.definition.defaults.max_tokens or params.default_max_tokens
    num_tokens = (
        requested if requested is not None else max(1, min(default, room, limit or default))
    )
    check_room(context.num_prefix_tokens, num_prompt_tokens, num_tokens, max_model_len)
    return num_tokens


def _scheduling(params: GenerateParams, context: PromptContext) -> SchedulingParams:
    return SchedulingParams(
        queue=context.queue,
        weight=context.profile.weight,
        max_concurrency=context.profile.limits.max_concurrency,
        priority=params.options.priority or 0,
    )
