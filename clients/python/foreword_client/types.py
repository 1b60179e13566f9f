"""What comes back from the server. Unknown fields are ignored, so newer servers stay readable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Base class of everything here: frozen, and open for fields of newer servers."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class GenerateOptions(TypedDict, total=False):
    """What a request can say. What is left out, or None, comes from the task's profile."""

    messages: Sequence[Mapping[str, str]] | None
    """A chat instead of a prompt: `{"role": ..., "content": ...}`."""
    fields: Mapping[str, str] | None
    """For the named fields of the task's template."""
    max_tokens: int | None
    temperature: float | None
    """0 is greedy."""
    top_p: float | None
    top_k: int | None
    """0: all tokens."""
    min_p: float | None
    """Drops tokens below this share of the most likely token's probability."""
    seed: int | None
    stop: str | list[str] | None
    stop_token_ids: Sequence[int] | None
    """Tokens that end the text and are not part of it."""
    ignore_eos: bool | None
    """Go on to `max_tokens`, whatever the model says."""
    min_tokens: int | None
    """Before so many tokens the text does not end."""
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    """1 is none."""
    logit_bias: Mapping[str, float] | None
    """By token id."""
    logprobs: int | None
    """Log-probabilities of the tokens, and of so many of the likeliest in their places."""
    prompt_logprobs: int | None
    """The same of the prompt's tokens."""
    response_format: Mapping[str, Any] | None
    """The answer is JSON: `{"type": "json_object"}`, or of a schema: `{"type": "json_schema",
    "json_schema": {"name": ..., "schema": {...}}}`. `{"type": "text"}`: anything, also where the
    task's profile says otherwise."""
    regex: str | None
    """The answer matches it from start to end."""
    choice: Sequence[str] | None
    """The answer is generated, and is one of these."""
    rank: Mapping[str, Any] | None
    """Nothing is generated: the answer is the most likely of `{"texts": [...], "by": "sum"}`, by
    `sum` or `mean` of the log-probabilities of a text's tokens. See `Generation.ranking`."""
    priority: int | None
    """Lower goes earlier, among the requests of one task; 0 where nothing is said."""
    traffic_key: str | None
    """Requests with the same key get the same version, where versions share the traffic."""
    return_token_ids: bool | None


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


class KeyOptions(TypedDict, total=False):
    """How long a key is valid, and how much it allows. What is left out has no limit."""

    expires_at: datetime | None
    """With a time zone."""
    requests_per_s: float | None
    burst: int | None
    """Requests that may come at once."""
    max_concurrency: int | None
    """Requests that may run at once."""


class Usage(Answer):
    """Tokens of one request."""

    prefix_tokens: int
    prompt_tokens: int
    cached_tokens: int = 0
    """Of the prompt; found computed."""
    completion_tokens: int


class Timings(Answer):
    """Milliseconds since the request arrived at the server."""

    queue_ms: float
    first_token_ms: float | None = None
    total_ms: float


class LikelyToken(Answer):
    """A token that could have come."""

    token_id: int
    token: str
    logprob: float


class ScoredToken(Answer):
    """A token, and those that were likeliest in its place."""

    token_id: int
    token: str
    logprob: float | None = None
    """None for a prompt's first token."""
    top: list[LikelyToken]


class RankedText(Answer):
    """One of the texts of a ranking."""

    text: str
    logprob: float
    """Log-probability after the prompt: sum over its tokens."""
    num_tokens: int
    probability: float
    """Relative to the other texts: all add up to 1."""


class Generation(Answer):
    """A completion, and the version of the task that made it."""

    id: str
    task: str | None = None
    version: int | None = None
    digest: str | None = None
    text: str
    token_ids: list[int] | None = None
    """Only where `return_token_ids` was asked for."""
    logprobs: list[ScoredToken] | None = None
    prompt_logprobs: list[ScoredToken] | None = None
    finish_reason: str
    """`stop` or `length`."""
    ranking: list[RankedText] | None = None
    """With `rank`: its texts in their order, scored."""
    usage: Usage
    timings: Timings


class Token(Answer):
    """Some more of a streamed completion: usually one token, sometimes several."""

    text: str
    token_ids: list[int] | None = None
    logprobs: list[ScoredToken] | None = None


class Message(Answer):
    """One chat message."""

    role: str
    content: str


class PromptFormat(Answer):
    """How prompts that follow a prefix are made."""

    add_special_tokens: bool = True
    messages: list[Message] | None = None
    """The chat messages the prefix was computed from; a request's messages continue them."""


class Check(Answer):
    """One line of a verification report."""

    name: str
    passed: bool
    detail: str = ""


class GoldenPrompt(Answer):
    """A prompt, and how its greedy answer must begin."""

    prompt: str
    expect: str | list[int]


class Evaluation(Answer):
    """What was measured before an upload, by whoever trained the prefix."""

    num_examples: int
    scores: dict[str, float]


