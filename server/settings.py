from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_GIB = 1 << 30


def _data_home() -> Path:
    return Path.home() / ".local" / "share" / "foreword"


def _cache_home() -> Path:
    return Path.home() / ".cache" / "foreword"


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._~-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")


def _origins(listed: str) -> tuple[str, ...]:
    """Split a list of origins; write them as browsers do."""
    return tuple(_as_sent(one.strip().lower()) for one in listed.split(",") if one.strip())


def _as_sent(origin: str) -> str:
    port = ":443" if origin.startswith("https://") else ":80"
    return origin.removesuffix(port) if origin.startswith("http") else origin


class Settings(BaseSettings):
    """Every setting of the server. Read once, from the command line and `FOREWORD_*` variables."""

    model_config = SettingsConfigDict(
        env_prefix="FOREWORD_",
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,  # the URL of a registry holds a password
    )

    model: str = Field(
        "default",
        description="Folder or hub id of the frozen base model. `default` is "
        "SmolLM2-135M-Instruct, fetched once from PyPI.",
    )
    store: Path = Field(
        default_factory=_data_home, description="Folder of the prefix store: registry and blobs."
    )
    registry: SecretStr | None = Field(
        None,
        description="`postgresql+psycopg://USER@HOST/DATABASE`, for servers that share a registry. "
        "Default: SQLite in the store.",
    )
    blobs: str | None = Field(
        None,
        description="Location of prefixes as an fsspec URL: `s3://BUCKET/FOLDER`. Default: "
        "`blobs` in the store.",
    )
    blob_cache_bytes: int = Field(
        10 * _GIB,
        ge=0,
        description="Size of the local cache of remote blobs, `blob-cache` in the store.",
    )
    max_registry_age_s: float = Field(
        3600.0,
        gt=0,
        description="Seconds that a shared registry may be unreachable before requests for tasks "
        "are refused.",
    )
    cache: Path = Field(
        default_factory=_cache_home,
        description="Folder for the default model, which is fetched once.",
    )
    demo: bool = Field(False, description="Create the demo tasks if they do not exist.")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")

    console: bool = Field(
        True, description="Serve the web console at /console. Its files need no key."
    )
    insecure_no_auth: bool = Field(
        False,
        description="Listen beyond loopback without any key: everyone who can reach the port has "
        "full access.",
    )
    allowed_hosts: str = Field(
        "",
        description="Host names under which a server without keys may be called, separated "
        "by commas, in addition to loopback and `host`; `*` allows any.",
    )
    cors_origins: str = Field(
        "",
        description="Origins of web pages that may call the server from a browser, separated by "
        "commas: `https://app.example,http://localhost:3000`. `*`, which allows any, needs a key.",
    )
    key_pepper_file: Path | None = Field(
        None,
        description="File with the secret that key digests are made with; all servers of a "
        "registry need the same. Default: `pepper` in the store, created at the "
        "first start.",
    )

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Device of the model. `auto`: CUDA if torch finds it, else the CPU.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Serving dtype. `auto`: bfloat16 where the device is fast at it, else float32.",
    )
    attention: Literal["auto", "ref", "cpu", "native", "triton"] = Field(
        "auto",
        description="Attention backend. `auto`: `triton` on CUDA; on a CPU `native`, the "
        "compiled layers, given AVX-512, a C++ compiler and a Llama-like model; else "
        "`cpu`.",
    )
    generation_config: Literal["auto", "none"] = Field(
        "auto",
        description="Defaults of requests without a task. `auto`: those of the model's "
        "`generation_config.json`; `none`: greedy, 64 tokens.",
    )
    quantization: Literal["none", "int8"] = Field(
        "none",
        description="8-bit integer weights for the compiled layers: faster for one to eight "
        "concurrent requests, slower for many, and not exact.",
    )
    num_threads: int | None = Field(
        None, ge=1, description="CPU threads of the engine. Default: the number of cores."
    )
    max_model_len: int | None = Field(
        None,
        ge=16,
        description="Max tokens of prefix + prompt + completion. Default: the model's context, "
        "or what kv_cache_bytes allows. Lower for a model that beyond some length "
        "computes differently for the whole batch.",
    )
    max_num_seqs: int = Field(64, ge=1, le=4096, description="Max sequences per step.")
    max_num_batched_tokens: int = Field(
        512, ge=16, description="Max tokens per step: decode tokens first, then prefill chunks."
    )
    max_waiting: int = Field(
        256,
        ge=0,
        description="Max queued requests in addition to max_num_seqs; further ones get a 429.",
    )
    max_tokens_in_flight: int | None = Field(
        None,
        ge=1,
        description="Max tokens, prompts and max_tokens, of all running and queued requests; "
        "further ones get a 429. Default: those of the KV pool, times (max_num_seqs + "
        "max_waiting) / max_num_seqs.",
    )
    max_concurrency_per_key: int | None = Field(
        None,
        ge=1,
        description="Max concurrent requests of a key that has no max_concurrency, and its max "
        "running and queued sequences. Default: half of max_num_seqs + max_waiting.",
    )
    max_extra_tokens_per_key: int | None = Field(
        None,
        ge=1,
        description="Max tokens per step of one key beyond as many as another key with work has "
        "in it. Default: 12; on CUDA 128.",
    )
    kv_cache_bytes: int | None = Field(
        None,
        ge=1 << 20,
        description="Size of the KV pool. Default: a quarter of the memory; on CUDA what the "
        "model, a step and the prefixes leave.",
    )
    device_prefix_bytes: int | None = Field(
        None,
        ge=0,
        description="Size of the prefix cache on the device, evicted in LRU order. Default: 1 "
        "GiB; on CUDA a quarter of what the model and a step leave.",
    )
    host_prefix_bytes: int = Field(
        _GIB, ge=0, description="Size of the prefix cache in host memory."
    )
    prompt_cache: bool = Field(
        True,
        description="Reuse the KV of common prompt beginnings within a task, if the pool has "
        "small pages.",
    )

    max_prefix_tokens: int = Field(8192, ge=1, description="Max virtual tokens per prefix.")
    max_tasks: int | None = Field(None, ge=0, description="Max tasks. Default: no limit.")
    max_versions_per_task: int | None = Field(
        None, ge=1, description="Max versions per task. Default: no limit."
    )
    max_store_bytes: int | None = Field(
        None, ge=0, description="Max size of all prefixes on disk. Default: no limit."
    )
    max_upload_bytes: int = Field(2 * _GIB, ge=1024, description="Max body size of an upload.")
    max_body_bytes: int = Field(4 << 20, ge=1024, description="Max body size of any other request.")
    body_timeout_s: float = Field(
        10.0,
        gt=0,
        description="Seconds that a body may stall, or stay below 4 KiB/s, before a 408.",
    )
    write_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Seconds after which a client that does not read its response is disconnected.",
    )
    max_connections: int = Field(
        2048,
        ge=1,
        description="Max open connections; one more closes the one that has been idle longest.",
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, description="Seconds that running requests get to finish after SIGTERM."
    )
    engine_start_timeout_s: float = Field(
        300.0, gt=0, description="Seconds for the engine process to load the model."
    )
    engine_hang_timeout_s: float = Field(
        60.0, gt=0, description="Seconds without a heartbeat before the engine is replaced."
    )
    max_task_labels: int = Field(
        200, ge=0, description="Max tasks with metrics of their own; the others share one label."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Minimum severity of log lines."
    )

    @field_validator("registry")
    @classmethod
    def _check_registry_is_postgresql(cls, url: SecretStr | None) -> SecretStr | None:
        from sqlalchemy.engine import make_url  # slow to import, and `--help` does not need it
        from sqlalchemy.exc import ArgumentError

        try:
            driver = "" if url is None else make_url(url.get_secret_value()).drivername
        except (ArgumentError, ValueError):  # its message would show the password
            raise ValueError("is not a URL") from None
        if driver not in ("", "postgresql+psycopg"):
            raise ValueError("must begin with postgresql+psycopg://")
        return url

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: str) -> str:
        for origin in _origins(origins):
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError("each is `*`, or a scheme and a host, such as https://app.example")
        return origins

    @property
    def origins(self) -> tuple[str, ...]:
        """`cors_origins` as browsers send them."""
        return _origins(self.cors_origins)

    @model_validator(mode="after")
    def _check_shared_registry_has_a_pepper(self) -> Self:
        if self.registry is not None and self.key_pepper_file is None:
            raise ValueError("a shared registry needs key_pepper_file, the same on all servers")
        return self

    @model_validator(mode="after")
    def _check_step_fits_one_token_per_sequence(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs")
        return self
