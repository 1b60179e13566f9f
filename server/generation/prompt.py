"""What a request asks for and what its task prescribes, made into token ids and sampling."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TypeVar

from prefix_store.manifest import Profile, PromptFormat
from server.engine.ipc.messages import EngineInfo
from server.engine.params import BASE_MODEL, RequestSampling, SamplingParams, SchedulingParams
from server.errors import InvalidRequest, NotAChat, PromptTooLong, TemplateMismatch
from server.generation.constraint import Constraint, of_profile
from server.generation.ranking import Candidates
from server.text import template
from server.text.template import Part
from server.text.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 64
NO_REQUEST_SAMPLING = RequestSampling()

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateParams:
    """What a request asks for. None: take it from the task's profile, then from the server."""

    prompt: str | list[int] | None = None
    messages: list[dict[str, str]] | None = None
    fields: dict[str, str] = field(default_factory=dict)
    max_tokens: int | None = None
    """0: only the prompt's log-probabilities."""
    default_max_tokens: int = DEFAULT_MAX_TOKENS
    """For a request and a profile that say nothing."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    ignore_eos: bool = False
    priority: int = 0
    """Lower goes earlier, among the requests of one task."""
    constraint: Constraint | None = None
    """What the answer has to be."""
    wishes: RequestSampling = NO_REQUEST_SAMPLING


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptContext:
    """What a prompt follows: a version's prefix, its task's profile and its place in the engine."""

    is_base: bool = False
    """No task at all: prompts are plain text, and messages a chat with the base model."""
    num_prefix_tokens: int = 0
    prompt_format: PromptFormat = field(default_factory=PromptFormat)
    profile: Profile = field(default_factory=Profile)
    queue: int = BASE_MODEL

    @property
    def is_chat(self) -> bool:
        """Whether a plain prompt is one user message. A prefix computed from messages is a chat,
        whatever the profile says: nothing but a further message can follow it."""
        return self.profile.chat or self.prompt_format.messages is not None

    @property
    def takes_conversations(self) -> bool:
        """A template goes around one prompt: no conversation fits into it."""
        return self.is_base or (self.is_chat and self.profile.template is None)


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A request that the engine can take."""

    token_ids: list[int]
    sampling: SamplingParams
    """Of one token, where none is wanted: the engine gives no prompt's scores without."""
    max_tokens: int
    stop: tuple[str, ...]
    scheduling: SchedulingParams
    candidates: Candidates | None = None
    """Instead of a completion: the texts to choose from."""

    @property
    def num_sequences(self) -> int:
        return 1 if self.candidates is None else len(self.candidates.texts)


def prepare(
    params: GenerateParams, behind: PromptContext, *, tokenizer: Tokenizer, info: EngineInfo
) -> EngineRequest:
    """Render, tokenise, fill in defaults, check limits. Slow for long prompts: off the event loop.

    Raises `TemplateMismatch`, `PromptTooLong`, `InvalidGrammar` and `InvalidRequest`.
    """
    _check_size(params, behind, tokenizer, info.max_model_len)
    token_ids = _token_ids(params, behind, tokenizer)
    if not token_ids:
        raise InvalidRequest("the prompt has no tokens")
    check_vocabulary(token_ids, info)
    check_vocabulary([token_id for token_id, _ in params.wishes.logit_bias], info)
    limit = behind.profile.limits.max_prompt_tokens
    if limit is not None and len(token_ids) > limit:
        raise InvalidRequest(f"{len(token_ids)} prompt tokens, this task takes {limit}")
    constraint = params.constraint or of_profile(behind.profile.defaults)
    if constraint.choices:
        _check_room(behind, len(token_ids), 0, info.max_model_len)  # before it is encoded with each
        wholes = [_token_ids(params, behind, tokenizer, text) for text in constraint.choices]
        for whole in wholes:
            check_vocabulary(whole, info)
        by = constraint.rank_by
        candidates = Candidates.of(constraint.choices, wholes, token_ids, by)
        return _ranked(params, behind, token_ids, candidates, info.max_model_len)
    max_tokens = _max_tokens(params, behind, len(token_ids), info.max_model_len)
    if params.wishes.min_tokens > max_tokens:
        raise InvalidRequest(f"min_tokens is {params.wishes.min_tokens}, max_tokens {max_tokens}")
    grammar = constraint.grammar()
    if grammar is not None and params.wishes.min_tokens:
        raise InvalidRequest("min_tokens does not go with an answer whose form says where it ends")
    return EngineRequest(
        token_ids,
        _sampling(params, behind.profile, max(1, max_tokens), grammar),
        max_tokens,
        _first(params.stop, behind.profile.defaults.stop, ()),
        _scheduling(params, behind),
    )


