"""Versions of a task: upload, list, download, delete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from prefix_store import formats
from prefix_store.digest import Digest
from prefix_store.formats.text import JsonUpload
from prefix_store.manifest import Manifest
from prefix_store.registry.preconditions import Preconditions
from server.api.http import sse
from server.api.http.access import Principal, PrincipalDep, needs
from server.api.http.deps import JsonRoute, Services, ServicesDep
from server.api.http.preconditions import ChangeHeaders, ChangeHeadersDep, make_change
from server.api.routes.residency import residency
from server.api.schemas.admin import (
    Rehearsal,
    TaskPath,
    Uploaded,
    VerificationReport,
    VersionDescription,
    VersionList,
    VersionPath,
)
from server.publishing.results import DryRunResult, PublishedVersion

routes = APIRouter(prefix="/tasks", tags=["versions"], route_class=JsonRoute)

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A prefix: our artifact, PEFT's adapter_model.safetensors, a tar of either "
        "with a `foreword.json`, or JSON: text from which the server computes one, or the number "
        "of a version whose prefix is used again with another definition.",
        "content": {
            formats.SAFETENSORS: _BINARY,
            formats.OCTET_STREAM: _BINARY,
            formats.TAR[0]: _BINARY,
            formats.JSON: {
                "schema": JsonUpload.model_json_schema(),
                "example": {"text": "Translate to French.\n\n"},
            },
        },
    }
}
_DOWNLOAD: dict[int | str, dict[str, Any]] = {
    200: {"content": {formats.SAFETENSORS: _BINARY, formats.TAR[0]: _BINARY}}
}

DryRun = Annotated[
    bool,
    Query(description="Do everything except create the version, and return what would happen."),
]
Activate = Annotated[bool, Query(description="Make the new version active.")]
Format = Annotated[
    Literal["artifact", "tar", "peft"],
    Query(
        description="`tar`: the artifact and a `foreword.json`, which says how prompts are built; "
        "`peft`: a directory that PEFT loads, with the same `foreword.json`."
    ),
]


@dataclass(frozen=True, slots=True)
class _UploadOptions:
    """Options of an upload."""

    activate: bool
    create: bool
    dry_run: bool
    new_status: int
    """HTTP status of a new version of an existing task."""


@routes.put(
    "/{task}/prefix",
    response_model=Uploaded,
    responses={201: {"model": Uploaded, "description": "The task is new."}},
    openapi_extra=_BODY,
)
@needs("write")
async def put_prefix(
    task: TaskPath,
    request: Request,
    services: ServicesDep,
    change_headers: ChangeHeadersDep,
    principal: PrincipalDep,
    dry_run: DryRun = False,
) -> Response:
    """Upload, verify and activate a version; creates the task if it is new."""
    options = _UploadOptions(
        activate=True, create=not change_headers.must_exist, dry_run=dry_run, new_status=200
    )
    return await _push(task, request, services, change_headers, principal, options)


@routes.post(
    "/{task}/versions",
    response_model=Uploaded,
    status_code=201,
    responses={200: {"model": Rehearsal, "description": "With `dry_run`."}},
    openapi_extra=_BODY,
)
@needs("write")
async def post_version(
    task: TaskPath,
    request: Request,
    services: ServicesDep,
    change_headers: ChangeHeadersDep,
    principal: PrincipalDep,
    activate: Activate = False,
    dry_run: DryRun = False,
) -> Response:
    """Upload and verify a version of an existing task."""
    options = _UploadOptions(activate=activate, create=False, dry_run=dry_run, new_status=201)
    return await _push(task, request, services, change_headers, principal, options)


@routes.get("/{task}/versions")
@needs("read")
async def list_versions(task: TaskPath, services: ServicesDep) -> VersionList:
    """List a task's versions and its activation history."""
    found = await services.store.get_task(task)
    versions = await services.store.list_versions(task)
    quarantined = await services.store.quarantined()
    return VersionList(
        task=task,
        active_version=found.active_version,
        versions=await _described(services, versions),
        quarantined=[m.version for m in versions if Digest(m.digest) in quarantined],
        history=await services.store.history(task),
    )


@routes.get("/{task}/versions/{version}")
@needs("read")
async def get_version(
    task: TaskPath, version: VersionPath, services: ServicesDep
) -> VersionDescription:
    """Get a version's manifest: its origin, its verification, and how prompts are built."""
    manifest = await services.store.get_version(task, version)
    [described] = await _described(services, [manifest])
    return described


