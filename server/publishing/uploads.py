"""From uploaded bytes to a version of a task: draft, verify, store, activate, load."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import ParamSpec, TypeVar

from prefix_store import formats
from prefix_store.blobs.leases import BlobLease
from prefix_store.digest import Digest
from prefix_store.errors import InvalidName, PrefixStoreError, UnknownTask
from prefix_store.manifest import Draft, Manifest, Profile
from prefix_store.reference import check_task_name
from prefix_store.registry.audit import NOBODY, Actor
from prefix_store.registry.preconditions import UNCONDITIONAL, NoLongerWanted, Preconditions
from prefix_store.store import PrefixStore
from server import cancellation
from server.cancellation import in_thread, to_the_end
from server.engine.ipc.protocol import Engine
from server.errors import ServerError
from server.metrics import Metrics
from server.publishing.definitions import Definitions
from server.publishing.drafts import Drafts, PreparedUpload
from server.publishing.reader import PrefixReader
from server.publishing.results import DryRunResult, Preflight, PublishedVersion, failed_checks
from server.publishing.spool import SpoolFile
from server.publishing.verification import Verification

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_CLIENT_GONE = (
    "the client disconnected before this version was ready: it is stored but not activated"
)


class Uploads:
    """Publishes versions. `executor` runs parsing and hashing, a few uploads at a time."""

    def __init__(
        self,
        store: PrefixStore,
        reader: PrefixReader,
        engine: Engine,
        drafts: Drafts,
        verification: Verification,
        definitions: Definitions,
        metrics: Metrics,
        *,
        executor: Executor,
    ) -> None:
        self._store = store
        self._reader = reader
        self._engine = engine
        self._drafts = drafts
        self._verification = verification
        self._definitions = definitions
        self._metrics = metrics
        self._executor = executor

    @property
    def max_prefix_tokens(self) -> int:
        return self._reader.max_prefix_tokens

    async def preflight(self, task: str, media_type: str, *, create: bool) -> Preflight:
        """Check everything that can be checked before the body is read."""
        formats.check_media_type(media_type)
        _ = self._engine.info
        is_new_task = False
        try:
            await self._run_in_thread(self._store.registry.get_task, task)
        except (UnknownTask, InvalidName):
            if not create:
                raise
            check_task_name(task)
            is_new_task = True
        return Preflight(
            is_new_task, await self._run_in_thread(self._store.registry.current_activation, task)
        )

    async def push(
        self,
        task: str,
        body: bytes | SpoolFile,
        media_type: str,
        *,
        activate: bool,
        create: bool = False,
        preflight: Preflight | None = None,
        by: Actor = NOBODY,
        preconditions: Preconditions = UNCONDITIONAL,
    ) -> PublishedVersion:
        """Make a body the task's next version. Raises `PrefixStoreError`, `ServerError`.

        The version is activated only if no other activation came since `preflight`, and if the
        client is still connected when the change is committed: otherwise it would not see the
        outcome. Its idempotency key is then not used up, so that a retry is a new upload.
        """
        try:
            async with self._lease() as lease:
                preflight = preflight or await self.preflight(task, media_type, create=create)
                prepared = await self._drafts.read(task, body, media_type, lease)
                draft = await self._verified(task, prepared, activate)
                warning = await self.load(draft.digest) if activate else None
                warning = warning or failed_checks(draft.verification)
                publish = partial(
                    self._publish, task, draft, prepared, preflight, create=create, by=by
                )
                with cancellation.change():
                    if not activate:
                        published = await publish(False, warning, preconditions)
                    else:
                        expected = replace(preconditions, expected_activation=preflight.activation)
                        published = await _activated(publish, warning, expected)
        except (PrefixStoreError, ServerError) as exc:
            self._metrics.uploaded(exc.code)
            raise
        self._metrics.uploaded("created")
        return published

    async def _publish(
        self,
        task: str,
        draft: Draft,
        prepared: PreparedUpload,
        preflight: Preflight,
        activate: bool,
        warning: str | None,
        preconditions: Preconditions,
        *,
        create: bool,
        by: Actor,
    ) -> PublishedVersion:
        """Write the version. Raises the errors of `PrefixStore.push`."""
        published = partial(
            PublishedVersion,
            is_active=activate,
            is_new_task=preflight.is_new_task,
            warning=warning,
        )
        manifest = await self._run_in_thread(
            self._store.push,
            task,
            draft,
            activate=activate,
            create=create,
            by=by,
            preconditions=preconditions.after(published),
            is_inherited=prepared.definition is None,
            prefix_of=prepared.prefix_of,
        )
        return published(manifest)

    async def dry_run(
        self, task: str, body: bytes | SpoolFile, media_type: str, *, activate: bool, create: bool
    ) -> DryRunResult:
        """Do everything that `push` does, except create the version. Raises its errors."""
        async with self._lease() as lease:
            preflight = await self.preflight(task, media_type, create=create)
            prepared = await self._drafts.read(task, body, media_type, lease)
            draft = prepared.draft
            num_bytes = draft.num_virtual_tokens * self._reader.base().num_bytes_per_token
            was_resident = draft.digest in self._engine.stats.prefixes_on_device
            room = await self._engine.preview_eviction(0 if was_resident else num_bytes)
            draft = await self._verified(task, prepared, activate)
            if not was_resident:
                self._engine.unload(Digest(draft.digest))
            manifest = await self._run_in_thread(
                self._store.push,
                task,
                draft,
                activate=activate,
                create=create,
                is_inherited=prepared.definition is None,
                prefix_of=prepared.prefix_of,
                dry_run=True,
            )
            pushed = PublishedVersion(
                manifest, activate, preflight.is_new_task, failed_checks(draft.verification)
            )
            return DryRunResult(pushed, num_bytes, room.fits, room.evicted)

    @asynccontextmanager
    async def _lease(self) -> AsyncIterator[BlobLease]:
        """Lease blobs for the duration of an upload. If it fails, its prefix is evicted again."""
        lease = self._store.lease()
        try:
            yield lease
        except BaseException:
            with suppress(PrefixStoreError):
                await to_the_end(self._unload_unused(lease.digests))
            raise
        finally:
            await to_the_end(self._run_in_thread(lease.release))

    async def _verified(self, task: str, prepared: PreparedUpload, activate: bool) -> Draft:
        """Complete and check a draft. Raises `UnusablePrefix`, the errors of an invalid definition,
        and `GoldenPromptFailed` if `activate`."""
        try:
            profile = (await self._run_in_thread(self._store.registry.get_task, task)).profile
        except UnknownTask:
            profile = Profile()
        draft = prepared.completed(profile)
        if prepared.definition is not None:
            await self._definitions.check(draft.definition)
        checks = (
            []
            if prepared.prefix_of is not None
            else await self._verification.run(Digest(draft.digest), draft.num_virtual_tokens)
        )
        if activate:
            checks += await self._verification.require_golden(draft, profile)
        elif (golden := await self._verification.golden(draft, profile)) is not None:
            checks.append(golden)
        return draft.with_checks(checks)

    async def load(self, digest: str) -> str | None:
        """Load a prefix before the swap, so that the first request does not wait.

        A failure is returned, not raised, as the first request tries again.
        """
        try:
            await self._engine.load(Digest(digest))
        except ServerError as exc:
            logger.warning("%s not loaded: %s", digest, exc)
            return str(exc)
        return None

    async def unload(self, deleted: Sequence[Manifest]) -> None:
        """Unpin and evict prefixes of deleted versions, unless other versions have them too."""
        await self.unpin(deleted)
        await self._unload_unused(Digest(manifest.digest) for manifest in deleted)

    async def _unload_unused(self, digests: Iterable[Digest]) -> None:
        """Evict prefixes that no version has."""
        if not (found := set(digests)):
            return
        used = await self._run_in_thread(self._store.registry.digests)
        for digest in found - used:
            self._engine.unload(digest)

    async def unpin(self, manifests: Sequence[Manifest]) -> None:
        """Unpin prefixes, unless another version has the same one pinned."""
        pinned = {digest for _, _, digest in await self._run_in_thread(self._store.registry.pinned)}
        for digest in {Digest(manifest.digest) for manifest in manifests} - pinned:
            self._engine.unpin(digest)

    async def _run_in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await in_thread(self._executor, work, *args, **kwargs)


async def _activated(
    publish: Callable[[bool, str | None, Preconditions], Awaitable[PublishedVersion]],
    warning: str | None,
    preconditions: Preconditions,
) -> PublishedVersion:
    """Publish a version and activate it, unless its client has disconnected meanwhile."""
    client = cancellation.client()
    wanted = replace(preconditions, is_wanted=lambda: not client.is_gone)
    with suppress(NoLongerWanted):
        return await publish(True, warning, wanted)
    unconditional = replace(preconditions, expected_activation=None, idempotent=None)
    return await publish(False, _CLIENT_GONE, unconditional)
