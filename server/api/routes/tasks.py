"""Tasks: profiles, activation and rollback."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from prefix_store.errors import TaskExists
from prefix_store.manifest import Activation, Manifest, Profile, Task
from prefix_store.registry.audit import Actor
from prefix_store.registry.preconditions import Preconditions
from prefix_store.registry.queries import Sort, State, cursor
from server.api.http.access import PrincipalDep, needs
from server.api.http.deps import JsonRoute, Services, ServicesDep
from server.api.http.preconditions import ChangeHeaders, ChangeHeadersDep, make_change, tag
from server.api.routes.residency import residency
from server.api.schemas.admin import (
    ActivateRequest,
    ActivationResponse,
    Limit,
    TaskDescription,
    TaskPage,
    TaskPath,
)
from server.errors import InvalidRequest

routes = APIRouter(prefix="/tasks", tags=["tasks"], route_class=JsonRoute)

After = Annotated[
    str | None, Query(max_length=100, description="Return what follows: a page's `next_after`.")
]
Search = Annotated[
    str,
    Query(
        max_length=100,
        pattern=r"^[^\x00]*$",
        description="Only tasks whose name or description contains this, in upper or lower case.",
    ),
]
StateFilter = Annotated[
    State | None,
    Query(description="Only tasks with an active version, a traffic split, or no active version."),
]
SortBy = Annotated[Sort, Query(description="Order of the list; `-` reverses it.")]


@routes.get("")
@needs("read")
async def list_tasks(
    services: ServicesDep,
    principal: PrincipalDep,
    limit: Limit = 100,
    after: After = None,
    search: Search = "",
    state: StateFilter = None,
    sort: SortBy = "name",
) -> TaskPage:
    """List tasks, by name unless `sort` says otherwise, one page at a time."""
    tasks = await services.store.list_tasks(
        after, limit + 1, principal.globs, search=search, state=state, sort=sort
    )
    is_last = len(tasks) <= limit
    next_after = None if is_last else cursor(tasks[limit - 1], sort)
    return TaskPage(tasks=tasks[:limit], next_after=next_after)


@routes.get("/{task}")
@needs("read")
async def get_task(task: TaskPath, services: ServicesDep, response: Response) -> TaskDescription:
    """Get a task: its profile, its active version and where that version's prefix is."""
    found = await services.store.get_task(task)
    digest = None
    if found.active_version is not None:
        manifest = await services.store.get_version(task, found.active_version)
        digest = manifest.digest
    response.headers.update(tag(found.revision))
    return TaskDescription(
        **dict(found),
        digest=digest,
        residency=None if digest is None else residency(services, digest),
        weights=await services.store.traffic(task),
    )


@routes.put("/{task}", responses={201: {"model": Task, "description": "The task is new."}})
@needs("write")
async def put_task(
    task: TaskPath,
    profile: Profile,
    services: ServicesDep,
    change_headers: ChangeHeadersDep,
    principal: PrincipalDep,
) -> Response:
    """Create a task, or replace its profile. A change of template, chat or defaults makes a new
    version with the same prefix, and activates it."""
    if not change_headers.must_exist:
        await services.definitions.check(profile)
        with suppress(TaskExists):
            created = await services.store.create_task(task, profile, by=principal.actor)
            return _json(created, 201)
    set_profile = partial(_set_profile, services, change_headers, principal.actor)
    return _json(await set_profile(task, lambda _: profile), 200)


@routes.patch("/{task}")
@needs("write")
async def patch_task(
    task: TaskPath,
    patch: Annotated[
        dict[str, Any], Body(description="Parts of a profile; null resets a field to its default.")
    ],
    services: ServicesDep,
    change_headers: ChangeHeadersDep,
    response: Response,
    principal: PrincipalDep,
) -> Task:
    """Change parts of a task's profile (RFC 7396). A change of template, chat or defaults makes a
    new version with the same prefix, and activates it."""
    set_profile = partial(_set_profile, services, change_headers, principal.actor)
    changed = await set_profile(task, lambda profile: _patched(profile, patch))
    response.headers.update(tag(changed.revision))
    return changed