def check_vocabulary(token_ids: Iterable[int], info: EngineInfo) -> None:
    """Also of ids that a text became: some tokenizers hold tokens that the model has no embedding
    for. Raises `InvalidRequest`."""
    if max(token_ids, default=0) >= info.vocab_size:
        raise InvalidRequest(f"a token id beyond the model's vocabulary of {info.vocab_size}")


def prepare_all(
    params: Sequence[GenerateParams],
    behind: PromptContext,
    *,
    tokenizer: Tokenizer,
    info: EngineInfo,
) -> list[EngineRequest]:
    """`prepare` for each of them. What differs from the one before it in its seed only, as the
    choices of an answer do, is not tokenised again."""
    prepared: list[EngineRequest] = []
    for i, one in enumerate(params):
        if i and replace(one, seed=params[i - 1].seed) == params[i - 1]:
            sampling = replace(prepared[-1].sampling, seed=_seed(one, behind.profile))
            prepared.append(replace(prepared[-1], sampling=sampling))
        else:
            prepared.append(prepare(one, behind, tokenizer=tokenizer, info=info))
    return prepared


def check_profile(profile: Profile) -> str | None:
    """The grammar of its answers, if they have one.

    Raises `TemplateMismatch` for a template that no request could fill in, and `InvalidRequest` for
    answers that cannot be.
    """
    if profile.template is not None:
        template.parse(profile.template)
    return of_profile(profile.defaults).grammar()


# --- the prompt ---


def _token_ids(
    params: GenerateParams, behind: PromptContext, tokenizer: Tokenizer, then: str = ""
) -> list[int]:
    """`then`: a text after the prompt, as part of it."""
    if params.messages is not None and not behind.takes_conversations:
        params = replace(params, messages=None, prompt=_only_message(params.messages))
    if isinstance(params.prompt, list) or params.messages is not None:
        if params.fields:
            raise TemplateMismatch("`fields` go with a text `prompt` only")
        if isinstance(params.prompt, list):
            return params.prompt + tokenizer.encode(then, add_special_tokens=False)
    if params.messages is not None:
        return _chat_ids(params.messages, behind, tokenizer, then)
    parts = _parts(params, behind.profile)
    if behind.is_chat:
        content = "".join(part.text for part in parts)
        return _chat_ids([{"role": "user", "content": content}], behind, tokenizer, then)
    parts = [*parts, Part(then, trusted=False)] if then else parts
    add_special_tokens = behind.prompt_format.add_special_tokens
    return tokenizer.encode_parts(parts, add_special_tokens=add_special_tokens)


def _only_message(messages: list[dict[str, str]]) -> str:
    """The prompt of a task that takes one. Raises `NotAChat`."""
    if [message["role"] for message in messages] != ["user"]:
        raise NotAChat(
            "this task answers one prompt at a time: send exactly one user message, and no system "
            "message or conversation"
        )
    return messages[0]["content"]


def _parts(params: GenerateParams, profile: Profile) -> list[Part]:
    prompt = {} if params.prompt is None else {"prompt": str(params.prompt)}
    if profile.template is not None:
        if "prompt" in params.fields and prompt:
            raise TemplateMismatch("`prompt` is given twice: beside and among the fields")
        return template.render(profile.template, prompt | params.fields)
    if params.fields:
        raise TemplateMismatch("`fields` are given, and the task has no template")
    assert prompt, "the API takes no request without a prompt, messages or fields"
    return [Part(prompt["prompt"], trusted=False)]