@routes.post("/{task}/versions/{version}/verify")
@needs("write")
async def verify(task: TaskPath, version: VersionPath, services: ServicesDep) -> VerificationReport:
    """Verify a version again: its stored bytes, a test forward, its golden prompts."""
    manifest = await services.store.get_version(task, version)
    checks = await services.rechecks.verify(manifest)
    return VerificationReport(
        task=task,
        version=version,
        digest=manifest.digest,
        passed=all(check.passed for check in checks),
        verification=list(checks),
    )


@routes.delete("/{task}/versions/{version}", status_code=204)
@needs("delete")
async def delete_version(
    task: TaskPath,
    version: VersionPath,
    request: Request,
    services: ServicesDep,
    change_headers: ChangeHeadersDep,
    principal: PrincipalDep,
) -> Response:
    """Delete a version that is not active. Requests in flight finish."""

    async def work(preconditions: Preconditions) -> None:
        manifest = await services.store.get_version(task, version)
        await services.store.delete_version(task, version, preconditions, by=principal.actor)
        services.rechecks.end([manifest])
        await services.uploads.unload([manifest])

    return await make_change(
        services, request, task, change_headers, work, lambda _: Response(b"", 204)
    )


@routes.get("/{task}/versions/{version}/prefix", response_class=Response, responses=_DOWNLOAD)
@needs("read")
async def download(
    task: TaskPath,
    version: VersionPath,
    request: Request,
    services: ServicesDep,
    format: Format = "artifact",
) -> Response:
    """Download the artifact, or a tar that also says how prompts are built."""
    manifest = await services.store.get_version(task, version)
    opened = {
        "artifact": services.downloads.artifact,
        "tar": services.downloads.tar,
        "peft": services.downloads.peft,
    }[format](manifest)
    found = await opened
    is_artifact = format == "artifact"
    suffix, media_type = (
        ("safetensors", formats.SAFETENSORS) if is_artifact else ("tar", formats.TAR[0])
    )
    filename = f"{manifest.task}-{manifest.version}.{suffix}"
    headers = {
        "Content-Disposition": f'attachment; filename="{filename}"',
        "X-Task-Version": str(manifest.version),
        "X-Prefix-Digest": manifest.digest,
    }
    return sse.Streamed(
        found.pieces(),
        close=found.close,
        headers=headers,
        media_type=media_type,
        num_bytes=found.num_bytes,
    )


async def _described(services: Services, versions: list[Manifest]) -> list[VersionDescription]:
    pinned = {(task, number) for task, number, _ in await services.store.pinned()}
    return [
        VersionDescription(
            **dict(manifest),
            residency=residency(services, manifest.digest),
            pinned=(manifest.task, manifest.version) in pinned,
        )
        for manifest in versions
    ]


async def _push(
    task: str,
    request: Request,
    services: Services,
    change_headers: ChangeHeaders,
    principal: Principal,
    options: _UploadOptions,
) -> Response:
    if options.activate:
        principal.require("promote")
    services.router.check_open()
    media_type = request.headers.get("content-type", "")
    preflight = await services.uploads.preflight(task, media_type, create=options.create)

    async def work(preconditions: Preconditions) -> PublishedVersion:
        pushed = await services.uploads.push(
            task,
            body,
            media_type,
            activate=options.activate,
            create=options.create,
            preflight=preflight,
            by=principal.actor,
            preconditions=preconditions,
        )
        request.state.log |= {"task": task, "version": pushed.manifest.version}
        return pushed

    def respond(pushed: PublishedVersion) -> Response:
        manifest = dict(pushed.manifest)
        answer = Uploaded(**manifest, active=pushed.is_active, warning=pushed.warning)
        return _json(answer, 201 if pushed.is_new_task else options.new_status)

    async with services.spool.collect(request.stream()) as body:
        if options.dry_run:
            result = await services.uploads.dry_run(
                task, body, media_type, activate=options.activate, create=options.create
            )
            return _json(_dry_run_answer(result), 200)
        return await make_change(services, request, task, change_headers, work, respond, body)


def _dry_run_answer(result: DryRunResult) -> Rehearsal:
    pushed = result.pushed
    return Rehearsal(
        **dict(pushed.manifest),
        active=pushed.is_active,
        warning=pushed.warning,
        device_bytes=result.num_device_bytes,
        fits=result.fits,
        evicted=result.evicted,
    )


def _json(answer: Uploaded, status: int) -> Response:
    return Response(answer.model_dump_json(), status, media_type="application/json")
