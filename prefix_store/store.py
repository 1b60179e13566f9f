"""The prefix store: artifacts in a blob store, tasks and versions in a registry."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from io import BufferedIOBase
from typing import TYPE_CHECKING, Protocol

from prefix_store.blobs.blobs import BlobStore
from prefix_store.blobs.clock import Clock
from prefix_store.blobs.leases import BlobLease, BlobLeases
from prefix_store.digest import Content, Digest
from prefix_store.errors import StorageFailure, UnknownDigest
from prefix_store.manifest import Activation, Draft, Manifest
from prefix_store.registry.audit import NOBODY, Actor
from prefix_store.registry.preconditions import (
    UNCONDITIONAL,
    Preconditions,
)
from prefix_store.registry.registry import Registry, ServingVersion
from prefix_store.rollback import Condition, RollbackRule

if TYPE_CHECKING:
    from prefix_store.prefix import Prefix

logger = logging.getLogger(__name__)

_ANSWERS_KEPT_S = 24 * 3600.0


class VersionSource(Protocol):
    """Resolves a request's task to a version: the registry, or a replica of it."""

    def serving_version(self, task: str, version: int | None, key: str) -> ServingVersion: ...

    def check(self) -> None: ...

    def age_s(self) -> float: ...

    def is_stale(self) -> bool: ...


