"""Reading prefixes, from bodies and from the store, within a bound of memory for all at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial
from io import BufferedIOBase
from typing import TypeVar

from prefix_store import artifact, formats
from prefix_store.digest import Digest
from prefix_store.manifest import Manifest
from prefix_store.prefix import BaseModelSpec, Prefix
from prefix_store.store import PrefixStore
from server.budgets import MemoryTurns
from server.cancellation import in_thread, in_thread_to_the_end
from server.engine.ipc.protocol import Engine
from server.publishing.spool import SpoolFile

T = TypeVar("T")

MAX_BYTES_AT_ONCE = 192 << 20
"""Memory of all bodies and stored prefixes that are read at the same time, if there are several."""
JSON_MEMORY_RATIO = 12
"""Memory that the costliest JSON body takes while it is parsed, relative to its size."""


class PrefixReader:
    """Reads prefixes whole into memory, on `executor`, as many at once as fit the bound. What a
    thread still reads is counted, also once its request was cancelled."""

    def __init__(
        self,
        store: PrefixStore,
        engine: Engine,
        executor: Executor,
        model_name: str,
        max_prefix_tokens: int,
    ) -> None:
        self._store = store
        self._engine = engine
        self._executor = executor
        self._model_name = model_name
        self._max_prefix_tokens = max_prefix_tokens
        self._turns = MemoryTurns(MAX_BYTES_AT_ONCE)

    @asynccontextmanager
    async def parsed(
        self, body: bytes | SpoolFile, media_type: str
    ) -> AsyncIterator[formats.Upload]:
        """Parse a body and discard it. The upload's memory is counted until the block ends.

        Raises subclasses of `InvalidUpload`, `StorageFailure`.
        """
        base, limit = self.base(), self.max_prefix_tokens
        async with self._turns.turn(_memory_of(body, media_type)):
            data = body if isinstance(body, bytes) else await body.run(body.read)
            parse = partial(formats.read, max_prefix_tokens=limit)
            upload = await in_thread_to_the_end(self._executor, parse, data, media_type, base)
            del data
            if isinstance(body, SpoolFile):
                body.discard()
            yield upload

    async def check(self, digest: Digest, num_bytes: int, work: Callable[[Prefix], T]) -> T:
        """Read a stored artifact of `num_bytes`, and validate it like an uploaded one; run blocking
        work with it. Raises `PrefixStoreError`."""
        base, limit = self.base(), self.max_prefix_tokens

        def run() -> T:
            data = self._store.open(digest)
            return work(artifact.load(data, base, max_prefix_tokens=limit))

        async with self._turns.turn(num_bytes):
            return await in_thread_to_the_end(self._executor, run)

    async def read(self, manifest: Manifest, work: Callable[[Prefix], T]) -> T:
        """Run blocking work with a version's prefix. Raises like `PrefixStore.open`."""

        def run() -> T:
            return work(artifact.read(self._store.open(Digest(manifest.digest))))

        async with self._turns.turn(manifest.num_bytes):
            return await in_thread_to_the_end(self._executor, run)

    async def open_file(self, manifest: Manifest) -> BufferedIOBase:
        """Open a version's artifact, to be read in pieces. Raises like `PrefixStore.open`."""
        digest = Digest(manifest.digest)
        return await in_thread(self._executor, self._store.open_file, digest)

    def base(self) -> BaseModelSpec:
        """Return the geometry of the base model."""
        info = self._engine.info
        return BaseModelSpec(
            name=self._model_name,
            fingerprint=info.fingerprint,
            num_layers=info.num_layers,
            num_kv_heads=info.num_kv_heads,
            head_dim=info.head_dim,
            hidden_size=info.hidden_size,
            dtype=info.dtype,
            kv_norms=tuple(info.kv_norms),
            loaded_from=info.model,
        )

    @property
    def max_prefix_tokens(self) -> int:
        """Maximum prefix length; leaves room for at least one prompt token and one new token."""
        return min(self._max_prefix_tokens, self._engine.info.max_model_len - 2)


def _memory_of(body: bytes | SpoolFile, media_type: str) -> int:
    """Estimate the memory that a body takes while it is read. Tensors are views of its bytes."""
    num_bytes = len(body) if isinstance(body, bytes) else body.num_bytes
    is_json = formats.check_media_type(media_type) == formats.JSON
    return num_bytes * (JSON_MEMORY_RATIO if is_json else 1)
