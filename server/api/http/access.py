"""Who is asking, and whether the route is for them. Stands before every route, bodies unread.

Beside each route stands what it needs: `@needs("read")`, or `@public`. A route without either
keeps the server from starting.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeVar

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
from server.errors import (
    InsufficientScope,
    MalformedRequest,
    Unauthenticated,
)

E = TypeVar("E", bound=Callable[..., Any])

PUBLIC: frozenset[Scope] = frozenset()


def needs(*any_of: Scope) -> Callable[[E], E]:
    """Declares the scopes of which a route needs one."""
    assert any_of, "a route that needs nothing is @public"
    return _declaring(frozenset(any_of))


def public(endpoint: E) -> E:
    """Declares a route that is for everybody, without a key."""
    return _declaring(PUBLIC)(endpoint)


def _declaring(scopes: frozenset[Scope]) -> Callable[[E], E]:
    def declare(endpoint: E) -> E:
        endpoint.needs = scopes  # type: ignore[attr-defined]
        return endpoint

    return declare


def need_of(route: BaseRoute) -> frozenset[Scope] | None:
    """What is declared beside a route; None if nothing is."""
    found: frozenset[Scope] | None = getattr(getattr(route, "endpoint", None), "needs", None)
    return found


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking."""

    key: Key | None
    """None: nobody has made a key for this server yet, and everybody may do everything."""
    actor: Actor

    @property
    def globs(self) -> Sequence[str]:
        """Patterns of the tasks that there are for this principal."""
        return ("*",) if self.key is None else self.key.tasks

    def check_task(self, task: str | None) -> None:
        """Raises `UnknownTask`, as if there were no such task. None: the bare base model."""
        if task is None:
            if not self._is_for_all_tasks:
                raise InsufficientScope("the key is for some tasks, not for the base model")
        elif not matches(self.globs, task):
            raise UnknownTask(
                f"there is no task {task}" if is_task_name(task) else "there is no such task"
            )

    def check_all_tasks(self) -> None:
        """Raises `InsufficientScope` for a key that must not learn what other tasks there are."""
        if not self._is_for_all_tasks:
            raise InsufficientScope("the key is for some tasks, and this is about all")

    def require(self, *any_of: Scope) -> None:
        """Raises `InsufficientScope`."""
        if self.key is None and "admin" in any_of:
            raise InsufficientScope(
                "there are no keys yet: the first is made on the server's machine, by "
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


class RunInThread(Protocol):
    """Runs blocking work on a thread."""

    async def __call__(self, work: Callable[..., Any], *args: Any) -> Any: ...


class Access:
    """Finds out who is asking. `run_in_store` runs what asks the database."""

    def __init__(self, keys: KeyStore, run_in_store: RunInThread) -> None:
        self._keys = keys
        self._run_in_thread = run_in_store
        self._attempts = AttemptLimit()
        self._keys_exist = False
        self._asked_s = float("-inf")
        self.limits = KeyLimits()

    async def principal(self, request: HTTPConnection) -> Principal:
        """Raises `Unauthenticated`, `TooManyAttempts`, `MalformedRequest`."""
        peer = "" if request.client is None else request.client.host
        if await self.is_open():
            return Principal(None, Actor(None, peer, request.state.request_id))
        key = await self._key(_credentials(request), peer)
        return Principal(key, Actor(key.id, peer, request.state.request_id))

    async def is_open(self) -> bool:
        """Whether there is no key. That there is one holds for good; else it is asked again."""
        if not self._keys_exist and time.monotonic() - self._asked_s > CACHE_S:
            self._keys_exist = await self._run_in_thread(self._keys.exist)
            self._asked_s = time.monotonic()
        return not self._keys_exist

    async def _key(self, credentials: bytes | None, peer: str) -> Key:
        if credentials is not None:
            attempt = self._keys.read(credentials)
            found = self._keys.remembered(attempt)
            if found is None:
                self._attempts.check(peer)
                found = await self._run_in_thread(self._keys.find, attempt)
            key = self._keys.check(attempt, found)
            if key is not None:
                return key
            self._attempts.failed(peer)
        raise Unauthenticated("send a valid key, as in `Authorization: Bearer fwd_...`")


def _credentials(request: HTTPConnection) -> bytes | None:
    """What follows `Bearer`: bytes, for a header need not be text. Nothing else is looked at."""
    given = [value for name, value in request.scope["headers"] if name == b"authorization"]
    if len(given) > 1:
        raise MalformedRequest("more than one Authorization header")
    scheme, _, credentials = given[0].partition(b" ") if given else (b"", b"", b"")
    return credentials.strip() if scheme.lower() == b"bearer" else None


class _Gate:
    """One route's app, for those who may."""

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
    """Put a gate before every route of the app. `library`: routes that are not ours, for readers.

    Raises `RuntimeError` for a route of ours that declares nothing.
    """
    app.router.routes[:] = [_guarded(route, access, library) for route in app.router.routes]


def _guarded(route: BaseRoute, access: Access, library: Sequence[BaseRoute]) -> BaseRoute:
    scopes = frozenset[Scope](("read",)) if route in library else need_of(route)
    if scopes is None:
        raise RuntimeError(f"{route} declares neither @needs nor @public")
    guarded: Any = copy.copy(route)  # a router's routes are shared by all apps of a process
    guarded.app = _Gate(guarded.app, scopes, access)
    return guarded  # type: ignore[no-any-return]
