"""Periodic work."""

from __future__ import annotations

import asyncio

import pytest

from server import maintenance
from server.api.http.deps import Services
from server.errors import EngineUnavailable


async def test_a_job_that_fails_runs_again(
    services: Services, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs = asyncio.Queue[int]()

    async def job(services: Services) -> None:
        runs.put_nowait(1)
        raise EngineUnavailable("a bug")

    monkeypatch.setattr(maintenance, "_INTERVALS_S", {job: 0.01})
    [running] = maintenance.start(services)
    async with asyncio.timeout(10):
        for _ in range(3):
            await runs.get()
    running.cancel()

    assert "job failed" in caplog.text
