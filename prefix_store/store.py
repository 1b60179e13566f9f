"""The one door to prefixes: what is kept, what it is called, and which one is active."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from prefix_store.blobs.blobs import BlobStore
from prefix_store.blobs.held import HeldBlobs, Holding
from prefix_store.digest import Digest
from prefix_store.errors import StorageFailure, UnknownDigest
from prefix_store.manifest import Activation, Definition, Draft, Manifest, Profile, Task
from prefix_store.registry.audit import NOBODY, Actor
from prefix_store.registry.preconditions import (
    UNCONDITIONAL,
    ActivationSeen,
    IdempotentRequest,
    Preconditions,
)
from prefix_store.registry.registry import Registry, ServingVersion

if TYPE_CHECKING:
    from prefix_store.prefix import Prefix

_ANSWERS_KEPT_S = 24 * 3600.0


class VersionSource(Protocol):
    """Who tells requests where to go: the registry, or a replica of it."""

    def serving_version(self, task: str, version: int | None, key: str) -> ServingVersion: ...

    def check(self) -> None: ...

    def age_s(self) -> float: ...

    def is_lost(self) -> bool: ...


class PrefixStore:
    """Blobs and a registry, in the order that survives a crash: bytes first, then the row.

    Safe to call from any number of threads. What it raises is in `prefix_store.errors`.
    """

    def __init__(
        self, blobs: BlobStore, registry: Registry, source: VersionSource | None = None
    ) -> None:
        """`source`: where requests are resolved, in place of the registry."""
        self._blobs = blobs
        self._registry = registry
        self._source: VersionSource = source or registry
        self._held = HeldBlobs(blobs, registry)

    def hold(self) -> Holding:
        """For one upload, which lets go of it at its end: what it has put is deleted then, unless a
        version or another upload needs it."""
        return Holding(self._held, self._blobs)

    def put(self, prefix: Prefix, holding: Holding | None = None) -> tuple[Digest, int]:
        """Keep a prefix's artifact: its digest and its size in bytes. Push it while it is held or,
        where nobody holds it, within the grace.

        Raises `StoreFull`.
        """
        from prefix_store import artifact  # torch: not for those who only keep and count

        data = artifact.dump(prefix)
        self._registry.check_room(len(data))
        return self.put_bytes(data, holding), len(data)

    def put_bytes(self, data: bytes, holding: Holding | None = None) -> Digest:
        """Keep bytes that are no artifact yet, such as a soft prompt on its way to the engine."""
        return self._blobs.put(data) if holding is None else holding.put(data)

    def open(self, digest: Digest) -> bytes:
        """The artifact's bytes, verified. Raises `UnknownDigest`, `DigestMismatch`."""
        return self._blobs.get(digest)

    def push(
        self,
        task: str,
        draft: Draft,
        *,
        activate: bool,
        create: bool,
        by: Actor = NOBODY,
        preconditions: Preconditions = UNCONDITIONAL,
        definition: Definition | None = None,
        rehearse: bool = False,
    ) -> Manifest:
        """Make a kept artifact the task's next version; `create` makes a missing task, and one
        without versions adopts the `definition`.

        With `rehearse` nothing is written: the manifest is the one that it would be.

        Raises `UnknownDigest`, `UnknownTask`, `InvalidName`, `PreconditionFailed`,
        `QuotaExceeded`, `DefinitionMismatch`, `ActivationOvertaken`.
        """
        digest = Digest(draft.digest)
        if not self._blobs.exists(digest):
            raise UnknownDigest(f"no blob {digest}: put it first")
        return self._registry.add_version(
            task,
            draft,
            activate=activate,
            create=create,
            by=by,
            preconditions=preconditions,
            definition=definition,
            rehearse=rehearse,
        )

    def seen(self, task: str) -> ActivationSeen:
        """What is in force now, for a change that must not overtake a newer one."""
        return self._registry.seen(task)

    def resolve(self, task: str, version: int | None = None, key: str = "") -> Manifest:
        """The version a request gets; the same for the same key, where versions share the traffic.

        Raises `UnknownTask`, `UnknownVersion`, `NothingActive`.
        """
        return self._registry.resolve(task, version, key)

    def serving_version(
        self, task: str, version: int | None = None, key: str = ""
    ) -> ServingVersion:
        """The version a request gets, as `resolve` says, and its task's profile. Never waits for a
        network."""
        return self._source.serving_version(task, version, key)

    def set_traffic(
        self,
        task: str,
        weights: Mapping[int, int],
        by: Actor = NOBODY,
        preconditions: Preconditions = UNCONDITIONAL,
    ) -> Activation:
        """Let versions share the traffic; without weights, the active one gets all of it.

        Raises `UnknownTask`, `NothingActive`, `UnknownVersion`, `VersionQuarantined`,
        `PreconditionFailed`.
        """
        return self._registry.set_traffic(
            task, weights, by, preconditions, self._blobs.quarantined()
        )

    def traffic(self, task: str) -> dict[int, int] | None:
        """The weights of the versions that share the traffic, if any do. Raises `UnknownTask`."""
        return self._registry.traffic(task)

    def set_pinned(self, task: str, version: int, *, pinned: bool, by: Actor = NOBODY) -> None:
        """Write down that a prefix stays on the device. Raises `UnknownTask`, `UnknownVersion`."""
        self._registry.set_pinned(task, version, pinned=pinned, by=by)

    def pinned(self) -> set[tuple[str, int, Digest]]:
        """Task, number and blob of all versions that are pinned."""
        return self._registry.pinned()

    def activate(
        self,
        task: str,
        version: int,
        by: Actor = NOBODY,
        preconditions: Preconditions = UNCONDITIONAL,
    ) -> Activation:
        """Hot swap.

        Raises `UnknownTask`, `UnknownVersion`, `VersionQuarantined`, `PreconditionFailed`.
        """
        return self._registry.activate(task, version, by, preconditions, self._blobs.quarantined())

    def rollback(
        self, task: str, by: Actor = NOBODY, preconditions: Preconditions = UNCONDITIONAL
    ) -> Activation:
        """Back to the version before.

        Raises `UnknownTask`, `NothingToRollBack`, `VersionQuarantined`, `PreconditionFailed`.
        """
        return self._registry.rollback(task, by, preconditions, self._blobs.quarantined())

    def history(self, task: str, limit: int = 100) -> list[Activation]:
        """The last activations, newest first. Raises `UnknownTask`."""
        return self._registry.history(task, limit)

    def create_task(self, name: str, profile: Profile, by: Actor = NOBODY) -> Task:
        """Raises `InvalidName`, `TaskExists`, `QuotaExceeded`."""
        return self._registry.create_task(name, profile, by)

    def set_profile(
        self,
        name: str,
        profile: Profile,
        preconditions: Preconditions = UNCONDITIONAL,
        by: Actor = NOBODY,
    ) -> Task:
        """Raises `UnknownTask`, `PreconditionFailed`."""
        return self._registry.set_profile(name, profile, preconditions, by)

    def get_task(self, name: str) -> Task:
        """Raises `UnknownTask`."""
        return self._registry.get_task(name)

    def list_tasks(
        self, after: str | None = None, limit: int = 100, globs: Sequence[str] = ("*",)
    ) -> list[Task]:
        """At most `limit` tasks behind the name `after`, sorted by name."""
        return self._registry.list_tasks(after, limit, globs)

    def delete_task(
        self, name: str, preconditions: Preconditions = UNCONDITIONAL, by: Actor = NOBODY
    ) -> None:
        """Raises `UnknownTask`, `PreconditionFailed`."""
        self._registry.delete_task(name, preconditions, by)

    def get_version(self, task: str, version: int) -> Manifest:
        """Raises `UnknownTask`, `UnknownVersion`."""
        return self._registry.get_version(task, version)

    def list_versions(self, task: str) -> list[Manifest]:
        """By number. Raises `UnknownTask`."""
        return self._registry.list_versions(task)

    def delete_version(
        self,
        task: str,
        version: int,
        preconditions: Preconditions = UNCONDITIONAL,
        by: Actor = NOBODY,
    ) -> None:
        """Raises `UnknownTask`, `UnknownVersion`, `VersionActive`, `PreconditionFailed`."""
        self._registry.delete_version(task, version, preconditions, by)

    def answer(self, request: IdempotentRequest) -> str | None:
        """What was answered to a request that comes again. Raises `IdempotencyMismatch`."""
        return self._registry.answer(request)

    def quarantined(self) -> set[Digest]:
        """The blobs whose bytes have changed on disk; versions of them are not served."""
        return self._blobs.quarantined()

    def collect_garbage(self, grace_s: float) -> int:
        """Delete what no version refers to, and old answers; the number of blobs deleted.

        `grace_s` must outlast an upload, from `put` to `push`, and a request that still runs on a
        deleted version: younger blobs and blobs of versions deleted more recently are spared.
        """
        self._registry.forget_answers(_ANSWERS_KEPT_S)
        self._blobs.sweep()
        kept = self._registry.digests(deleted_within_s=grace_s)
        garbage = {*self._blobs, *self._blobs.quarantined()} - kept
        put_by = time.time() - grace_s
        return sum(self._blobs.delete(digest, put_by=put_by) for digest in garbage)

    def refresh_health(self) -> None:
        """Ask remote blobs whether they are reachable; called every few seconds."""
        self._blobs.refresh_health()

    def age_s(self) -> float:
        """Seconds since what requests are resolved by was read."""
        return self._source.age_s()

    def is_lost(self) -> bool:
        """Whether requests cannot be resolved any more."""
        return self._source.is_lost()

    def outages(self) -> dict[str, str]:
        """Which part is away, `registry` or `blobs`, and why. Never waits for a network."""
        found = {}
        for part, check in (("registry", self._source.check), ("blobs", self._blobs.check)):
            try:
                check()
            except StorageFailure as exc:
                found[part] = str(exc)
        return found
