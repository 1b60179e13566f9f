"""Tasks: their profiles, and which version answers."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from prefix_store.errors import TaskExists
from prefix_store.manifest import Manifest, Profile, Task
from server.api.deps import JsonRoute, ServicesDep
from server.api.residency import residency
from server.api.schemas import (
    ActivateRequest,
    ActivationResponse,
    Limit,
    TaskDescription,
    TaskPage,
    TaskPath,
)
from server.prompt import check_profile

routes = APIRouter(prefix="/tasks", tags=["tasks"], route_class=JsonRoute)

After = Annotated[str | None, Query(max_length=63, description="Names behind this one.")]


@routes.get("")
async def list_tasks(services: ServicesDep, limit: Limit = 100, after: After = None) -> TaskPage:
    """All tasks, a page at a time, in the order of their names."""
    tasks = await services.off_loop(services.store.list_tasks, after, limit + 1)
    is_last = len(tasks) <= limit
    return TaskPage(tasks=tasks[:limit], next_after=None if is_last else tasks[limit - 1].name)


@routes.get("/{task}")
async def get_task(task: TaskPath, services: ServicesDep) -> TaskDescription:
    """A task's profile, its active version, and whether that is in memory."""
    found = await services.off_loop(services.store.get_task, task)
    digest = None
    if found.active_version is not None:
        manifest = await services.off_loop(services.store.get_version, task, found.active_version)
        digest = manifest.digest
    return TaskDescription(
        **dict(found),
        digest=digest,
        residency=None if digest is None else residency(services, digest),
        weights=await services.off_loop(services.store.traffic, task),
    )


@routes.put("/{task}", responses={201: {"model": Task, "description": "The task is new."}})
async def put_task(task: TaskPath, profile: Profile, services: ServicesDep) -> Response:
    """Create a task, or replace its profile."""
    check_profile(profile)
    try:
        created = await services.off_loop(services.store.create_task, task, profile)
    except TaskExists:
        changed = await services.off_loop(services.store.set_profile, task, profile)
        return _json(changed, 200)
    return _json(created, 201)


@routes.patch("/{task}")
async def patch_task(
    task: TaskPath,
    patch: Annotated[dict[str, Any], Body(description="Parts of a profile. null: the default.")],
    services: ServicesDep,
) -> Task:
    """Change parts of a task's profile (RFC 7396)."""
    found = await services.off_loop(services.store.get_task, task)
    profile = _patched(found.profile, patch)
    check_profile(profile)
    return await services.off_loop(services.store.set_profile, task, profile)


@routes.delete("/{task}", status_code=204)
async def delete_task(task: TaskPath, services: ServicesDep) -> None:
    """Gone for new requests; those in flight finish."""
    versions = await services.off_loop(services.store.list_versions, task)
    await services.off_loop(services.store.delete_task, task)
    await services.uploads.unload(versions)


@routes.post("/{task}/activate")
async def activate(
    task: TaskPath, body: ActivateRequest, services: ServicesDep
) -> ActivationResponse:
    """Hot swap: new requests get this version, those in flight keep theirs."""
    manifest = await services.off_loop(services.store.get_version, task, body.version)
    await services.uploads.check_golden(manifest)
    warning = await services.uploads.load(manifest.digest)
    await services.off_loop(services.store.activate, task, body.version)
    return _activated(manifest, warning)


@routes.post("/{task}/rollback")
async def rollback(task: TaskPath, services: ServicesDep) -> ActivationResponse:
    """Back to the version that was active before."""
    activation = await services.off_loop(services.store.rollback, task)
    manifest = await services.off_loop(services.store.get_version, task, activation.version)
    return _activated(manifest, await services.uploads.load(manifest.digest))


def _activated(manifest: Manifest, warning: str | None) -> ActivationResponse:
    return ActivationResponse(
        task=manifest.task,
        active_version=manifest.version,
        digest=manifest.digest,
        warning=warning,
    )


def _patched(profile: Profile, patch: dict[str, Any]) -> Profile:
    merged = _merged(profile.model_dump(mode="json"), patch)
    try:
        return Profile.model_validate(merged)
    except ValidationError as exc:
        raise RequestValidationError(
            [error | {"loc": ("body", *error["loc"])} for error in exc.errors()]
        ) from exc


def _merged(old: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged


def _json(task: Task, status: int) -> Response:
    return Response(task.model_dump_json(), status, media_type="application/json")
