"""The base model and the server around it."""

from __future__ import annotations

from pydantic import Field

from foreword_client.types.base import Answer


class ServerLimits(Answer):
    """Limits of a server. None: unknown."""

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
    eos_token_ids: list[int] = Field([])
    chat_template: bool = False
    limits: ServerLimits = ServerLimits()
