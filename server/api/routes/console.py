"""Static files of the web console, and the server's root, which leads there. They are public; the
data that the console loads needs a key."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from server.api.http.access import public
from server.api.http.assets import Asset
from server.api.http.deps import ServicesDep

root = APIRouter(include_in_schema=False)
routes = APIRouter(prefix="/console", include_in_schema=False)

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",  # ask each time whether the ETag still holds
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


_PLACES = {"console": "console/", "docs": "docs", "openapi": "openapi.json", "livez": "livez"}
"""Relative to the root, so that they are right under any proxy path."""


@root.get("/")
@public
async def to_console(request: Request, services: ServicesDep) -> Response:
    """Redirect a browser to the console; tell a program where things are."""
    _find(services.console, "index.html")
    headers = {"Vary": "Accept", "Cache-Control": "no-cache"}
    if "text/html" in request.headers.get("accept", "").lower():
        return Response(status_code=307, headers=headers | {"Location": "console/"})
    return JSONResponse(_PLACES, headers=headers)


@routes.get("")
@public
async def to_folder(services: ServicesDep) -> Response:
    """Redirect to the folder, as the page's URLs are relative to work under any proxy path."""
    _find(services.console, "index.html")
    return Response(status_code=307, headers={"Location": "console/"})


@routes.get("/")
@public
async def index(request: Request, services: ServicesDep) -> Response:
    """Serve the page."""
    return _answer(request, _find(services.console, "index.html"))


@routes.get("/{name}")
@public
async def asset(name: str, request: Request, services: ServicesDep) -> Response:
    """Serve a file of the page."""
    return _answer(request, _find(services.console, name))


def _find(assets: Mapping[str, Asset], name: str) -> Asset:
    if (found := assets.get(name)) is None:
        raise HTTPException(404)
    return found


def _answer(request: Request, found: Asset) -> Response:
    headers = _HEADERS | {"ETag": found.tag}
    if found.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(found.body, headers=headers, media_type=found.media_type)
