"""The engine as the rest of the API process sees it."""

from __future__ import annotations

from typing import Protocol

from prefix_store.digest import Digest
from server.engine.ipc import messages as m
from server.engine.ipc.stream import TokenStream
from server.engine.params import DEFAULT_SCHEDULING, SamplingParams, SchedulingParams


class Engine(Protocol):
    """An engine that runs one base model. `EngineClient` implements it with a process of its own.

    All methods are called from one event loop. Those that reach the engine raise
    `EngineUnavailable` while none is ready. If an awaited call is cancelled, so is its work.
    """

    stats: m.EngineStats
    """Statistics of the latest heartbeat."""
    num_restarts: int
    pinned: set[Digest]
    """Prefixes to pin whenever the engine starts. `pin` and `unpin` keep it up to date."""

    @property
    def info(self) -> m.EngineInfo:
        """The loaded model and its limits. Raises `EngineUnavailable` before the first start."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted."""
        ...

    @property
    def heartbeat_age_s(self) -> float | None:
        """Seconds since the last event from the engine; None if no engine is ready."""
        ...

    @property
    def pid(self) -> int | None:
        """Process id of the engine; None while no process runs, or if it has none of its own."""
        ...

    @property
    def num_in_flight(self) -> int:
        """Generations that have not ended."""
        ...

    async def start(self) -> None:
        """Start the engine and wait until its model is loaded. Raises `EngineUnavailable`."""
        ...

    async def stop(self, drain_timeout_s: float) -> None:
        """Let running requests finish for at most `drain_timeout_s`, then stop the engine."""
        ...

    def submit(
        self,
        prefix: Digest | None,
        token_ids: list[int],
        sampling: SamplingParams,
        scheduling: SchedulingParams = DEFAULT_SCHEDULING,
    ) -> TokenStream:
        """Start generating after a prefix, or without one."""
        ...

    async def load(self, prefix: Digest) -> None:
        """Make a prefix resident. Raises `PrefixUnavailable`."""
        ...

    def unload(self, prefix: Digest) -> None:
        """Evict a prefix, unless it is in use or pinned. A no-op while no engine is ready."""
        ...

    async def evict(self, prefix: Digest) -> bool:
        """Evict a prefix. Returns False, and keeps it, if it is in use or pinned."""
        ...

    async def pin(self, prefix: Digest) -> None:
        """Make a prefix resident and keep it resident. Raises `PrefixUnavailable`, `PinRefused`."""
        ...

    def unpin(self, prefix: Digest) -> None:
        """Allow a pinned prefix to be evicted again."""
        ...

    async def preview_eviction(self, num_bytes: int) -> m.EvictionPreview:
        """Return which prefixes would be evicted to make room for one of `num_bytes`."""
        ...

    async def verify(self, prefix: Digest, token_ids: list[int]) -> float:
        """Run a prompt without and with a prefix; return the relative change of the logits.

        Raises `StepFailed`, `PrefixUnavailable`.
        """
        ...

    async def compile(
        self,
        *,
        token_ids: list[int] | None = None,
        embeddings: Digest | None = None,
        origin: dict[str, str],
    ) -> m.PrefixCompiled:
        """Compute a prefix from one of two sources and write its artifact to the blob store.

        If it is cancelled too late, it returns all the same, as the artifact is in the blob store.
        Raises `CompileFailed`, `Unavailable`.
        """
        ...
