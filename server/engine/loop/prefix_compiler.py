"""Compiles of text and soft prompts to prefixes. Each one runs as an ordinary sequence.

The step loop asks for the sequence to run and passes on the computed keys and values. A worker
thread reads and writes blobs, and reports through the loop's inbox.
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
    """A compile whose input embeddings [L, hidden_size] were read from the blob store."""

    request: m.CompilePrefix
    embeddings: Tensor

    @property
    def sequence(self) -> Sequence:
        """The sequence to run. The runner uses the embeddings in place of its token ids."""
        return _sequence(self.request.request_id, [0] * len(self.embeddings))


class PrefixCompiler:
    """The pending compiles. `report` is called on the worker thread."""

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
        self._writing: set[int] = set()
        """Those of `_pending` whose artifact is being written."""
        self._worker = ThreadPoolExecutor(1, "blob-io", yield_to_steps)

    @property
    def is_idle(self) -> bool:
        return not self._pending

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._pending

    def start(self, request: m.CompilePrefix) -> Sequence | None:
        """Return the sequence to run; None for a soft prompt, which `SoftPromptRead` follows."""
        self._pending[request.request_id] = request
        if request.token_ids is not None:
            return _sequence(request.request_id, request.token_ids)
        self._worker.submit(self._read, request)
        return None

    def finish(self, request_id: int, kv: Tensor) -> None:
        """Write `kv` [num_layers, 2, num_kv_heads, L, head_dim] as an artifact and report it."""
        self._writing.add(request_id)
        self._worker.submit(self._write, self._pending[request_id], kv)

    def remove(self, request_id: int) -> None:
        """Forget a compile that was answered."""
        self._pending.pop(request_id, None)
        self._writing.discard(request_id)

    def cancel(self, request_id: int) -> bool:
        """Forget a compile, unless its artifact is being written. Returns whether it did."""
        if request_id not in self._pending or request_id in self._writing:
            return False
        self.remove(request_id)
        return True

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    # --- on the worker thread: an error is reported and fails only this compile ---

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
            digest = self._blobs.put(data)
            put_at = self._blobs.put_at(digest)
        except Exception as exc:
            self._fail(request.request_id, "the computed prefix cannot be written", exc)
        else:
            num_tokens = prefix.num_virtual_tokens
            self._report(
                m.PrefixCompiled(
                    request.request_id, str(digest), num_tokens, len(data), is_new, put_at
                )
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
