"""Authentication and authorisation, before a request's body is read.

Each route declares the scopes that it needs, `@needs("read")`, or is `@public`. The server refuses
to start if a route declares neither.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from prefix_store.errors import UnknownTask
from prefix_store.reference import is_task_name, matches
from prefix_store.registry.audit import Actor
from prefix_store.registry.keys import CACHE_S, Key, KeyStore, Scope
from server.api.http.limits import AttemptLimit, KeyLimits
from server.async_store import AsyncStore
from server.errors import (
    InsufficientScope,
    MalformedRequest,
    Unauthenticated,
)

E = TypeVar("E", bound=Callable[..., Any])

PUBLIC: frozenset[Scope] = frozenset()


def needs(*any_of: Scope) -> Callable[[E], E]:
    """Declare the scopes of a route; one of them is sufficient."""
    assert any_of, "a route that needs nothing is @public"
    return _declaring(frozenset(any_of))


def public(endpoint: E) -> E:
    """Declare a route that needs no key."""
    return _declaring(PUBLIC)(endpoint)


def _declaring(scopes: frozenset[Scope]) -> Callable[[E], E]:
    def declare(endpoint: E) -> E:
        endpoint.needs = scopes  # type: ignore[attr-defined]
        return endpoint

    return declare


def required_scopes(route: BaseRoute) -> frozenset[Scope] | None:
    """Return the scopes that a route declares; None if it declares nothing."""
    found: frozenset[Scope] | None = getattr(getattr(route, "endpoint", None), "needs", None)
    return found


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated client of a request."""

    key: Key | None
    """None: the server has no keys yet, and every client has all permissions."""
    actor: Actor

    @property
    def globs(self) -> Sequence[str]:
        """Globs of the tasks that are visible to this principal."""
        return ("*",) if self.key is None else self.key.tasks

    def check_task(self, task: str | None) -> None:
        """Raise `UnknownTask`, as for a missing task, unless the key covers it.

        None is the bare base model; raises `InsufficientScope` for a key restricted to some tasks.
        """
        if task is None:
            if not self._is_for_all_tasks:
                raise InsufficientScope(
                    "the key is restricted to some tasks and does not cover the base model"
                )
        elif not matches(self.globs, task):
            raise UnknownTask(
                f"there is no task {task}" if is_task_name(task) else "there is no such task"
            )

    def check_all_tasks(self) -> None:
        """Raise `InsufficientScope` for a key that is restricted to some tasks."""
        if not self._is_for_all_tasks:
            raise InsufficientScope(
                "the key is restricted to some tasks, and this concerns all of them"
            )

    def require(self, *any_of: Scope) -> None:
        """Raise `InsufficientScope` unless the key has one of the scopes."""
        if self.key is None and "admin" in any_of:
            raise InsufficientScope(
                "there are no keys yet: create the first one on the server's machine with "
                "`foreword keys create`"
            )
        if self.key is not None and not set(any_of) & set(self.key.scopes):
            raise InsufficientScope(f"this needs a key with the scope {' or '.join(any_of)}")

    @property
    def _is_for_all_tasks(self) -> bool:
        return self.key is None or self.key.is_for_all_tasks


def get_principal(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


PrincipalDep = Annotated[Principal, Depends(get_principal)]


class Access:
    """Authenticates requests. `store` looks up keys in the database.

    `max_concurrency` is for keys that have none of their own.
    """

    def __init__(self, keys: KeyStore, store: AsyncStore, *, max_concurrency: int) -> None:
        self._keys = keys
        self._store = store
        self._attempts = AttemptLimit()
        self._keys_exist = False
        self._asked_s = float("-inf")
        self.limits = KeyLimits(max_concurrency)

    async def principal(self, request: HTTPConnection) -> Principal:
        """Authenticate a request.

        Raises `Unauthenticated`, `TooManyAttempts`, `MalformedRequest`.
        """
        peer = "" if request.client is None else request.client.host
        if await self.is_open():
            return Principal(None, Actor(None, peer, request.state.request_id))
        key = await self._key(_credentials(request), peer)
        return Principal(key, Actor(key.id, peer, request.state.request_id))

    async def is_open(self) -> bool:
        """Whether the server has no keys. Looked up again until there is one."""
        if not self._keys_exist and time.monotonic() - self._asked_s > CACHE_S:
            self._keys_exist = await self._store.keys_exist()
            self._asked_s = time.monotonic()
        return not self._keys_exist

    async def _key(self, credentials: bytes | None, peer: str) -> Key:
        if credentials is not None:
            attempt = self._keys.read(credentials)
            found = self._keys.remembered(attempt)
            if found is None:
                self._attempts.check(peer)
                found = await self._store.find_key(attempt)
            key = self._keys.check(attempt, found)
            if key is not None:
                return key
            self._attempts.failed(peer)
        raise Unauthenticated("send a valid key, as in `Authorization: Bearer fwd_...`")


def _credentials(request: HTTPConnection) -> bytes | None:
    """Return the bearer token as bytes, since a header may not be text; ignore other schemes."""
    given = [value for name, value in request.scope["headers"] if name == b"authorization"]
    if len(given) > 1:
        raise MalformedRequest("more than one Authorization header")
    scheme, _, credentials = given[0].partition(b" ") if given else (b"", b"", b"")
    return credentials.strip() if scheme.lower() == b"bearer" else None


class _GuardedRoute:
    """ASGI app of a route that requires scopes."""

    def __init__(self, app: ASGIApp, scopes: frozenset[Scope], access: Access) -> None:
        self._app = app
        self._scopes = scopes
        self._access = access

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if self._scopes == PUBLIC:
            await self._app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        principal = await self._access.principal(request)
        request.state.principal = principal
        request.state.log["key"] = principal.actor.key
        with self._access.limits.admitted(principal.key):
            self._check(principal, request)
            await self._app(scope, receive, send)

    def _check(self, principal: Principal, request: HTTPConnection) -> None:
        if "task" in request.path_params:
            principal.check_task(request.path_params["task"])
        principal.require(*sorted(self._scopes))


def guard(app: FastAPI, access: Access, *, library: Sequence[BaseRoute]) -> None:
    """Guard every route of the app. `library`: FastAPI's own routes, which need the scope `read`.

    Raises `RuntimeError` if one of our routes declares nothing.
    """
    app.router.routes[:] = [_guarded(route, access, library) for route in app.router.routes]


def _guarded(route: BaseRoute, access: Access, library: Sequence[BaseRoute]) -> BaseRoute:
    scopes = frozenset[Scope](("read",)) if route in library else required_scopes(route)
    if scopes is None:
        raise RuntimeError(f"{route} declares neither @needs nor @public")
    guarded: Any = copy.copy(route)  # a router's routes are shared by all apps of a process
    guarded.app = _GuardedRoute(guarded.app, scopes, access)
    return guarded  # type: ignore[no-any-return]
