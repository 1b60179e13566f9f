"""Requests of a soak: each answer has to be one of those that its operation allows, in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec

from tests.soak.ledger import Ledger, Target, Violation

UNAVAILABLE = "503 engine_unavailable"
BUSY = frozenset({"429 overloaded", "429 key_limit_reached", "429 rate_limit_exceeded"})


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    status: int
    headers: httpx.Headers
    content: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.content)

    @property
    def outcome(self) -> str:
        """`200`, or status and code of a problem, such as `404 unknown_task`."""
        if self.status < 400:
            return str(self.status)
        if not self.content:
            return f"{self.status} without a body"
        body = self.json()
        return f"{self.status} {body.get('error', body).get('code')}"

    def target(self, task: str | None) -> Target:
        """Return the version that answered a request for `task`, by the answer's headers."""
        return target_of(task, self.headers)


def target_of(task: str | None, headers: httpx.Headers) -> Target:
    """Return the version that answered a request for `task`."""
    if task is None:
        return Target(None, None, None)
    return Target(task, int(headers["x-task-version"]), headers["x-prefix-digest"])


class Session:
    """A client with one key. Raises `Violation` for answers that are not allowed."""

    def __init__(self, http: httpx.AsyncClient, ledger: Ledger, key: str) -> None:
        self.http = http
        self.ledger = ledger
        self._authorization = {"Authorization": f"Bearer {key}"}

    def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **kwargs: Any
    ) -> httpx.Request:
        """Build a request with the session's key."""
        own = self._authorization | dict(headers or {})
        return self.http.build_request(method, path, headers=own, **kwargs)

    async def send(self, method: str, path: str, allowed: Collection[str], **kwargs: Any) -> Reply:
        """Send a request; return its answer, which is one of `allowed`, busy, or an outage's."""
        begun_s = time.monotonic()
        response = await self.http.send(self.request(method, path, **kwargs))
        reply = Reply(response.status_code, response.headers, response.content)
        self.check(f"{method} {path}", reply, allowed, begun_s)
        return reply

    def check(self, what: str, reply: Reply, allowed: Collection[str], begun_s: float) -> None:
        """Raise `Violation` unless the answer is allowed."""
        outcome = reply.outcome
        if outcome in allowed or outcome in BUSY:
            return
        if outcome == UNAVAILABLE:
            self.check_outage(what, begun_s)
            if "retry-after" in reply.headers:
                return
        raise Violation(f"{what}: {outcome} {reply.content[:400]!r}")

    def check_outage(self, what: str, begun_s: float) -> None:
        """Raise `Violation` unless the engine was unavailable at some time since `begun_s`."""
        if not self.ledger.outages.overlap(begun_s, time.monotonic()):
            raise Violation(f"{what}: {UNAVAILABLE}, but the engine was not stopped")

    async def events(self, response: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
        """Yield the events of a stream: name (empty in OpenAI's format) and data."""
        event = ""
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: ") and line != "data: [DONE]":
                yield event, msgspec.json.decode(line.removeprefix("data: "))


async def run_bounded(ledger: Ledger, name: str, operation: Any, *, max_operation_s: float) -> None:
    """Await an operation, and record its outcome and every promise that it finds broken."""
    begun_s = time.monotonic()
    outcome = "violation"
    try:
        async with asyncio.timeout(max_operation_s):
            outcome = await operation
    except Violation as exc:
        ledger.violate(f"{name}: {exc}")
    except TimeoutError:
        ledger.violate(f"{name}: no end after {max_operation_s:.0f} s")
    except (httpx.HTTPError, msgspec.DecodeError) as exc:
        ledger.violate(f"{name}: {type(exc).__name__}: {exc}")
    ledger.count(name, outcome, time.monotonic() - begun_s)
