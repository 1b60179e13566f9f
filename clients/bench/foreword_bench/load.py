"""Load on one server: a closed loop of N concurrent requests, or an open loop of N requests/s.

Client and server share the cores. Requests are built before the clock starts and responses parsed
after it has stopped. In between the client only records what arrived when: 18 µs of CPU time per
token with 32 streams and 114 µs with one, where httpx took 142 and 812 (two cores, Zen 5).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from foreword_bench import stream
from foreword_bench.errors import BenchError
from foreword_bench.stream import Answer
from foreword_bench.target import Target
from foreword_bench.wire import Exchange, Http, WireError
from foreword_bench.workload import Workload

_WARM_UP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Run:
    """All requests of a workload, in the order they were due."""

    answers: list[Answer]
    client_cpu_s: float

    @property
    def good(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.error is None]


Background = Callable[[Http], Awaitable[None]]
"""Runs next to the load until it is cancelled."""


async def run(
    target: Target,
    workload: Workload,
    *,
    api_key: str | None = None,
    timeout_s: float = 600.0,
    background: Background | None = None,
) -> Run:
    """Warm up, which is not measured, then measure. Raises `BenchError`."""
    http = Http(target.url, api_key=api_key, timeout_s=timeout_s)
    try:
        await _warm_up(http, target, workload)
        task = None if background is None else asyncio.create_task(_run(background, http))
        measured = await _measure(http, target, workload)
        if task is not None:
            task.cancel()
            await task
    finally:
        http.close()
    return measured


async def _run(background: Background, http: Http) -> None:
    try:
        await background(http)
    except asyncio.CancelledError:
        return


async def _warm_up(http: Http, target: Target, workload: Workload) -> None:
    """Send one request per task at the load's concurrency: all prefixes are then resident."""
    num_requests = max(1, target.num_tasks, workload.concurrency)
    warm_up = replace(
        workload,
        num_requests=num_requests,
        num_new_tokens=min(_WARM_UP_TOKENS, workload.num_new_tokens),
        rate=None,
        concurrency=workload.concurrency if workload.rate is None else 4,
        seed=-1 - workload.seed,
    )
    for answer in (await _measure(http, target, warm_up)).answers:
        if answer.error is not None:
            raise BenchError(f"warming up {answer.model}: {answer.error}")


async def _measure(http: Http, target: Target, workload: Workload) -> Run:
    requests = [target.request(http, workload, i) for i in range(workload.num_requests)]
    outcomes: list[_Outcome] = []

    async def send(request: int, due_s: float | None = None) -> None:
        due_s = time.perf_counter() if due_s is None else due_s
        try:
            exchange: Exchange | WireError = await http.exchange(requests[request])
        except WireError as exc:
            exchange = exc
        outcomes.append((request, due_s, exchange))

    cpu_s = time.process_time()
    if workload.rate is None:
        await _closed_loop(workload, send)
    else:
        await _open_loop(workload, send)
    cpu_s = time.process_time() - cpu_s
    answers = [_read(target, workload, outcome) for outcome in sorted(outcomes, key=lambda o: o[0])]
    return Run(answers, cpu_s)


_Outcome = tuple[int, float, Exchange | WireError]


async def _closed_loop(workload: Workload, send: Callable[[int], Awaitable[None]]) -> None:
    requests = iter(range(workload.num_requests))

    async def worker() -> None:
        for request in requests:
            await send(request)

    await asyncio.gather(*(worker() for _ in range(workload.concurrency)))


async def _open_loop(
    workload: Workload, send: Callable[[int, float], Coroutine[Any, Any, None]]
) -> None:
    """Send each request when it is due, whether or not earlier ones have finished."""
    started_s = time.perf_counter()
    running: list[asyncio.Task[None]] = []
    for request, arrival_s in enumerate(workload.arrivals_s()):
        due_s = started_s + arrival_s
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        running.append(asyncio.create_task(send(request, due_s)))
    await asyncio.gather(*running)


def _read(target: Target, workload: Workload, outcome: _Outcome) -> Answer:
    request, due_s, exchange = outcome
    model = target.model(request)
    if isinstance(exchange, WireError):
        return Answer(model, due_s, due_s, error=str(exchange))
    return stream.read(exchange, model=model, due_s=due_s, num_new_tokens=workload.num_new_tokens)
