"""Messages between the API process and the engine process.

A frame is a 4-byte little-endian length and a msgpack body (msgspec, tagged unions). Nothing is
pickled and no tensor is sent: the engine reads and writes prefix artifacts in the blob store, by
digest.
"""

from __future__ import annotations

import struct
from typing import Literal

import msgspec

from server.engine.params import DEFAULT_SCHEDULING, Delta, SamplingParams, SchedulingParams


class IpcMessage(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base class of all messages; the tag on the wire is the class name."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of the engine process, sent as the first frame."""

    model: str
    blobs: str
    """Root folder of the blob store, or its URL."""
    blob_cache: str = ""
    """Folder for copies of remote blobs."""
    blob_cache_bytes: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "ref", "cpu", "native", "triton"] = "auto"
    quantization: Literal["none", "int8"] = "none"
    num_threads: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_extra_tokens_per_key: int | None = None
    kv_cache_bytes: int | None = None
    device_prefix_bytes: int | None = None
    host_prefix_bytes: int = 1 << 30
    prompt_cache: bool = True


# --- API process -> engine process ---------------------------------------------------------------


class Submit(IpcMessage, frozen=True):
    """Generate, with or without a prefix. Answered by `Tokens` deltas, or by one `Failed`."""

    request_id: int
    prefix: str | None
    """Digest of the artifact; None for the base model."""
    token_ids: list[int]
    sampling: SamplingParams
    scheduling: SchedulingParams = DEFAULT_SCHEDULING


class Cancel(IpcMessage, frozen=True):
    """Cancel a request of any kind. Answered for a `CompilePrefix` only, by its one answer:
    `PrefixCompiled` if the artifact is being written already, else `Failed`."""

    request_id: int


class Load(IpcMessage, frozen=True):
    """Make a prefix resident ahead of requests. Answered by `Loaded` or `Failed`."""

    request_id: int
    prefix: str


class Unload(IpcMessage, frozen=True):
    """Evict a prefix, unless it is in use or pinned. Answered by `Unloaded`."""

    request_id: int
    prefix: str


class Pin(IpcMessage, frozen=True):
    """Make a prefix resident and keep it resident. Answered by `Loaded` or `Failed`."""

    request_id: int
    prefix: str


class Unpin(IpcMessage, frozen=True):
    """Allow a prefix to be evicted again. Not answered."""

    prefix: str


class PreviewEviction(IpcMessage, frozen=True):
    """List what a load of `num_bytes` would evict. Answered by `EvictionPreview`."""

    request_id: int
    num_bytes: int


class Verify(IpcMessage, frozen=True):
    """Run a prompt without and then with a prefix. Answered by `Verified` or `Failed`."""

    request_id: int
    prefix: str
    token_ids: list[int]


class CompilePrefix(IpcMessage, frozen=True):
    """Compute a prefix by one forward pass. Answered by `PrefixCompiled` or `Failed`.

    Exactly one of `token_ids` and `embeddings` is set. `embeddings` is the digest of a safetensors
    blob with one tensor `embeddings` of shape [L, hidden_size].
    """

    request_id: int
    token_ids: list[int] | None
    embeddings: str | None
    origin: dict[str, str]
    """Written into the artifact's metadata."""


class Drain(IpcMessage, frozen=True):
    """Finish all requests, then exit."""


Request = (
    Submit | Cancel | Load | Unload | Pin | Unpin | PreviewEviction | Verify | CompilePrefix | Drain
)


# --- engine process -> API process ---------------------------------------------------------------


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The loaded model and the limits of the engine."""

    model: str
    fingerprint: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    kv_norms: list[tuple[float, float]] = []
    """Per layer, the largest norms of a key and of a value that the model computes itself."""
    vocab_size: int
    dtype: str
    device: str
    attention: str
    max_model_len: int
    """Prefix + prompt + completion of one request, in tokens."""
    max_num_seqs: int
    kv_pool_tokens: int
    """Tokens that the KV pool holds, without prefixes."""
    eos_token_ids: list[int]
    generation_defaults: dict[str, int | float] = {}
    """What the model's `generation_config.json` sets, for requests without a task."""


class EngineStats(msgspec.Struct, kw_only=True):
    """Gauges, and counters since the engine process started."""

    num_waiting: int = 0
    num_running: int = 0
    num_loading: int = 0
    num_steps: int = 0
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    """Prompt tokens that were served from the prompt cache."""
    last_batch_size: int = 0
    step_time_s: float = 0.0
    """Total time of all steps."""
    kv_pages_used: int = 0
    kv_pages_total: int = 0
    kv_pages_cached: int = 0
    """Free pages that hold cached prompts."""
    prefix_device_bytes: int = 0
    prefix_host_bytes: int = 0
    prefix_loads: int = 0
    prefix_evictions: int = 0
    prefixes_on_device: list[str] = []
    prefixes_on_host: list[str] = []


class Ready(IpcMessage, frozen=True):
    """The model is loaded. The first frame from the engine."""

    info: EngineInfo


class Tokens(IpcMessage, frozen=True):
    """The tokens sampled in one step, for all of its requests."""

    deltas: list[Delta]


class Failed(IpcMessage, frozen=True):
    """Failure of one request, load, pin, verification or compile. `code`: see server.errors."""

    request_id: int
    code: str
    message: str


class Loaded(IpcMessage, frozen=True):
    """The prefix is resident; for a `Pin`, it is also pinned."""

    request_id: int


class Unloaded(IpcMessage, frozen=True):
    """The answer to `Unload`."""

    request_id: int
    was_evicted: bool
    """False if the prefix is in use or pinned, and therefore kept."""


class EvictionPreview(IpcMessage, frozen=True):
    """The answer to `PreviewEviction`."""

    request_id: int
    fits: bool
    """Whether evictions could make enough room now."""
    evicted: list[str]
    """Digests of the prefixes that would be evicted."""


class Verified(IpcMessage, frozen=True):
    """The verification passed: all logits are finite."""

    request_id: int
    effect: float
    """RMS change of the next token's logits by the prefix, relative to the RMS of the logits."""


class PrefixCompiled(IpcMessage, frozen=True):
    """The prefix is computed and its artifact is in the blob store."""

    request_id: int
    digest: str
    num_virtual_tokens: int
    num_bytes: int
    is_new: bool
    """The blob store did not hold the artifact before."""
    put_at: float
    """Unix time of the put, by the store's clock."""


class Heartbeat(IpcMessage, frozen=True):
    """Sent by the step loop itself about once a second, as proof that the loop is running."""

    stats: EngineStats


Reply = Loaded | Unloaded | EvictionPreview | Verified | PrefixCompiled
Event = Ready | Tokens | Failed | Heartbeat | Reply


# --- frames --------------------------------------------------------------------------------------

HEADER = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()


def frame(message: IpcMessage | EngineConfig) -> bytes:
    """Encode a message as a frame."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body
