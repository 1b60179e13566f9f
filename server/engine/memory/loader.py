"""Threads that read prefixes from disk and copy them to the device."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from torch import Tensor

from prefix_store.digest import Digest
from server.engine.background import yield_to_steps
from server.engine.memory.prefix import LoadResult, ResidentPrefix

logger = logging.getLogger(__name__)


class PrefixLoader:
    """Reads up to `max_loading` prefixes at a time, and copies them to the device one by one.

    `read` and `copy` run on the threads, and `report` is called there with the result. An error is
    reported as well, and fails only its prefix.
    """

    def __init__(
        self,
        read: Callable[[Digest], ResidentPrefix],
        report: Callable[[LoadResult], None],
        copy: Callable[[Tensor], Tensor] | None,
        max_loading: int,
    ) -> None:
        self._read = read
        self._report = report
        self._copy = copy
        self._readers = ThreadPoolExecutor(max_loading, "prefix-loader", yield_to_steps)
        self._copier = ThreadPoolExecutor(1, "prefix-copier", yield_to_steps)

    def read(self, digest: Digest) -> None:
        """Start to read a prefix into host memory."""
        self._readers.submit(self._run, digest, lambda: LoadResult(digest, self._read(digest)))

    def copy(self, digest: Digest, prefix: ResidentPrefix) -> None:
        """Start to copy a prefix to the device."""
        copy = self._copy
        assert copy is not None
        self._copier.submit(
            self._run,
            digest,
            lambda: LoadResult(digest, replace(prefix, kv=copy(prefix.kv)), on_device=True),
        )

    def close(self) -> None:
        """Cancel what has not started; do not wait for the threads."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._copier.shutdown(wait=False, cancel_futures=True)

    def _run(self, digest: Digest, load: Callable[[], LoadResult]) -> None:
        try:
            result = load()
        except Exception as exc:
            logger.exception("prefix %s could not be loaded", digest)
            error = f"the prefix could not be loaded: {type(exc).__name__}"
            result = LoadResult(digest, None, error)
        self._report(result)
