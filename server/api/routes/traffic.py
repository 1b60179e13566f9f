"""Traffic splits between versions of a task, for canaries and experiments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastapi import APIRouter, Request, Response

from prefix_store.manifest import Activation, Manifest
from prefix_store.registry.preconditions import Preconditions
from prefix_store.rollback import RollbackRule
from server.api.http.access import Principal, PrincipalDep, needs
from server.api.http.deps import JsonRoute, Services, ServicesDep
from server.api.http.preconditions import ChangeHeadersDep, make_change
from server.api.schemas.admin import TaskPath
from server.api.schemas.traffic import (
    Percentiles,
    TrafficReport,
    TrafficRequest,
    TrafficResponse,
    VersionTraffic,
)
from server.errors import InvalidRequest
from server.telemetry.recent import WINDOW_S, Quantiles, RecentStats

routes = APIRouter(prefix="/tasks", tags=["traffic"], route_class=JsonRoute)


@routes.get("/{task}/traffic")
@needs("read")
async def get_traffic(task: TaskPath, services: ServicesDep) -> TrafficReport:
    """Get the weights of the versions that share the traffic, if it is split, and for each version
    with traffic the requests, errors and times of the last 15 minutes on this server."""
    current = next(iter(await services.store.history(task, 1)), None)
    shares = {} if current is None else _shares(current)
    return TrafficReport(
        task=task,
        active_version=None if current is None else current.version,
        weights=None if current is None else current.weights,
        rollback_if=None if current is None else current.rollback_if,
        rollback_reason=None if current is None else current.reason,
        window_s=WINDOW_S,
        versions=[
            _version(
                await services.store.get_version(task, number),
                share,
                services.metrics.recent.stats(task, number),
            )
            for number, share in shares.items()
        ],
    )


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
    """Split the traffic until the next activation or rollback, or until `rollback_if` applies.

    The versions are loaded first.
    """
    weights = {int(number): weight for number, weight in body.weights.items() if weight}

    async def work(preconditions: Preconditions) -> TrafficResponse:
        preconditions = replace(
            preconditions,
            expected_activation=await services.store.current_activation(task),
        )
        warnings = []
        manifests = [await services.store.get_version(task, number) for number in weights]
        rule = await _rule(services, body, task, manifests)
        for manifest in manifests:
            await services.rechecks.check_golden(manifest)
            warnings.append(await services.uploads.load(manifest.digest))
        warning = "; ".join(filter(None, warnings)) or None
        return await _set(services, task, weights, preconditions, principal, warning, rule)

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
    rollback_if: RollbackRule | None = None,
) -> TrafficResponse:
    def answer(made: Activation) -> TrafficResponse:
        return TrafficResponse(
            task=task,
            active_version=made.version,
            weights=made.weights,
            rollback_if=made.rollback_if,
            warning=warning,
        )

    preconditions = preconditions.after(answer)
    made = await services.store.set_traffic(
        task,
        weights,
        by=principal.actor,
        preconditions=preconditions,
        rollback_if=rollback_if,
    )
    return answer(made)


async def _rule(
    services: Services, body: TrafficRequest, task: str, manifests: Sequence[Manifest]
) -> RollbackRule | None:
    """Return the rule of a new split: its own, or that of the split before it.

    Raises `InvalidRequest` for a rule that could never apply.
    """
    current = next(iter(await services.store.history(task, 1)), None)
    canaries = [one for one in manifests if current is None or one.version != current.version]
    if "rollback_if" not in body.model_fields_set:
        rule = current.rollback_if if current is not None and canaries else None
    else:
        rule = body.rollback_if
    if rule is None:
        return None
    if not canaries:
        raise InvalidRequest("`rollback_if` needs a version besides the active one")
    if rule.golden_fails and not (await services.store.get_task(task)).profile.golden:
        for manifest in canaries:
            if not manifest.golden:
                raise InvalidRequest(
                    "`golden_fails` needs golden prompts: neither the task nor version "
                    f"{manifest.version} has any"
                )
    return rule


def _shares(activation: Activation) -> dict[int, float]:
    """Return the part of the traffic of each version that gets any."""
    weights = activation.weights or {activation.version: 1}
    return {number: weight / sum(weights.values()) for number, weight in weights.items()}


def _version(manifest: Manifest, share: float, stats: RecentStats) -> VersionTraffic:
    return VersionTraffic(
        version=manifest.version,
        share=share,
        requests=stats.num_requests,
        errors=stats.num_errors,
        error_rate=stats.error_rate,
        refused=stats.num_refused,
        first_token_ms=_in_ms(stats.first_token_s),
        total_ms=_in_ms(stats.total_s),
        evaluation=manifest.evaluation,
    )


def _in_ms(found: Quantiles | None) -> Percentiles | None:
    if found is None:
        return None
    return Percentiles(p50=round(found.p50 * 1000, 1), p95=round(found.p95 * 1000, 1))


def _json(answer: TrafficResponse) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")
