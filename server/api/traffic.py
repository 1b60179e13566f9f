"""Versions that share a task's traffic: a canary, or an experiment."""

from __future__ import annotations

from fastapi import APIRouter

from server.api.access import PrincipalDep, needs
from server.api.deps import JsonRoute, Services, ServicesDep
from server.api.schemas import TaskPath, TrafficRequest, TrafficResponse

routes = APIRouter(prefix="/tasks", tags=["traffic"], route_class=JsonRoute)


@routes.get("/{task}/traffic")
@needs("read")
async def get_traffic(task: TaskPath, services: ServicesDep) -> TrafficResponse:
    """Which versions share the traffic, if any do."""
    return await _described(services, task)


@routes.put("/{task}/traffic")
@needs("promote")
async def put_traffic(
    task: TaskPath, body: TrafficRequest, services: ServicesDep, principal: PrincipalDep
) -> TrafficResponse:
    """Split the traffic, until the next activation or rollback. All of it is loaded first."""
    weights = {int(number): weight for number, weight in body.weights.items() if weight}
    warnings = []
    for number in weights:
        manifest = await services.off_loop(services.store.get_version, task, number)
        await services.uploads.check_golden(manifest)
        warnings.append(await services.uploads.load(manifest.digest))
    await services.write(services.store.set_traffic, task, weights, by=principal.actor)
    return await _described(services, task, "; ".join(filter(None, warnings)) or None)


@routes.delete("/{task}/traffic")
@needs("promote")
async def delete_traffic(
    task: TaskPath, services: ServicesDep, principal: PrincipalDep
) -> TrafficResponse:
    """Back to the active version alone."""
    await services.write(services.store.set_traffic, task, {}, by=principal.actor)
    return await _described(services, task)


async def _described(services: Services, task: str, warning: str | None = None) -> TrafficResponse:
    found = await services.off_loop(services.store.get_task, task)
    weights = await services.off_loop(services.store.traffic, task)
    return TrafficResponse(
        task=task, active_version=found.active_version, weights=weights, warning=warning
    )
