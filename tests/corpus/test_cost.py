"""Cost: no request keeps the event loop, threads, memory or files, while it runs or after."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from tests.corpus import costly_requests, probe
from tests.corpus.bounds import ANY, over
from tests.corpus.fake_server import FakeServer, fake_server
from tests.corpus.probe import Cost, State
from tests.corpus.processes import MIB, Usage, forget_peak, usage
from tests.corpus.test_raw_requests import MAX_ANSWER_BYTES, ask_all, ask_from, wrong_with
from tests.corpus.watch import watch

MAX_GROWTH = 300 * MIB
NUM_LEAVING = 8
_IDLE_S = 60.0
"""Of a busy machine; on a quiet one it takes a second or two, see the notes."""
_MORE_FILES = 16
"""Pipes of processes that compile grammars, and open databases."""


async def leave(port: int, data: bytes) -> None:
    """Send bytes, and close the connection as soon as they are sent."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    with contextlib.suppress(ConnectionError):
        await writer.drain()
    await asyncio.sleep(0.05)
    writer.transport.abort()


def wait_idle(server: FakeServer, num_files: int) -> float:
    """Wait until no thread works, the engine has no request and connections are closed. Returns the
    seconds it took."""
    started_s = time.monotonic()
    while time.monotonic() < started_s + _IDLE_S:
        state, files = probe.read(server.probe_port), usage(server.process.pid).num_files
        if state.num_busy == 0 and state.num_in_flight == 0 and files <= num_files:
            break
        time.sleep(0.05)
    assert (state.num_busy, state.num_in_flight) == (0, 0)
    assert files <= num_files
    return time.monotonic() - started_s


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    folder = tmp_path_factory.mktemp("cost")
    with fake_server(folder, head_timeout_s=2.0, is_large=True) as running:
        for raw, answer in asyncio.run(ask_all(running.port, costly_requests.setup(), at_once=1)):
            assert wrong_with(raw, answer) is None
        yield running
        assert running.tracebacks == []


def figures(states: Sequence[State], before: Usage, peak: int, after: Usage) -> str:
    unit_s = states[-1].unit_s
    costs = [cost for state in states for cost in state.costs.values()]
    return (
        f"longest turn {max(cost.longest_turn_s for cost in costs) * 1000:.0f} ms, longest gap "
        f"{max(state.longest_gap_s for state in states) * 1000:.0f} ms of processor time (unit "
        f"{unit_s * 1000:.1f} ms); resident {before.resident // MIB} MiB before, at most "
        f"{peak // MIB}, {after.resident // MIB} after"
    )


def test_no_costly_request_costs_more_than_its_bound(
    server: FakeServer, note: Callable[[str], None]
) -> None:
    requests, pid = costly_requests.costly(), server.process.pid
    asyncio.run(ask_from(server.port, requests[-1][0].data))
    before = usage(pid)
    forget_peak(pid)
    wrong: list[str] = []
    states: list[State] = []
    with watch(server.url) as seen:
        for raw, bound in requests:
            client, answer = asyncio.run(ask_from(server.port, raw.data, timeout_s=120))
            state = probe.read(server.probe_port)
            states.append(state)
            said = wrong_with(raw, answer[:MAX_ANSWER_BYTES]) or over(
                state.of(client), bound, state.unit_s
            )
            wrong += [f"{raw.name}: {said}"] if said else []
    peak = usage(pid).peak
    wait_idle(server, before.num_files + _MORE_FILES)
    after = usage(pid)
    note(f"{len(requests)} costly requests: {seen}; {figures(states, before, peak, after)}")

    assert not wrong, "\n".join(wrong)
    assert seen.error == ""
    assert peak - before.resident < MAX_GROWTH
    assert after.resident - before.resident < MAX_GROWTH / 2


def test_nothing_goes_on_after_clients_that_left(
    server: FakeServer, note: Callable[[str], None]
) -> None:
    before = usage(server.process.pid)
    requests = [raw for raw, _ in costly_requests.costly()]

    async def leave_all() -> None:
        left = iter(requests)

        async def work() -> None:
            for raw in left:
                await leave(server.port, raw.data)

        await asyncio.gather(*(work() for _ in range(NUM_LEAVING)))

    asyncio.run(leave_all())
    idle_s = wait_idle(server, before.num_files + _MORE_FILES)
    after = usage(server.process.pid)
    note(f"{len(requests)} clients that left: all work had ended after {idle_s:.1f} s")

    assert after.num_threads <= before.num_threads + 32


def test_more_than_a_bound_is_found() -> None:
    within = Cost(longest_turn_s=0.1, turns_s=0.1, threads_s=0.1)
    assert over(within, ANY, 0.01) == ""
    for more in ({"longest_turn_s": 0.2}, {"turns_s": 0.5}, {"threads_s": 3.0}):
        assert over(replace(within, **more), ANY, 0.01)
