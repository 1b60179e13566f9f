"""Dependencies of the routes, and strict parsing of JSON bodies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ParamSpec, TypeVar

from fastapi import Depends, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError

from prefix_store import strict_json
from prefix_store.registry.keys import KeyStore
from prefix_store.registry.replica import Replica
from server.api.http.assets import Asset
from server.async_store import AsyncStore
from server.engine.ipc.protocol import Engine
from server.errors import InvalidRequest, MalformedRequest, UnsupportedBody
from server.generation.router import Router
from server.metrics import Metrics
from server.publishing.canary import SplitGuard
from server.publishing.definitions import Definitions
from server.publishing.downloads import Downloads
from server.publishing.rechecks import Rechecks
from server.publishing.spool import Spool
from server.publishing.uploads import Uploads
from server.settings import Settings
from server.text.tokenizer import Tokenizer

P = ParamSpec("P")
T = TypeVar("T")

_LARGE_JSON = 64 << 10


@dataclass(frozen=True, slots=True)
class Services:
    """All services of the app; constructed in `server.app`."""

    settings: Settings
    store: AsyncStore
    keys: KeyStore
    engine: Engine
    tokenizer: Tokenizer
    router: Router
    uploads: Uploads
    downloads: Downloads
    spool: Spool
    rechecks: Rechecks
    definitions: Definitions
    split_guard: SplitGuard
    metrics: Metrics
    model_name: str
    """Public name of the base model; never a path."""
    version: str
    """Version of the server."""
    replica: Replica | None
    """Replica of a shared registry, if it is shared."""
    console: Mapping[str, Asset]
    """Files of the web console by name; empty if it is disabled."""
    in_progress: set[tuple[str, ...]] = field(default_factory=set)
    """Idempotent requests in progress."""
    large_bodies: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a large body is parsed and validated."""

    async def run_in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work that is not part of a request for tokens, such as hashing a body."""
        return await self.store.run("readers", work, *args, **kwargs)

    async def run_for_request(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work of a request, on a pool that a database outage cannot block."""
        return await self.store.run("requests", work, *args, **kwargs)

    async def written(self, write: Callable[[], T], *, is_slow: bool) -> T:
        """Write an answer, off the event loop if it has what is slow to write: log-probabilities
        of many tokens, or the text of a long prompt."""
        return await self.run_for_request(write) if is_slow else write()


def get_services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]
TrafficKeyHeader = Annotated[
    str | None,
    Header(
        alias="X-Traffic-Key",
        max_length=256,
        description="Requests with the same key get the same version, where versions share the "
        "traffic.",
    ),
]


def traffic_key(given: str | None, request: Request) -> str:
    """Return the key that selects a version when the traffic is split: the client's, or the request
    id, which makes the choice random."""
    return f"key:{given}" if given is not None else f"request:{request.state.request_id}"


def require_json(request: Request) -> None:
    """Raise `UnsupportedBody` unless the content type is UTF-8 JSON."""
    kind, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    charset = parameters.strip().replace('"', "")
    if kind.strip() != "application/json" or charset not in ("", "charset=utf-8"):
        raise UnsupportedBody("send the body as application/json in UTF-8")


class StrictRequest(Request):
    """Request with a strict JSON parser: no duplicate keys, NaN or lone surrogates."""

    async def read(self, model: TypeAdapter[Any]) -> None:
        """Parse and validate the body. Then `json` returns a valid instance of the model, which
        FastAPI takes as it is.

        A large body is validated on a thread, one at a time: validation is one call that holds the
        interpreter lock, and several in a row would stop the event loop.
        """
        raw = await self.body()
        if len(raw) <= _LARGE_JSON:
            self._json = _parse(raw)
            return
        services: Services = self.app.state.services
        async with services.large_bodies:
            self._json = await asyncio.to_thread(_validated, raw, model)

    async def json(self) -> Any:
        return self._json


def check_query(request: Request, known: Collection[str]) -> None:
    """Raise `MalformedRequest` for a parameter that is unknown, or given twice."""
    names = [name for name, _ in request.query_params.multi_items()]
    if len(names) != len(set(names)):
        raise MalformedRequest("a query parameter is given twice")
    if not set(names).issubset(known):
        listed = f"known are: {', '.join(sorted(known))}" if known else "this call has none"
        raise MalformedRequest(f"an unknown query parameter; {listed}")


class OpenAIRoute(APIRoute):
    """Route whose JSON body, if it takes one, is parsed strictly before FastAPI validates it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()
        body = self.body_field
        if body is None:
            return answer
        model: TypeAdapter[Any] = TypeAdapter(body.field_info.annotation or Any)

        async def checked(request: Request) -> Response:
            require_json(request)
            strict = StrictRequest(request.scope, request.receive)
            await strict.read(model)  # raises our own errors outside of FastAPI's catch-all
            return await answer(strict)

        return checked


class JsonRoute(OpenAIRoute):
    """Route that also refuses unknown query parameters. OpenAI's clients may send any, such as
    Azure's `api-version`; here a misspelt `dry_run` would make a version."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()
        known = {parameter.alias for parameter in self.dependant.query_params}

        async def checked(request: Request) -> Response:
            check_query(request, known)
            return await answer(request)

        return checked


def _validated(raw: bytes, model: TypeAdapter[Any]) -> Any:
    """Raises what FastAPI raises for a body that is not valid."""
    parsed = _parse(raw)
    try:
        return model.validate_python(parsed)
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
        raise RequestValidationError([e | {"loc": ("body", *e["loc"])} for e in errors]) from None


def _parse(raw: bytes) -> Any:
    try:
        return strict_json.parse(raw)
    except strict_json.NonFiniteNumber as exc:  # 422 instead of 400, as for 1e400
        raise InvalidRequest(str(exc)) from None
    except strict_json.TooManyValues as exc:
        raise InvalidRequest(f"the body has {exc}") from None
    except ValueError as exc:
        raise MalformedRequest(f"the body is not valid JSON: {exc}") from None
