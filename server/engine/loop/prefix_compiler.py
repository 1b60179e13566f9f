"""Text and soft prompts on their way to prefixes: run as sequences, read from and written to blobs.

The step loop asks what to run and hands over what was computed; blobs are read and written on a
worker thread, which reports through the loop's inbox.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from prefix_store import artifact
from prefix_store.blobs.blobs import BlobStore
from prefix_store.digest import Digest
from prefix_store.errors import StorageFailure
from prefix_store.prefix import BaseModelSpec
from server.engine.background import yield_to_steps
from server.engine.ipc import messages as m
from server.engine.model.compile_prefix import prefix_of, read_embeddings
from server.engine.params import COMPILES, SamplingParams, SchedulingParams
from server.engine.scheduler.sequence import Sequence
from server.errors import CompileFailed, Unavailable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SoftPromptRead:
    """A compile whose input embeddings [L, hidden_size] have come from the blob store."""

    request: m.CompilePrefix
    embeddings: Tensor

    @property
    def sequence(self) -> Sequence:
        """Its token ids stand for nothing: the runner puts the embeddings in their place."""
        return _sequence(self.request.request_id, [0] * len(self.embeddings))


class PrefixCompiler:
    """Compiles under way. `report` is called on the worker thread."""

    def __init__(
        self,
        report: Callable[[m.PrefixCompiled | m.Failed | SoftPromptRead], None],
        blobs: BlobStore,
        spec: BaseModelSpec,
    ) -> None:
        self._report = report
        self._blobs = blobs
        self._spec = spec
        self._pending: dict[int, m.CompilePrefix] = {}
        self._worker = ThreadPoolExecutor(1, "blob-io", yield_to_steps)

    @property
    def is_idle(self) -> bool:
        return not self._pending

    def start(self, request: m.CompilePrefix) -> Sequence | None:
        """What to run; None while a soft prompt is read, which `SoftPromptRead` then reports."""
        self._pending[request.request_id] = request
        if request.token_ids is not None:
            return _sequence(request.request_id, request.token_ids)
        self._worker.submit(self._read, request)
        return None

    def finish(self, request_id: int, kv: Tensor) -> None:
        """Write what was computed, [num_layers, 2, num_kv_heads, L, head_dim], and report it."""
        self._worker.submit(self._write, self._pending[request_id], kv)

    def remove(self, request_id: int) -> None:
        """It was answered, well or badly."""
        self._pending.pop(request_id, None)

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    # --- on the worker thread: whatever goes wrong concerns this compile alone, and is told ---

    def _read(self, request: m.CompilePrefix) -> None:
        assert request.embeddings is not None
        try:
            embeddings = read_embeddings(self._blobs.get(Digest(request.embeddings)), self._spec)
        except Exception as exc:
            self._fail(request.request_id, "the soft prompt cannot be read", exc)
        else:
            self._report(SoftPromptRead(request, embeddings))

    def _write(self, request: m.CompilePrefix, kv: Tensor) -> None:
        try:
            prefix = prefix_of(kv, self._spec, request.origin)
            data = artifact.dump(prefix)
            is_new = not self._blobs.exists(Digest.of(data))
            digest = str(self._blobs.put(data))
        except Exception as exc:
            self._fail(request.request_id, "the computed prefix cannot be written", exc)
        else:
            num_tokens = prefix.num_virtual_tokens
            self._report(
                m.PrefixCompiled(request.request_id, digest, num_tokens, len(data), is_new)
            )

    def _fail(self, request_id: int, message: str, error: Exception) -> None:
        logger.error("compile %d: %s", request_id, message, exc_info=error)
        kind = Unavailable if isinstance(error, StorageFailure) else CompileFailed
        self._report(m.Failed(request_id, kind.code, message))


def _sequence(request_id: int, token_ids: list[int]) -> Sequence:
    scheduling = SchedulingParams(queue=COMPILES)
    return Sequence(
        request_id, None, token_ids, SamplingParams(max_tokens=0), scheduling, compiles=True
    )