def _chat_ids(
    messages: list[dict[str, str]], behind: PromptContext, tokenizer: Tokenizer, then: str
) -> list[int]:
    held = [{"role": m.role, "content": m.content} for m in behind.prompt_format.messages or ()]
    token_ids = tokenizer.encode_chat(messages, after=held, then=then)
    if held or behind.prompt_format.add_special_tokens:
        return token_ids
    return tokenizer.without_bos(token_ids)


# --- choices ---


def _ranked(
    params: GenerateParams,
    behind: PromptContext,
    prompt_ids: list[int],
    candidates: Candidates,
    max_model_len: int,
) -> EngineRequest:
    num_tokens = max(map(len, candidates.token_ids)) - len(prompt_ids) + 1
    _check_room(behind, len(prompt_ids), num_tokens, max_model_len)
    wishes = RequestSampling(
        prompt_logprobs=params.wishes.logprobs or 0, first_scored=candidates.num_shared
    )
    sampling = SamplingParams(max_tokens=1, **asdict(wishes))
    return EngineRequest(prompt_ids, sampling, 0, (), _scheduling(params, behind), candidates)


# --- sampling and limits ---


def _check_size(
    params: GenerateParams, behind: PromptContext, tokenizer: Tokenizer, max_model_len: int
) -> None:
    """Before anything is tokenised: whether it could fit at all. Raises `PromptTooLong`."""
    texts = [message["content"] for message in params.messages or []] + [*params.fields.values()]
    texts += [params.prompt] if isinstance(params.prompt, str) else []
    num_tokens = tokenizer.least_tokens(texts)
    if behind.num_prefix_tokens + num_tokens > max_model_len:
        raise PromptTooLong(
            prefix_tokens=behind.num_prefix_tokens,
            prompt_tokens=num_tokens,
            max_tokens=None,
            limit=max_model_len,
        )


def _max_tokens(
    params: GenerateParams, behind: PromptContext, num_prompt_tokens: int, max_model_len: int
) -> int:
    """What was asked for must fit; a default is cut to what the context and the task leave."""
    limit = behind.profile.limits.max_tokens
    asked = params.max_tokens
    if asked is not None and limit is not None and asked > limit:
        raise InvalidRequest(f"max_tokens is {asked}, this task allows {limit}")
    room = max_model_len - behind.num_prefix_tokens - num_prompt_tokens
    default = _first(behind.profile.defaults.max_tokens, params.default_max_tokens)
    num_tokens = asked if asked is not None else max(1, min(default, room, limit or default))
    _check_room(behind, num_prompt_tokens, num_tokens, max_model_len)
    return num_tokens


def _check_room(
    behind: PromptContext, num_prompt_tokens: int, num_tokens: int, max_model_len: int
) -> None:
    if behind.num_prefix_tokens + num_prompt_tokens + num_tokens > max_model_len:
        raise PromptTooLong(
            prefix_tokens=behind.num_prefix_tokens,
            prompt_tokens=num_prompt_tokens,
            max_tokens=num_tokens,
            limit=max_model_len,
        )


def _sampling(
    params: GenerateParams, profile: Profile, max_tokens: int, grammar: str | None
) -> SamplingParams:
    defaults = profile.defaults
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_first(params.temperature, defaults.temperature, 0.0),
        top_p=_first(params.top_p, defaults.top_p, 1.0),
        top_k=_first(params.top_k, defaults.top_k, 0),
        seed=_seed(params, profile),
        ignore_eos=params.ignore_eos,
        grammar=grammar,
        **asdict(params.wishes),
    )


def _seed(params: GenerateParams, profile: Profile) -> int:
    return _first(params.seed, profile.defaults.seed, secrets.randbits(63))


def _scheduling(params: GenerateParams, behind: PromptContext) -> SchedulingParams:
    return SchedulingParams(
        queue=behind.queue,
        weight=behind.profile.weight,
        max_concurrency=behind.profile.limits.max_concurrency,
        priority=params.priority,
    )


def _first(*values: T | None) -> T:
    """The first that is not none."""
    return next(value for value in values if value is not None)
