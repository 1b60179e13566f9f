"""Middleware: request ids, the access log, unexpected errors; HEAD requests."""

from __future__ import annotations

import logging
import re
import time
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.http import problems

logger = logging.getLogger("server.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestContext:
    """Sets the request id, writes the access log, and answers unexpected errors with a bare 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.monotonic()
        request_id = _request_id(Headers(scope=scope))
        state = scope.setdefault("state", {})
        state |= {"request_id": request_id, "log": {}, "arrived_s": started_s, "status": None}
        sender = _with_request_id(scope, send)
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, sender)
            except Exception:  # a bug: log it with the request id
                logger.exception("unhandled error")
                if state["status"] is not None:
                    raise
                await problems.internal(scope)(scope, receive, sender)
            finally:
                _write_log_line(scope, time.monotonic() - started_s)


class HeadRequests:
    """Answers HEAD like GET, without the body. FastAPI's routes take only what they declare."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        as_get = {**scope, "method": "GET"}
        try:
            await self._app(as_get, receive, _without_body(send))
        finally:
            scope.update(as_get, method="HEAD")  # the access log asks for the route


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        is_body = message["type"] == "http.response.body"
        await send({**message, "body": b""} if is_body else message)

    return send_head


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid4().hex


def _with_request_id(scope: Scope, send: Send) -> Send:
    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            scope["state"]["status"] = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = scope["state"]["request_id"]
        await send(message)

    return send_with_id


def _write_log_line(scope: Scope, duration_s: float) -> None:
    route = getattr(scope.get("route"), "path", None)
    state = scope["state"]
    extra = {
        "method": scope["method"],
        "route": route or "-",
        "status": state["status"],
        "duration_ms": round(duration_s * 1000, 1),
    }
    is_quiet = route in ("/livez", "/readyz", "/metrics") or str(route).startswith("/console")
    level = logging.DEBUG if is_quiet else logging.INFO
    logger.log(level, "request", extra=extra | state["log"])