@routes.delete("/{task}", status_code=204)
@needs("delete")
async def delete_task(
    task: TaskPath,
    request: Request,
    services: ServicesDep,
    change_headers: ChangeHeadersDep,
    principal: PrincipalDep,
) -> Response:
    """Delete a task and its versions. Requests in flight finish."""

    async def work(preconditions: Preconditions) -> None:
        versions = await services.store.list_versions(task)
        await services.store.delete_task(task, preconditions, by=principal.actor)
        services.rechecks.end(versions)
        await services.uploads.unload(versions)

    return await make_change(
        services, request, task, change_headers, work, lambda _: Response(b"", 204)
    )


@routes.post("/{task}/activate", response_model=ActivationResponse)
@needs("promote")
async def activate(
    task: TaskPath,
    body: ActivateRequest,
    request: Request,
    services: ServicesDep,
    change_headers: ChangeHeadersDep,
    principal: PrincipalDep,
) -> Response:
    """Hot swap: new requests get this version, those in flight keep theirs."""

    async def work(preconditions: Preconditions) -> ActivationResponse:
        activation = await services.store.current_activation(task)
        manifest = await services.store.get_version(task, body.version)
        await services.rechecks.check_golden(manifest)
        answer = _activated(manifest, await services.uploads.load(manifest.digest))
        preconditions = replace(preconditions, expected_activation=activation).after(
            lambda _: answer
        )
        await services.store.activate(
            task,
            body.version,
            by=principal.actor,
            preconditions=preconditions,
        )
        return answer

    return await make_change(services, request, task, change_headers, work, _json)


@routes.post("/{task}/rollback", response_model=ActivationResponse)
@needs("promote")
async def rollback(
    task: TaskPath,
    request: Request,
    services: ServicesDep,
    change_headers: ChangeHeadersDep,
    principal: PrincipalDep,
) -> Response:
    """Go back to the version that was active before."""

    def answer(activation: Activation) -> ActivationResponse:
        registry = services.store.blocking.registry  # runs within the change's transaction
        return _activated(registry.get_version(task, activation.version), None)

    async def work(preconditions: Preconditions) -> ActivationResponse:
        preconditions = preconditions.after(answer)
        activation = await services.store.rollback(
            task, by=principal.actor, preconditions=preconditions
        )
        answered = await services.run_in_thread(answer, activation)
        warning = await services.uploads.load(answered.digest)
        return answered.model_copy(update={"warning": warning})

    return await make_change(services, request, task, change_headers, work, _json)


async def _set_profile(
    services: Services,
    change_headers: ChangeHeaders,
    by: Actor,
    task: str,
    change: Callable[[Profile], Profile],
) -> Task:
    """Replace a task's profile by what `change` makes of it."""
    activation = await services.store.current_activation(task)
    found = await services.store.get_task(task)
    profile = change(found.profile)
    redefined = await services.definitions.redefined(found, profile)
    preconditions = Preconditions(change_headers.revisions)
    if redefined is not None:
        preconditions = replace(preconditions, expected_activation=activation)
    return await services.store.set_profile(task, profile, preconditions, by, redefined, change)


def _activated(manifest: Manifest, warning: str | None) -> ActivationResponse:
    return ActivationResponse(
        task=manifest.task,
        active_version=manifest.version,
        digest=manifest.digest,
        warning=warning,
    )


def _patched(profile: Profile, patch: dict[str, Any]) -> Profile:
    defaults = patch.get("defaults")
    if isinstance(defaults, dict) and defaults.keys() & {"choices", "rank_by"}:
        raise InvalidRequest("`choices` and `rank_by` are the old names of `rank`: set `rank`")
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


def _json(model: Task | ActivationResponse, status: int = 200) -> Response:
    headers = tag(model.revision) if isinstance(model, Task) else None
    return Response(model.model_dump_json(), status, headers, media_type="application/json")
