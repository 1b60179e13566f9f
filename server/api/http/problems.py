"""Mapping of errors to responses: RFC 9457 problems, and OpenAI's format under /v1."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from prefix_store import errors as store
from prefix_store import wording
from server import errors as server
from server.metrics import Metrics

STATUS: dict[type[Exception], int] = {
    store.InvalidName: 422,
    store.NotFound: 404,
    store.Conflict: 409,
    store.PreconditionFailed: 412,
    store.IdempotencyMismatch: 422,
    store.UnsupportedMediaType: 415,
    store.InvalidUpload: 422,
    store.QuotaExceeded: 403,
    store.StoreFull: 507,
    store.StorageFailure: 503,
    store.PrefixStoreError: 500,
    server.BaseModelMismatch: 409,
    server.NotAChat: 400,
    server.InvalidRequest: 422,
    server.MalformedRequest: 400,
    server.Overloaded: 429,
    server.Unavailable: 503,
    server.PrefixUnavailable: 503,
    server.EngineFailure: 500,
    server.PinRefused: 409,
    server.PrefixInUse: 409,
    server.UnusablePrefix: 422,
    server.GoldenPromptFailed: 409,
    server.HeadTooLarge: 431,
    server.BodyTooLarge: 413,
    server.BodyTimeout: 408,
    server.UnsupportedBody: 415,
    server.Unauthenticated: 401,
    server.InsufficientScope: 403,
    server.ForeignOrigin: 403,
    server.UnknownHost: 403,
    server.AccessDenied: 429,
    server.ClientGone: 499,
    server.ServerError: 500,
}
"""HTTP status by error class; the nearest base class counts."""

MAX_ERRORS = 16
_STORAGE_RETRY_S = 5
_OPENAI_CODES = {
    "invalid_name": "model_not_found",
    "key_limit_reached": "rate_limit_exceeded",
    "overloaded": "rate_limit_exceeded",
    "prompt_too_long": "context_length_exceeded",
    "too_many_attempts": "rate_limit_exceeded",
    "unauthenticated": "invalid_api_key",
    "unknown_task": "model_not_found",
    "unknown_version": "model_not_found",
}
"""OpenAI's names of our codes. All others keep our code."""
_FRAMEWORK_CODES = {404: "not_found", 405: "method_not_allowed", 400: "malformed_request"}


def status_of(error: Exception) -> int:
    """Return the HTTP status of one of our errors."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def describe(error: store.PrefixStoreError | server.ServerError, request_id: str) -> dict[str, Any]:
    """Build the problem document for an error within a stream."""
    return _problem(status_of(error), error.code, str(error), request_id)


def respond(scope: Scope, error: Exception) -> Response:
    """Build the response for one of our own errors."""
    assert isinstance(error, store.PrefixStoreError | server.ServerError)
    headers: dict[str, str] = {}
    if isinstance(error, server.ServerError) and error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, store.StorageFailure):
        headers["Retry-After"] = str(_STORAGE_RETRY_S)
    if isinstance(error, server.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, server.HeadTooLarge | server.BodyTimeout | server.BodyTooLarge):
        headers["Connection"] = "close"
    param = error.param if isinstance(error, server.InvalidRequest) else None
    return _response(scope, status_of(error), error.code, str(error), headers=headers, param=param)


def internal(scope: Scope) -> Response:
    """Build the response for an unexpected error, which reveals nothing."""
    return _response(scope, 500, "internal", "an internal error; the server's log has the details")


def unreadable(*, is_too_large: bool) -> tuple[int, bytes]:
    """Return status and body for invalid HTTP, which has no request id."""
    error = server.HeadTooLarge if is_too_large else server.MalformedRequest
    status, detail = STATUS[error], "this is not a request in HTTP/1.1 of ordinary size"
    return status, msgspec.json.encode(_problem(status, error.code, detail, "-"))


def install(app: FastAPI, routes: Sequence[APIRoute], metrics: Metrics) -> None:
    """Install the error handlers. `routes`: the app's own routes, for the `Allow` header."""

    async def ours(request: Request, error: Exception) -> Response:
        request.state.log["error"] = getattr(error, "code", None)
        if isinstance(error, server.AccessDenied):
            # Counted but not audited, or strangers could fill the disk with audit rows.
            metrics.denied(error.code)
        return respond(request.scope, error)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _invalid(request.scope, error)

    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = _FRAMEWORK_CODES.get(error.status_code, "refused")
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = _allowed(routes, request.scope)
        detail = HTTPStatus(error.status_code).phrase.lower()
        return _response(request.scope, error.status_code, code, detail, headers=headers)

    app.add_exception_handler(store.PrefixStoreError, ours)
    app.add_exception_handler(server.ServerError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, framework)


def _invalid(scope: Scope, error: RequestValidationError) -> Response:
    """Build a 422 with location and reason but not the input, which may be huge or secret."""
    errors = error.errors()
    if any(e["type"] == "json_invalid" for e in errors):
        return _response(scope, 400, "malformed_request", "the body is not valid JSON")
    listed = [
        {"loc": wording.location(e), "msg": wording.what(e), "type": e["type"]}
        for e in errors[:MAX_ERRORS]
    ]
    place = listed[0]["loc"] if listed else ["request"]
    param = next((at for at in place[1:] if isinstance(at, str)), None)
    fields = _fields_of(scope.get("route"))
    detail = wording.sentence(errors[0], fields) if errors else "the request is not valid"
    return _response(scope, 422, "validation_failed", detail, errors=listed, param=param)


def _fields_of(route: object) -> Collection[str]:
    """Names of the fields of a route's body, if it takes one."""
    body = route.body_field if isinstance(route, APIRoute) else None
    model = None if body is None else body.field_info.annotation
    return getattr(model, "model_fields", {}).keys()


def _allowed(routes: Sequence[APIRoute], scope: Scope) -> str:
    """Return all methods of the path; FastAPI names only those of the first route."""
    found = [
        route.methods or set() for route in routes if route.path_regex.fullmatch(scope["path"])
    ]
    methods = set().union(*found)
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))


def _response(
    scope: Scope,
    status: int,
    code: str,
    detail: str,
    *,
    headers: dict[str, str] | None = None,
    errors: list[dict[str, Any]] | None = None,
    param: str | None = None,
) -> Response:
    if scope["path"].startswith("/v1/"):
        content = openai_error(status, code, detail, param)
        status = 400 if status == 422 else status  # OpenAI has no 422
        body = msgspec.json.encode(content)
        return Response(body, status, headers, media_type="application/json")
    content = _problem(status, code, detail, scope["state"]["request_id"])
    if errors is not None:
        content["errors"] = errors
    body = msgspec.json.encode(content)
    return Response(body, status, headers, media_type="application/problem+json")


def _problem(status: int, code: str, detail: str, request_id: str) -> dict[str, Any]:
    return {
        "type": f"urn:foreword:problem:{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }


def openai_error(status: int, code: str, detail: str, param: str | None = None) -> dict[str, Any]:
    """Build an error body in OpenAI's format."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    kind = "rate_limit_error" if status == 429 else kind
    code = _OPENAI_CODES.get(code, code)
    return {"error": {"message": detail, "type": kind, "param": param, "code": code}}
