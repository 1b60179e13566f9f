"""Checks of versions that are stored already, before they get traffic or on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Executor
from typing import Any, ParamSpec, TypeVar

from prefix_store.digest import Digest
from prefix_store.errors import PrefixStoreError, UnknownVersion
from prefix_store.manifest import Check, Manifest
from prefix_store.store import PrefixStore
from server.cancellation import in_thread
from server.errors import PrefixUnavailable, UnusablePrefix
from server.publishing.reader import PrefixReader
from server.publishing.verification import Verification, static_checks

P = ParamSpec("P")
T = TypeVar("T")


class Rechecks:
    """Checks versions again. `executor` runs what must stay off the event loop.

    A check ends when its version is deleted on this server.
    """

    def __init__(
        self,
        store: PrefixStore,
        reader: PrefixReader,
        verification: Verification,
        *,
        executor: Executor,
    ) -> None:
        self._store = store
        self._reader = reader
        self._verification = verification
        self._executor = executor
        self._running: dict[asyncio.Future[Any], tuple[str, int]] = {}

    async def check_golden(self, manifest: Manifest) -> None:
        """Check the golden prompts before a version gets traffic.

        Raises `GoldenPromptFailed`, and `UnknownVersion` once it is deleted.
        """
        await self._unless_deleted(manifest, self._check_golden(manifest))

    async def verify(self, manifest: Manifest) -> tuple[Check, ...]:
        """Repeat all checks of an upload, from the stored bytes on, against the loaded model.

        A failure is returned as a failed check, not raised; later checks are skipped. Raises
        `UnknownVersion` once the version is deleted.
        """
        return await self._unless_deleted(manifest, self._verify(manifest))

    def end(self, deleted: Iterable[Manifest]) -> None:
        """End all checks of versions that were deleted."""
        versions = {(manifest.task, manifest.version) for manifest in deleted}
        for check, version in self._running.items():
            if version in versions:
                check.cancel()

    async def _unless_deleted(self, manifest: Manifest, work: Coroutine[Any, Any, T]) -> T:
        check = asyncio.ensure_future(work)
        self._running[check] = (manifest.task, manifest.version)
        try:
            await asyncio.wait({check})
        except asyncio.CancelledError:
            check.cancel()
            await asyncio.wait({check})
            raise
        finally:
            del self._running[check]
        if check.cancelled():
            raise UnknownVersion(f"version {manifest.version} was deleted meanwhile")
        return check.result()

    async def _check_golden(self, manifest: Manifest) -> None:
        task = await self._run_in_thread(self._store.registry.get_task, manifest.task)
        await self._verification.require_golden(manifest, task.profile)

    async def _verify(self, manifest: Manifest) -> tuple[Check, ...]:
        try:
            return await self._verify_again(manifest)
        except (PrefixStoreError, UnusablePrefix, PrefixUnavailable) as exc:
            return (Check(name=exc.code, passed=False, detail=str(exc)),)

    async def _verify_again(self, manifest: Manifest) -> tuple[Check, ...]:
        base, digest = self._reader.base(), Digest(manifest.digest)
        checks = await self._reader.check(
            digest, manifest.num_bytes, lambda prefix: static_checks(prefix, base)
        )
        checks += await self._verification.run(digest, manifest.num_virtual_tokens)
        task = await self._run_in_thread(self._store.registry.get_task, manifest.task)
        golden = await self._verification.golden(manifest, task.profile)
        return (*checks, *([] if golden is None else [golden]))

    async def _run_in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await in_thread(self._executor, work, *args, **kwargs)
