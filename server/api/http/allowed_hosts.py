"""Keeps the web pages of other sites off a server that asks nobody for a key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from prefix_store.errors import PrefixStoreError
from server.api.http import problems
from server.errors import ForeignOrigin, ServerError, UnknownHost

ANY_HOST = "*"
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_OWN_FETCHES = (b"same-origin", b"none")
"""Of `Sec-Fetch-Site`. `none`: the user did it, not a page. A browser takes all ports of a host for
the same site, so `same-site` is another program's page."""


class OwnHosts:
    """The names that the server is called by: loopback's, its address, and those it was told."""

    def __init__(self, address: str, names: Iterable[str] = ()) -> None:
        """`address`: what it listens on. Where that is every address, every address is its own: a
        page cannot make one stand for another machine, as it can with a name."""
        self._told = {name.strip().lower() for name in names} - {""}
        self._names = {"localhost", address.lower(), *self._told}
        self._is_everywhere = address in ("0.0.0.0", "::")

    def has(self, host: str) -> bool:
        """Whether a `Host` header means this server, whatever its port."""
        name = _without_port(host)
        told = self._told & {ANY_HOST, host.lower()}
        return bool(told) or name in self._names or self._is_own_address(name)

    def has_page(self, origin: str, host: str) -> bool:
        """Whether an `Origin` is a page of this server, asked as `host`. Behind a proxy `host` may
        be another name than the browser's, which the server was told then, with its port."""
        site = origin.partition("://")[2].lower()
        return site != "" and (site == host.lower() or site in self._told)

    def _is_own_address(self, name: str) -> bool:
        try:
            address = ip_address(name)
        except ValueError:
            return False
        return self._is_everywhere or address.is_loopback


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].removesuffix(".").lower()


class OwnSiteOnly:
    """Refuses what a page of another site makes a browser send, while there is no key.

    A browser reaches its own machine for any page that it shows: by a request that needs no
    preflight, whose `Origin` and `Sec-Fetch-Site` are foreign, or by a name of the page's own that
    turns into 127.0.0.1, which then stands in `Host`. Programs send neither of the first two. With
    keys none of it matters: no page has one.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: OwnHosts,
        is_open: Callable[[], Awaitable[bool]],
        denied: Callable[[str], None],
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._is_open = is_open
        self._denied = denied

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        try:
            if refusal is not None and await self._is_open():
                self._denied(refusal.code)
                raise refusal
        except (ServerError, PrefixStoreError) as exc:
            scope["state"]["log"]["error"] = exc.code
            await problems.respond(scope, exc)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ServerError | None:
        host = "".join(_values(scope, b"host"))
        if host and not self._hosts.has(host):  # HTTP/1.0 has none, and no browser speaks it
            return UnknownHost("the server does not go by this name: see FOREWORD_ALLOWED_HOSTS")
        if scope["method"] not in _SAFE_METHODS and self._is_of_a_foreign_page(scope, host):
            return ForeignOrigin("a page of another site sent this, and the server asks for no key")
        return None

    def _is_of_a_foreign_page(self, scope: Scope, host: str) -> bool:
        fetches = (value for name, value in scope["headers"] if name == b"sec-fetch-site")
        if any(value not in _OWN_FETCHES for value in fetches):
            return True
        return not all(self._hosts.has_page(origin, host) for origin in _values(scope, b"origin"))


def _values(scope: Scope, header: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == header]
