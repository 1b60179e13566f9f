"""Protection of a server without keys against web pages of other sites."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from ipaddress import ip_address

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from prefix_store.errors import PrefixStoreError
from server.api.http import problems
from server.errors import ForeignOrigin, ServerError, UnknownHost

ANY_HOST = ANY_ORIGIN = "*"
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_SAME_ORIGIN = (b"same-origin", b"none")
"""Accepted values of `Sec-Fetch-Site`. `none`: the user navigated, not a page. `same-site` is not
accepted, as all ports of a host are one site: it may be the page of another program."""
_EXPOSED = (
    "Content-Disposition",
    "ETag",
    "Retry-After",
    "X-Prefix-Digest",
    "X-Request-Id",
    "X-Task-Version",
)
"""Response headers that a page may read."""


class AllowedHosts:
    """Names of this server: loopback, its listen address, and configured names."""

    def __init__(
        self, address: str, names: Iterable[str] = (), origins: Iterable[str] = ()
    ) -> None:
        """`address` is the listen address. If it is the wildcard, all IP addresses are accepted:
        unlike a name, an address cannot be rebound to another machine by a page.

        `origins` are those of pages that may use a server without keys. `*` is none of them.
        """
        self._origins = frozenset(origins) - {ANY_ORIGIN}
        self._configured = {name.strip().lower() for name in names} - {""}
        self._names = {"localhost", address.lower(), *self._configured}
        self._is_wildcard = address in ("0.0.0.0", "::")

    def allows(self, host: str) -> bool:
        """Whether a `Host` header names this server, on any port."""
        name = _without_port(host)
        configured = self._configured & {ANY_HOST, host.lower()}
        return bool(configured) or name in self._names or self._is_own_address(name)

    def is_same_origin(self, origin: str, host: str) -> bool:
        """Whether an `Origin` is this server's own, for a request to `host`.

        With a reverse proxy `host` may differ from the browser's origin, which must then be
        configured, including its port.
        """
        site = origin.partition("://")[2].lower()
        return site != "" and (site == host.lower() or site in self._configured)

    def is_listed(self, origin: str) -> bool:
        """Whether the page of this `Origin` may use the server."""
        return origin in self._origins

    def _is_own_address(self, name: str) -> bool:
        try:
            address = ip_address(name)
        except ValueError:
            return False
        return self._is_wildcard or address.is_loopback


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].removesuffix(".").lower()


class CrossSiteGuard:
    """Middleware that rejects requests made by pages of other sites, while the server has no keys.

    Any page in a browser can reach the local machine: with a request that needs no CORS preflight,
    recognisable by `Origin` and `Sec-Fetch-Site`, or by DNS rebinding, recognisable by `Host`.
    Programs other than browsers send neither of the first two headers. With keys none of this is
    needed, as no page has one.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: AllowedHosts,
        is_open: Callable[[], Awaitable[bool]],
        denied: Callable[[str], None],
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._is_open = is_open
        self._denied = denied

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._check(scope) if scope["type"] == "http" else None
        try:
            if error is not None and await self._is_open():
                self._denied(error.code)
                raise error
        except (ServerError, PrefixStoreError) as exc:
            scope["state"]["log"]["error"] = exc.code
            await problems.respond(scope, exc)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> ServerError | None:
        host = "".join(_values(scope, b"host"))
        if host and not self._hosts.allows(host):  # absent in HTTP/1.0, which no browser uses
            return UnknownHost(
                "the Host header does not name this server: see FOREWORD_ALLOWED_HOSTS"
            )
        if scope["method"] not in _SAFE_METHODS and self._is_cross_site(scope, host):
            return ForeignOrigin(
                "a page of another site sent this request, and the server has no keys"
            )
        return None

    def _is_cross_site(self, scope: Scope, host: str) -> bool:
        origins = _values(scope, b"origin")
        if origins and all(self._hosts.is_listed(origin) for origin in origins):
            return False
        fetches = (value for name, value in scope["headers"] if name == b"sec-fetch-site")
        if any(value not in _SAME_ORIGIN for value in fetches):
            return True
        return not all(self._hosts.is_same_origin(origin, host) for origin in origins)


def share_with_origins(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    """Wrap an app so that pages of these origins, or of any (`*`), may call it and read answers.

    It has to be the outermost middleware, so that refusals by the others can be read, too. Cookies
    are not read by this server, and so not allowed. Any request header is: SDKs send their own.
    """
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
        allow_headers=("*",),
        allow_private_network=True,  # a listed page of the web may call a server on loopback
        expose_headers=_EXPOSED,
    )


def _values(scope: Scope, header: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == header]
