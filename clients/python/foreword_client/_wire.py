"""The wire without I/O, for the sync and the async client: target, calls, answers, errors."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import httpx
from pydantic import ValidationError

from foreword_client import errors, types
from foreword_client._body import Body
from foreword_client._retry import retry_after_s
from foreword_client._version import __version__

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = httpx.Timeout(connect=5.0, read=600.0, write=60.0, pool=None)
"""In seconds. A whole completion is one read."""

NOT_READY = (
    errors.NoServerError,
    errors.ConnectionLostError,
    errors.TimedOutError,
    errors.ServerFailureError,
)

T = TypeVar("T")
A = TypeVar("A", bound=types.Answer)


@dataclass(frozen=True, slots=True)
class Target:
    """The server's URL, and the headers of every request."""

    url: httpx.URL
    headers: dict[str, str]

    @classmethod
    def of(cls, base_url: str | None, api_key: str | None) -> Target:
        """Read what is None from FOREWORD_URL and FOREWORD_API_KEY. Raises `SetupError`."""
        given = base_url or os.environ.get("FOREWORD_URL") or DEFAULT_URL
        key = (api_key or os.environ.get("FOREWORD_API_KEY") or "").strip()
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise errors.SetupError("the API key has characters that are invalid in a key")
        headers = {"User-Agent": f"foreword-client/{__version__}"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        return cls(_url(given), headers)

    def __str__(self) -> str:
        return str(self.url.copy_with(userinfo=b"")).rstrip("/")

    @property
    def is_loopback(self) -> bool:
        """Whether the server is local. Then proxies of the environment are ignored."""
        try:
            return ipaddress.ip_address(self.url.host).is_loopback
        except ValueError:
            return self.url.host == "localhost"

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Translate httpx errors to ours, without what was sent: it may be secret."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            reason = str(exc) or "it took too long to connect"
            raise errors.NoServerError(f"no server answers at {self} ({reason})") from exc
        except httpx.TimeoutException as exc:
            raise errors.TimedOutError(f"{self} took too long to answer") from exc
        except httpx.RequestError as exc:
            raise errors.ConnectionLostError(f"the connection to {self} was lost") from exc


def _url(given: str) -> httpx.URL:
    try:
        url = httpx.URL(given if "://" in given else f"http://{given}")
    except httpx.InvalidURL:
        raise errors.SetupError(f"not a URL: {given!r}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise errors.SetupError(f"not an http:// or https:// URL: {given!r}")
    return url


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and the parser of its response."""

    method: str
    path: str
    parse: Callable[[httpx.Response], T]
    params: dict[str, str | int] = field(default_factory=dict)
    body: Body | None = None
    repeatable: bool = False
    """Whether it may be sent again after a 429 or 503."""
    idempotency_key: str | None = None
    """With a key the server does it once, however often it is sent."""
    if_match: int | None = None
    """The change applies only while the task is at this revision."""
    timeout_s: float | None = None
    """None for the client's timeout."""
    seen: types.Task | None = None
    """The task before the first attempt: see `sent_again`."""

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.body is None else self.body.headers
        if self.idempotency_key is not None:
            headers["Idempotency-Key"] = self.idempotency_key
        if self.if_match is not None:
            headers["If-Match"] = f'"{self.if_match}"'
        return headers

    @property
    def timeout(self) -> Any:
        return httpx.USE_CLIENT_DEFAULT if self.timeout_s is None else self.timeout_s


def sent_again(call: Call[T], now: types.Task) -> Call[T]:
    """Return the call to send again, meant for the task as it is now.

    If other versions are live by now, it stays meant for the task as it was. So if the first
    attempt made the change, its answer is repeated; if not, the call is refused.
    """
    seen = call.seen
    assert seen is not None
    is_same = (now.active_version, now.weights) == (seen.active_version, seen.weights)
    return replace(call, if_match=now.revision if is_same else seen.revision)


def error_of(response: httpx.Response) -> errors.APIStatusError:
    """Return the error for a response whose status is not 2xx."""
    problem = _ProblemBody()
    with suppress(ValidationError):  # a proxy's response has only a status
        problem = _ProblemBody.model_validate_json(response.content)
    return _error(problem, response)


class _ProblemBody(types.Answer):
    """RFC 9457 problem details as JSON."""

    status: int = 500
    code: str = "unknown"
    title: str = ""
    detail: str = ""
    request_id: str | None = None


def _error(problem: _ProblemBody, response: httpx.Response) -> errors.APIStatusError:
    title = problem.title or response.reason_phrase or f"status {response.status_code}"
    found = errors.Problem(
        status=response.status_code if not response.is_success else problem.status,
        code=problem.code,
        title=title,
        detail=problem.detail or f"the server answered {response.status_code} {title}",
        request_id=problem.request_id or response.headers.get("x-request-id"),
        retry_after_s=retry_after_s(response.headers.get("retry-after")),
    )
    return errors.of_problem(found)


def error_in_stream(data: str, response: httpx.Response) -> errors.APIStatusError:
    """Return the error of a stream's `error` event."""
    return _error(read(_ProblemBody, data), response)


def read(kind: type[A], data: str | bytes) -> A:
    """Parse JSON as one of our types. Raises `UnexpectedAnswerError`."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as exc:
        where = ".".join(str(at) for at in exc.errors()[0]["loc"]) or "the body"
        raise errors.UnexpectedAnswerError(
            f"the response is not a {kind.__name__} of a Foreword server: {where} is invalid"
        ) from exc