class Manifest(Answer):
    """One version of a task. Immutable."""

    task: str
    version: int
    digest: str
    num_virtual_tokens: int
    position_offset: int = 0
    num_bytes: int
    dtype: str = ""
    base_model: str = ""
    fingerprint: str = ""
    source_format: str = ""
    source_digest: str = ""
    """Of the bytes that were uploaded."""
    prompt: PromptFormat = PromptFormat()
    golden: list[GoldenPrompt] = []
    """Those that came with the upload."""
    evaluation: Evaluation | None = None
    verification: list[Check] = []
    created_at: datetime
    created_by: str | None = None


class Uploaded(Manifest):
    """The version that a push made, and whether it answers already."""

    active: bool = False
    warning: str | None = None
    """A check that did not pass, or why the prefix could not be loaded at once."""


class Rehearsal(Uploaded):
    """The version that a push would make, and what it would take."""

    device_bytes: int
    """Of its prefix, on the device, about."""
    fits: bool
    """Beside the prefixes that are in use or pinned."""
    evicted: list[str]
    """Digests of the prefixes that would make room for it."""


class Version(Manifest):
    """A version, and where its prefix is."""

    residency: str | None = None
    """`device`, `host` or `disk`."""
    pinned: bool = False
    """It stays on the device."""


class Residency(Answer):
    """Where a version's prefix is."""

    task: str
    version: int
    digest: str
    residency: str
    """`device`, `host` or `disk`, as the engine last said."""
    pinned: bool


class Report(Answer):
    """What was checked of a stored version, just now."""

    task: str
    version: int
    digest: str
    passed: bool
    verification: list[Check]


class Traffic(Answer):
    """Who gets a task's requests: the versions with a weight, or all of them the active one."""

    task: str
    active_version: int | None = None
    weights: dict[int, int] | None = None
    warning: str | None = None


class Rank(Answer):
    """Texts of which the most likely is the answer."""

    texts: list[str]
    by: str = "sum"
    """`sum` or `mean` of the log-probabilities of a text's tokens."""


class Defaults(Answer):
    """A task's sampling parameters for what a request leaves out."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    response_format: dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    rank: Rank | None = None


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
    golden: list[GoldenPrompt] = []
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


class Activation(Answer):
    """One line of a task's history."""

    seq: int
    version: int
    action: str
    """`activate`, `rollback` or `traffic`."""
    weights: dict[int, int] | None = None
    """Of the versions that share the traffic from here on."""
    at: datetime
    by: str | None = None


class Versions(Answer):
    """All versions of a task, and the history of its active one."""

    task: str
    active_version: int | None = None
    versions: list[Version]
    quarantined: list[int] = []
    """Those whose stored bytes have changed. Pushing them again heals them."""
    history: list[Activation] = []


class Activated(Answer):
    """What answers from now on."""

    task: str
    active_version: int
    digest: str
    warning: str | None = None
    """Why the prefix could not be loaded at once."""


class Key(Answer):
    """What a key allows; not the key itself."""

    id: str
    name: str
    scopes: list[str]
    """Of generate, read, write, promote, delete, admin."""
    tasks: list[str] = ["*"]
    """Patterns of task names; `*` is all, and the base model."""
    expires_at: datetime | None = None
    requests_per_s: float | None = None
    burst: int | None = None
    max_concurrency: int | None = None
    created_at: datetime
    created_by: str | None = None
    """The id of the key that made it."""
    revoked_at: datetime | None = None


class CreatedKey(Key):
    """A new key."""

    key: str
    """The key itself. It is shown this once."""


class KeyList(Answer):
    """All keys of a server."""

    keys: list[Key]


class AuditEntry(Answer):
    """One change: who asked for it, and what it was."""

    seq: int
    at: datetime
    by: str | None = None
    """The id of the key that asked for it."""
    peer: str | None = None
    request_id: str | None = None
    action: str
    task: str | None = None
    version: int | None = None
    digest: str | None = None
    """Of the artifact that was pushed, or of the profile that was set."""
    key: str | None = None
    """The id of the key that was created or revoked."""
    prev_hash: str
    hash: str


class AuditPage(Answer):
    """Some rows of the audit."""

    entries: list[AuditEntry]
    next_after: int | None = None


class ServerLimits(Answer):
    """What a server takes at most. None: it does not say."""

    max_model_len: int | None = None
    max_prefix_tokens: int | None = None
    max_num_seqs: int | None = None
    max_upload_bytes: int | None = None
    max_body_bytes: int | None = None


class Info(Answer):
    """The base model and the server around it."""

    version: str = ""
    model: str
    fingerprint: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int | None = None
    vocab_size: int | None = None
    dtype: str
    device: str = ""
    attention: str = ""
    eos_token_ids: list[int] = []
    chat_template: bool = False
    limits: ServerLimits = ServerLimits()
