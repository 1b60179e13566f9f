"""Conditional and idempotent changes: the headers `If-Match` and `Idempotency-Key`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from fastapi import Depends, Header, Request, Response

from prefix_store.digest import Digest
from prefix_store.errors import RequestInProgress
from prefix_store.registry.preconditions import IdempotentRequest, Preconditions
from server.api.http.access import get_principal
from server.api.http.deps import Services
from server.errors import MalformedRequest
from server.publishing.spool import SpoolFile

_TAG = r'(?:W/)?"[^"]*"'
_TAGS = re.compile(rf"\s*{_TAG}\s*(?:,\s*{_TAG}\s*)*", re.ASCII)
_REVISION = re.compile(r'(?<!/)"(\d{1,18})"', re.ASCII)


@dataclass(frozen=True, slots=True)
class ChangeHeaders:
    """Parsed `If-Match` and `Idempotency-Key`."""

    revisions: frozenset[int] | None
    """Accepted revisions of the task; None for any."""
    must_exist: bool
    key: str | None


async def read_change_headers(
    if_match: Annotated[
        str | None, Header(description="The task's `ETag`: refused if it has changed since.")
    ] = None,
    idempotency_key: Annotated[
        str | None,
        Header(
            max_length=255,
            pattern=r"^[!-~]+$",
            description="A request repeated with the same key is answered like the first, without "
            "a second change.",
        ),
    ] = None,
) -> ChangeHeaders:
    revisions = None
    if if_match is not None and if_match.strip() != "*":
        if not _TAGS.fullmatch(if_match):
            raise MalformedRequest("If-Match is `*` or a list of entity tags in double quotes")
        revisions = frozenset(int(number) for number in _REVISION.findall(if_match))
    return ChangeHeaders(revisions, if_match is not None, idempotency_key)


ChangeHeadersDep = Annotated[ChangeHeaders, Depends(read_change_headers)]


def tag(revision: int) -> dict[str, str]:
    """Return the `ETag` header of a task's revision."""
    return {"ETag": f'"{revision}"'}


async def make_change(
    services: Services,
    request: Request,
    task: str,
    headers: ChangeHeaders,
    work: Callable[[Preconditions], Awaitable[Any]],
    respond: Callable[[Any], Response],
    upload: SpoolFile | None = None,
) -> Response:
    """Run `work` under the request's preconditions; `respond` turns its result into a response.

    `upload` is the request's body, if the route has collected it.

    A repeated request with the same idempotency key gets the stored response, without any work.
    """
    if headers.key is None:
        return respond(await work(Preconditions(headers.revisions)))
    principal = get_principal(request)
    idempotent = IdempotentRequest(
        principal=principal.actor.key or "",
        route=f"{request.method} {request.scope['route'].path}",
        task=task,
        key=headers.key,
        request_digest=await services.run_in_thread(
            _digest, request, await request.body() if upload is None else upload
        ),
        answer=lambda result: _serialise(respond(result)),
    )
    name = (idempotent.principal, idempotent.route, idempotent.task, idempotent.key)
    if name in services.in_progress:
        raise RequestInProgress("the first request with this idempotency key is still in progress")
    services.in_progress.add(name)
    try:
        answer = await services.store.find_answer(idempotent)
        if answer is not None:
            return _replay(answer)
        return respond(await work(Preconditions(headers.revisions, idempotent)))
    finally:
        services.in_progress.remove(name)


class _StoredResponse(msgspec.Struct):
    status: int
    body: str


def _serialise(response: Response) -> str:
    return msgspec.json.encode(
        _StoredResponse(response.status_code, bytes(response.body).decode())
    ).decode()


def _replay(answer: str) -> Response:
    kept = msgspec.json.decode(answer, type=_StoredResponse)
    return Response(kept.body, kept.status, media_type="application/json" if kept.body else None)


def _digest(request: Request, body: bytes | SpoolFile) -> Digest:
    """Digest path, query, content type and body, each with its length to separate the parts."""
    hashed = hashlib.sha256()
    kind = request.headers.get("content-type", "").encode()
    for part in (request.url.path.encode(), request.scope["query_string"], kind):
        hashed.update(len(part).to_bytes(8, "big"))
        hashed.update(part)
    num_bytes = len(body) if isinstance(body, bytes) else body.num_bytes
    hashed.update(num_bytes.to_bytes(8, "big"))
    for piece in (body,) if isinstance(body, bytes) else body.pieces():
        hashed.update(piece)
    return Digest(f"sha256:{hashed.hexdigest()}")
