"""Residency of prefixes: warm, pin, unpin, evict."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter

from prefix_store.digest import Digest
from prefix_store.manifest import Manifest
from server.api.http.access import PrincipalDep, needs
from server.api.http.deps import JsonRoute, Services, ServicesDep
from server.api.schemas.admin import TaskPath, VersionPath, VersionResidency
from server.errors import PrefixInUse

routes = APIRouter(prefix="/tasks", tags=["residency"], route_class=JsonRoute)


@routes.post("/{task}/versions/{version}/warm")
@needs("promote")
async def warm(task: TaskPath, version: VersionPath, services: ServicesDep) -> VersionResidency:
    """Load a version's prefix before the first request needs it."""
    manifest = await services.store.get_version(task, version)
    await services.engine.load(Digest(manifest.digest))
    return await _described(services, manifest)


@routes.post("/{task}/versions/{version}/pin")
@needs("promote")
async def pin(
    task: TaskPath, version: VersionPath, services: ServicesDep, principal: PrincipalDep
) -> VersionResidency:
    """Load a version's prefix and keep it on the device, also after a restart."""
    manifest = await services.store.get_version(task, version)
    await services.engine.pin(Digest(manifest.digest))
    await services.store.set_pinned(task, version, pinned=True, by=principal.actor)
    return await _described(services, manifest)


@routes.post("/{task}/versions/{version}/unpin")
@needs("promote")
async def unpin(
    task: TaskPath, version: VersionPath, services: ServicesDep, principal: PrincipalDep
) -> VersionResidency:
    """Allow the prefix to be evicted again when others need the memory."""
    manifest = await services.store.get_version(task, version)
    await services.store.set_pinned(task, version, pinned=False, by=principal.actor)
    await services.uploads.unpin([manifest])
    return await _described(services, manifest)


@routes.post("/{task}/versions/{version}/evict")
@needs("promote")
async def evict(task: TaskPath, version: VersionPath, services: ServicesDep) -> VersionResidency:
    """Evict the prefix from the device and from host memory. The next request loads it again."""
    manifest = await services.store.get_version(task, version)
    if not await services.engine.evict(Digest(manifest.digest)):
        raise PrefixInUse("requests are using this prefix, or it is pinned")
    return await _described(services, manifest)


def residency(services: Services, digest: str) -> Literal["device", "host", "disk"]:
    """Return where a prefix is, according to the engine's last heartbeat."""
    stats = services.engine.stats
    if digest in stats.prefixes_on_device:
        return "device"
    return "host" if digest in stats.prefixes_on_host else "disk"


async def _described(services: Services, manifest: Manifest) -> VersionResidency:
    pinned = await services.store.pinned()
    return VersionResidency(
        task=manifest.task,
        version=manifest.version,
        digest=manifest.digest,
        residency=residency(services, manifest.digest),
        pinned=(manifest.task, manifest.version, Digest(manifest.digest)) in pinned,
    )