class PrefixStore:
    """A blob store and a registry, written in an order that survives a crash: blob first, then row.

    Thread-safe. Raises the errors of `prefix_store.errors`.
    """

    def __init__(
        self,
        blobs: BlobStore,
        registry: Registry,
        source: VersionSource | None = None,
        *,
        clock: Clock | None = None,
    ) -> None:
        """`source` resolves requests instead of the registry, if given."""
        self._blobs = blobs
        self.registry = registry
        self.source: VersionSource = source or registry
        """Resolves requests, without network I/O if it is a replica."""
        self._leases = BlobLeases(blobs, registry)
        self._clock = clock or Clock()
        self._num_garbage_bytes = 0
        """Size of the blobs that nothing referred to when garbage was last collected."""

    def lease(self) -> BlobLease:
        """Open a lease for one upload. When it is released, the blobs that the upload has put are
        deleted, unless a version or another upload needs them."""
        return BlobLease(self._leases, self._blobs)

    def put(self, prefix: Prefix, lease: BlobLease | None = None) -> tuple[Digest, int]:
        """Store a prefix's artifact and return its digest and size in bytes.

        Push it while the lease is held or, without a lease, within the grace period of
        `collect_garbage`. Raises `StoreFull`.
        """
        from prefix_store import artifact  # imports torch, which most callers do not need

        file = artifact.to_file(prefix)
        self.check_room(file.num_bytes)
        return self.put_bytes(file, lease), file.num_bytes

    def check_room(self, num_bytes: int) -> None:
        """Check whether `num_bytes` more still fit, beside the blobs of running uploads and those
        that nothing referred to when garbage was last collected. Raises `StoreFull`."""
        self.registry.check_room(num_bytes + self._leases.num_bytes() + self._num_garbage_bytes)

    def put_bytes(self, content: Content, lease: BlobLease | None = None) -> Digest:
        """Store bytes that are not an artifact yet, such as a soft prompt for the engine."""
        return self._blobs.put(content) if lease is None else lease.put(content)

    def open(self, digest: Digest) -> bytes | bytearray:
        """Read an artifact and verify its digest. Raises `UnknownDigest`, `DigestMismatch`."""
        return self._blobs.get(digest)

    def open_file(self, digest: Digest) -> BufferedIOBase:
        """Verify an artifact's digest and open it, to be read in pieces. Raises like `open`."""
        return self._blobs.open(digest)

    def push(
        self,
        task: str,
        draft: Draft,
        *,
        activate: bool,
        create: bool,
        by: Actor = NOBODY,
        preconditions: Preconditions = UNCONDITIONAL,
        is_inherited: bool = False,
        prefix_of: int | None = None,
        dry_run: bool = False,
    ) -> Manifest:
        """Make a stored artifact the next version of a task.

        `create` creates the task if it does not exist. `is_inherited`: the draft's definition is
        the task's current one. `prefix_of`: the version of the task whose prefix it uses again.
        `dry_run` writes nothing and returns the manifest that a push would write.

        Raises `UnknownDigest`, `UnknownTask`, `UnknownVersion`, `InvalidName`,
        `PreconditionFailed`, `QuotaExceeded`, `ActivationOvertaken`.
        """
        digest = Digest(draft.digest)
        if not self._blobs.exists(digest):
            raise UnknownDigest(f"no blob {digest}: put it first")
        return self.registry.add_version(
            task,
            draft,
            activate=activate,
            create=create,
            by=by,
            preconditions=preconditions,
            is_inherited=is_inherited,
            prefix_of=prefix_of,
            dry_run=dry_run,
        )

    def serving_version(
        self, task: str, version: int | None = None, key: str = ""
    ) -> ServingVersion:
        """Return the version that serves a request and its task's profile, from the `source`.

        Raises `UnknownTask`, `UnknownVersion`, `NothingActive`.
        """
        return self.source.serving_version(task, version, key)

    def set_traffic(
        self,
        task: str,
        weights: Mapping[int, int],
        by: Actor = NOBODY,
        preconditions: Preconditions = UNCONDITIONAL,
        rollback_if: RollbackRule | None = None,
    ) -> Activation:
        """Split a task's traffic between versions. Without weights the active one gets all of it.

        Raises `UnknownTask`, `NothingActive`, `UnknownVersion`, `VersionQuarantined`,
        `PreconditionFailed`.
        """
        return self.registry.set_traffic(
            task, weights, by, preconditions, self._blobs.quarantined(), rollback_if
        )

    def end_split(
        self, task: str, condition: Condition, reason: str, preconditions: Preconditions
    ) -> Activation:
        """Give the active version all traffic back, because the split's rule applies.

        Raises `UnknownTask`, `ActivationOvertaken`, `VersionQuarantined`.
        """
        return self.registry.end_split(
            task, condition, reason, preconditions, self._blobs.quarantined()
        )

    def activate(
        self,
        task: str,
        version: int,
        by: Actor = NOBODY,
        preconditions: Preconditions = UNCONDITIONAL,
    ) -> Activation:
        """Make a version the active one (hot swap).

        Raises `UnknownTask`, `UnknownVersion`, `VersionQuarantined`, `PreconditionFailed`.
        """
        return self.registry.activate(task, version, by, preconditions, self._blobs.quarantined())

    def rollback(
        self, task: str, by: Actor = NOBODY, preconditions: Preconditions = UNCONDITIONAL
    ) -> Activation:
        """Go back to the version that was active before.

        Raises `UnknownTask`, `NothingToRollBack`, `VersionQuarantined`, `PreconditionFailed`.
        """
        return self.registry.rollback(task, by, preconditions, self._blobs.quarantined())

    def quarantined(self) -> set[Digest]:
        """Return the blobs whose stored bytes are corrupt. Their versions are not served."""
        return self._blobs.quarantined()

    def collect_garbage(self, grace_s: float) -> int:
        """Delete unreferenced blobs and old idempotency answers; return the number of blobs.

        Blobs younger than `grace_s` seconds, blobs of versions deleted less than `grace_s` ago, and
        those of this process's running uploads are kept. The grace period must be longer than an
        upload of another process (from `put` to `push`) and than a request that still runs on a
        deleted version. After the clock was set, ages are wrong, so that nothing is deleted before
        another `grace_s` seconds.
        """
        if self._clock.was_set_within(grace_s):
            logger.warning("nothing is collected for %g s after the clock was set", grace_s)
            return 0
        self.registry.forget_answers(_ANSWERS_KEPT_S)
        self._blobs.sweep()
        leased = self._leases.digests  # before the versions: an upload may become one meanwhile
        kept = self.registry.digests(deleted_within_s=grace_s) | leased
        garbage = {*self._blobs, *self._blobs.quarantined()} - kept
        put_by = self._clock.now() - grace_s
        deleted = {d for d in garbage if self._blobs.delete(d, put_by=put_by)}
        self._num_garbage_bytes = sum(map(self._size, garbage - deleted))
        return len(deleted)

    def _size(self, digest: Digest) -> int:
        """Return a blob's size in bytes; 0 if it was deleted meanwhile."""
        with suppress(UnknownDigest):
            return self._blobs.num_bytes(digest)
        return 0

    def refresh_health(self) -> None:
        """Probe a remote blob store, and save a registry whose files were deleted. Called every
        few seconds."""
        self._blobs.refresh_health()
        with suppress(StorageFailure):  # `outages` reports it
            self.source.check()

    def outages(self) -> dict[str, str]:
        """Return why `registry` or `blobs` are unreachable, if they are. Does no network I/O."""
        found = {}
        for part, check in (("registry", self.source.check), ("blobs", self._blobs.check)):
            try:
                check()
            except StorageFailure as exc:
                found[part] = str(exc)
        return found
