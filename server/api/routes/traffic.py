"""Traffic splits between versions of a task, for canaries and experiments."""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter, Request, Response

from prefix_store.manifest import Activation
from prefix_store.registry.preconditions import Preconditions
from server.api.http.access import Principal, PrincipalDep, needs
from server.api.http.deps import JsonRoute, Services, ServicesDep
from server.api.http.preconditions import ChangeHeadersDep, make_change
from server.api.schemas.admin import TaskPath, TrafficRequest, TrafficResponse

routes = APIRouter(prefix="/tasks", tags=["traffic"], route_class=JsonRoute)


@routes.get("/{task}/traffic")
@needs("read")
async def get_traffic(task: TaskPath, services: ServicesDep) -> TrafficResponse:
    """Get the weights of the versions that share the traffic, if it is split."""
    found = await services.store.get_task(task)
    weights = await services.store.traffic(task)
    return TrafficResponse(task=task, active_version=found.active_version, weights=weights)


@routes.put("/{task}/traffic", response_model=TrafficResponse)
@needs("promote")
async def put_traffic(
    task: TaskPath,
    body: TrafficRequest,
    request: Request,
    services: ServicesDep,
    change_headers: ChangeHeadersDep,
    principal: PrincipalDep,
) -> Response:
    """Split the traffic until the next activation or rollback. The versions are loaded first."""
    weights = {int(number): weight for number, weight in body.weights.items() if weight}

    async def work(preconditions: Preconditions) -> TrafficResponse:
        preconditions = replace(
            preconditions,
            expected_activation=await services.store.current_activation(task),
        )
        warnings = []
        for number in weights:
            manifest = await services.store.get_version(task, number)
            await services.uploads.check_golden(manifest)
            warnings.append(await services.uploads.load(manifest.digest))
        warning = "; ".join(filter(None, warnings)) or None
        return await _set(services, task, weights, preconditions, principal, warning)

    return await make_change(services, request, task, change_headers, work, _json)


@routes.delete("/{task}/traffic", response_model=TrafficResponse)
@needs("promote")
async def delete_traffic(
    task: TaskPath,
    request: Request,
    services: ServicesDep,
    change_headers: ChangeHeadersDep,
    principal: PrincipalDep,
) -> Response:
    """End the split: the active version gets all the traffic."""

    async def work(preconditions: Preconditions) -> TrafficResponse:
        return await _set(services, task, {}, preconditions, principal, None)

    return await make_change(services, request, task, change_headers, work, _json)


async def _set(
    services: Services,
    task: str,
    weights: dict[int, int],
    preconditions: Preconditions,
    principal: Principal,
    warning: str | None,
) -> TrafficResponse:
    def answer(made: Activation) -> TrafficResponse:
        return TrafficResponse(
            task=task, active_version=made.version, weights=made.weights, warning=warning
        )

    preconditions = preconditions.after(answer)
    made = await services.store.set_traffic(
        task, weights, by=principal.actor, preconditions=preconditions
    )
    return answer(made)


def _json(answer: TrafficResponse) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")
