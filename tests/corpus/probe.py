"""What requests cost the test server: processor time of the event loop and of threads, by request.

Processor time, and not time by the clock: a busy machine does not change it. It is compared with
`unit_s`, the time that strict parsing of an ordinary body takes on the same machine.
"""

from __future__ import annotations

import asyncio
import json
import socket
import socketserver
import threading
import time
from asyncio.events import Handle
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from prefix_store import strict_json

_ORDINARY = b"[%b1]" % (b"1," * 32_000)
_client: ContextVar[int | None] = ContextVar("client", default=None)
"""The client's port, which names the request: one request for each connection."""
_TICK_S = 0.005


@dataclass
class Cost:
    """Processor time of one request, in seconds."""

    longest_turn_s: float = 0.0
    """The longest that it kept the event loop without a break."""
    longest_turn: str = ""
    """What ran then."""
    turns_s: float = 0.0
    """All its time on the event loop."""
    threads_s: float = 0.0


@dataclass
class State:
    """What the server has done so far, and does at the moment."""

    unit_s: float = 0.0
    costs: dict[int, Cost] = field(default_factory=dict)
    transport: Cost = field(default_factory=Cost)
    """Turns of no request: reading bytes from sockets, health checks of the engine, and so on."""
    longest_gap_s: float = 0.0
    """Processor time of the whole process between two turns of the loop: threads that hold the
    interpreter lock count too."""
    num_busy: int = 0
    """Threads of pools that work."""
    num_in_flight: int = 0
    """Requests of the engine."""

    def of(self, client: int | None) -> Cost:
        return self.transport if client is None else self.costs.setdefault(client, Cost())


class Probe:
    """Measures the process it is installed in. Read it over `port` with `read`."""

    def __init__(self, num_in_flight: Callable[[], int]) -> None:
        self._state = State(unit_s=min(_time_ordinary() for _ in range(5)))
        self._num_in_flight = num_in_flight
        self._lock = threading.Lock()

    def around(self, app: ASGIApp) -> ASGIApp:
        """Middleware that names the client of a request for all that happens for it."""

        async def named(scope: Scope, receive: Receive, send: Send) -> None:
            if scope.get("client"):
                _client.set(scope["client"][1])
            await app(scope, receive, send)

        return named

    def install(self, port: int) -> None:
        """Measure every turn of event loops and every call on a thread pool from now on."""
        self._measure_turns()
        self._measure_threads()
        probe = self

        class Reader(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.sendall(probe.dump())

        server = socketserver.TCPServer(("127.0.0.1", port), Reader)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def dump(self) -> bytes:
        self._state.num_in_flight = self._num_in_flight()
        with self._lock:
            dumped = json.dumps(asdict(self._state)).encode()
            self._state.longest_gap_s = 0.0
        return dumped

    async def tick(self) -> None:
        """Measure the gaps between turns, until cancelled."""
        while True:
            before_s = time.process_time()
            await asyncio.sleep(_TICK_S)
            gap_s = time.process_time() - before_s
            self._state.longest_gap_s = max(self._state.longest_gap_s, gap_s)

    def _measure_turns(self) -> None:
        turn = Handle._run

        def measured(handle: Any) -> None:
            started_s = time.thread_time()
            turn(handle)
            spent_s = time.thread_time() - started_s
            with self._lock:
                cost = self._state.of(handle._context.get(_client))
                cost.turns_s += spent_s
                if spent_s > cost.longest_turn_s:
                    cost.longest_turn_s, cost.longest_turn = spent_s, repr(handle)[:500]

        Handle._run = measured  # type: ignore[method-assign]

    def _measure_threads(self) -> None:
        submit = ThreadPoolExecutor.submit

        def measured(pool: Any, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            return submit(pool, self._work, _client.get(), work, *args, **kwargs)

        ThreadPoolExecutor.submit = measured  # type: ignore[method-assign]

    def _work(self, client: int | None, work: Any, /, *args: Any, **kwargs: Any) -> Any:
        started_s = time.thread_time()
        with self._lock:
            self._state.num_busy += 1
        try:
            return work(*args, **kwargs)
        finally:
            with self._lock:
                self._state.num_busy -= 1
                self._state.of(client).threads_s += time.thread_time() - started_s


def read(port: int) -> State:
    """The state of a server whose probe listens on `port`."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        raw = b"".join(iter(lambda: connection.recv(1 << 20), b""))
    found = json.loads(raw)
    found["costs"] = {int(client): Cost(**cost) for client, cost in found["costs"].items()}
    return State(**found | {"transport": Cost(**found["transport"])})


def _time_ordinary() -> float:
    started_s = time.thread_time()
    strict_json.parse(_ORDINARY)
    return time.thread_time() - started_s
