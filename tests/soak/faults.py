"""Faults of a soak: the engine is killed every few minutes, and hangs once."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import httpx

from tests.running_server import RunningServer
from tests.soak.ledger import Ledger

READY_WITHIN_S = 180.0
"""Generous, for a busy machine: the model is loaded again."""


class Faults:
    """Kills and stops the engine of a server, and waits until it is ready again."""

    def __init__(self, server: RunningServer, ledger: Ledger) -> None:
        self._server = server
        self._ledger = ledger
        self.recoveries_s: list[float] = []

    @property
    def num_faults(self) -> int:
        return len(self.recoveries_s)

    async def run(self, *, every_s: float, until_s: float, hangs: bool) -> None:
        """Kill the engine every `every_s`, until the monotonic time `until_s`; then hang it."""
        while time.monotonic() + every_s < until_s:
            await asyncio.sleep(every_s)
            await self._send(signal.SIGKILL)
        if hangs:
            await asyncio.sleep(max(0.0, until_s - time.monotonic()))
            await self._send(signal.SIGSTOP)

    async def _send(self, what: signal.Signals) -> None:
        pid, begun_s = self._server.engine_pid(), time.monotonic()
        self._ledger.outages.begin()
        os.kill(pid, what)
        async with httpx.AsyncClient(base_url=self._server.url, timeout=30) as client:
            while not (self._is_replaced(pid) and await _is_ready(client)):
                if time.monotonic() - begun_s > READY_WITHIN_S:
                    self._ledger.violate(f"no engine {READY_WITHIN_S:.0f} s after {what.name}")
                    break
                await asyncio.sleep(0.1)
        self._ledger.outages.end()
        self.recoveries_s.append(time.monotonic() - begun_s)

    def _is_replaced(self, pid: int) -> bool:
        try:
            return self._server.engine_pid() != pid
        except ValueError:  # there is none at the moment
            return False


async def _is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 200
