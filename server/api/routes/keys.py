"""API keys and the audit log, for admins."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from prefix_store.registry.audit import Entry
from prefix_store.registry.keys import Grant
from server.api.http.access import PrincipalDep, needs
from server.api.http.deps import JsonRoute, ServicesDep
from server.api.schemas.admin import AuditPage, CreatedKey, KeyList, Limit

routes = APIRouter(tags=["keys"], route_class=JsonRoute)

KeyId = Annotated[str, Path(description="The key's id: the part after `fwd_`.")]
AfterSeq = Annotated[int, Query(ge=0, lt=2**31, description="Return rows after this one.")]


@routes.post("/keys", status_code=201)
@needs("admin")
async def create_key(grant: Grant, services: ServicesDep, principal: PrincipalDep) -> CreatedKey:
    """Create a key. Its text, `key`, is returned only once."""
    key, text = await services.store.create_key(grant, principal.actor)
    return CreatedKey(**dict(key), key=text)


@routes.get("/keys")
@needs("admin")
async def list_keys(services: ServicesDep) -> KeyList:
    """List all keys, oldest first, including revoked and expired ones."""
    return KeyList(keys=await services.store.list_keys())


@routes.delete("/keys/{id}", status_code=204)
@needs("admin")
async def revoke_key(id: KeyId, services: ServicesDep, principal: PrincipalDep) -> None:
    """Revoke a key for good. All servers refuse it within ten seconds."""
    await services.store.revoke_key(id, principal.actor)


@routes.get("/audit")
@needs("admin")
async def list_audit(services: ServicesDep, limit: Limit = 100, after: AfterSeq = 0) -> AuditPage:
    """List the audit log: who changed what, in order."""
    entries: list[Entry] = await services.store.audit_entries(after, limit + 1)
    is_last = len(entries) <= limit
    return AuditPage(
        entries=entries[:limit], next_after=None if is_last else entries[limit - 1].seq
    )
