"""What crosses the boundary between the API process and the engine process.

Frames of a 4-byte little-endian length and a msgpack body (msgspec, tagged unions). No pickle, no
tensor: the engine reads and writes prefix artifacts in the blob store, by digest.
"""

from __future__ import annotations

import struct
from typing import Literal

import msgspec

from server.engine.params import DEFAULT_SCHEDULING, Delta, SamplingParams, SchedulingParams


class IpcMessage(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base class: the tag is the class name."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the settings that the engine process needs; its first frame."""

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
    kv_cache_bytes: int | None = None
    device_prefix_bytes: int | None = None
    host_prefix_bytes: int = 1 << 30
    prompt_cache: bool = True


# --- API process -> engine process ---------------------------------------------------------------


class Submit(IpcMessage, frozen=True):
    """Generate behind a prefix; answered by `Tokens` deltas or one `Failed`."""

    request_id: int
    prefix: str | None
    """Digest of the artifact, or none for the base model."""
    token_ids: list[int]
    sampling: SamplingParams
    scheduling: SchedulingParams = DEFAULT_SCHEDULING


class Cancel(IpcMessage, frozen=True):
    """Drop a request. Not answered."""

    request_id: int


class Load(IpcMessage, frozen=True):
    """Make a prefix resident before anyone asks for it. Answered by `Loaded` or `Failed`."""

    request_id: int
    prefix: str


class Unload(IpcMessage, frozen=True):
    """Evict a prefix, unless a sequence or a pin refers to it. Answered by `Unloaded`."""

    request_id: int
    prefix: str


class Pin(IpcMessage, frozen=True):
    """Make a prefix resident, and keep it so. Answered by `Loaded` or `Failed`."""

    request_id: int
    prefix: str


class Unpin(IpcMessage, frozen=True):
    """Let a prefix be evicted again. Not answered."""

    prefix: str


class PreviewEviction(IpcMessage, frozen=True):
    """What one more prefix of so many bytes would push out. Answered by `EvictionPreview`."""

    request_id: int
    num_bytes: int


class Verify(IpcMessage, frozen=True):
    """Run a prompt without a prefix, then behind it; answered by `Verified` or `Failed`."""

    request_id: int
    prefix: str
    token_ids: list[int]


class CompilePrefix(IpcMessage, frozen=True):
    """Compute a prefix by one forward pass; answered by `PrefixCompiled` or `Failed`.

    Exactly one of `token_ids` and `embeddings` is set. `embeddings` is the digest of a safetensors
    blob with one tensor `embeddings` of shape [L, hidden_size].
    """

    request_id: int
    token_ids: list[int] | None
    embeddings: str | None
    origin: dict[str, str]
    """Written into the artifact's metadata."""


class Drain(IpcMessage, frozen=True):
    """Finish what runs, then exit."""


Request = (
    Submit | Cancel | Load | Unload | Pin | Unpin | PreviewEviction | Verify | CompilePrefix | Drain
)


# --- engine process -> API process ---------------------------------------------------------------


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine loaded and how much it holds."""

    model: str
    fingerprint: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    kv_norms: list[tuple[float, float]] = []
    """Of every layer: the longest key and the longest value of a token of the model's own."""
    vocab_size: int
    dtype: str
    device: str
    attention: str
    max_model_len: int
    """Prefix + prompt + completion of one request, in tokens."""
    max_num_seqs: int
    eos_token_ids: list[int]


class EngineStats(msgspec.Struct, kw_only=True):
    """Gauges and running totals since the engine process started."""

    num_waiting: int = 0
    num_running: int = 0
    num_loading: int = 0
    num_steps: int = 0
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    """Prompt tokens that were found computed."""
    last_batch_size: int = 0
    step_time_s: float = 0.0
    """Sum over all steps."""
    kv_pages_used: int = 0
    kv_pages_total: int = 0
    kv_pages_cached: int = 0
    """In nobody's use, and full of prompts that may come again."""
    prefix_device_bytes: int = 0
    prefix_host_bytes: int = 0
    prefix_loads: int = 0
    prefix_evictions: int = 0
    prefixes_on_device: list[str] = []
    prefixes_on_host: list[str] = []


class Ready(IpcMessage, frozen=True):
    """The model is loaded; the first frame from the engine."""

    info: EngineInfo


class Tokens(IpcMessage, frozen=True):
    """What one step made, for all its requests."""

    deltas: list[Delta]


class Failed(IpcMessage, frozen=True):
    """A request, load or compile that failed alone. `code` is one of server.errors."""

    request_id: int
    code: str
    message: str


class Loaded(IpcMessage, frozen=True):
    request_id: int


class Unloaded(IpcMessage, frozen=True):
    request_id: int
    was_evicted: bool
    """False where something still refers to it."""


class EvictionPreview(IpcMessage, frozen=True):
    request_id: int
    fits: bool
    evicted: list[str]


class Verified(IpcMessage, frozen=True):
    """All logits are finite."""

    request_id: int
    effect: float
    """How far the prefix moves the logits of the next token, relative to the logits themselves."""


class PrefixCompiled(IpcMessage, frozen=True):
    """The artifact lies in the blob store."""

    request_id: int
    digest: str
    num_virtual_tokens: int
    num_bytes: int
    is_new: bool
    """It did not lie there before."""


class Heartbeat(IpcMessage, frozen=True):
    """Sent from the step loop itself, about once a second: it says that the loop turns."""

    stats: EngineStats


Event = (
    Ready
    | Tokens
    | Failed
    | Loaded
    | Unloaded
    | EvictionPreview
    | Verified
    | PrefixCompiled
    | Heartbeat
)


# --- frames --------------------------------------------------------------------------------------

HEADER = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()


def frame(message: IpcMessage | EngineConfig) -> bytes:
    """One message as it goes over the socket."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body
