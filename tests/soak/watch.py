"""Memory, threads and files of the server's two processes, over time."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.running_server import RunningServer
from tests.soak.ledger import Ledger

SAMPLE_S = 5.0
WARM_UP = 0.3
"""Part of the samples of a process that is not judged: caches and pools fill up."""
MIN_JUDGED_S = 240.0
MAX_SLOPE_MIB = 1.0
"""MiB per minute. Garbage of the allocator comes and goes; a leak grows with every request."""
MAX_MORE_THREADS, MAX_MORE_FILES = 3, 8
"""More in the second half of the judged time than in the first. Pools and connections vary."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One process at one time."""

    at_s: float
    pid: int
    memory_mib: float
    num_threads: int
    num_files: int


def sample(pid: int) -> Sample:
    """Read the figures of a process. Raises OSError if it has ended."""
    folder = Path(f"/proc/{pid}")
    num_pages = int((folder / "statm").read_text().split()[1])
    memory_mib = num_pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    num_threads = len(list((folder / "task").iterdir()))
    num_files = len(list((folder / "fd").iterdir()))
    return Sample(time.monotonic(), pid, memory_mib, num_threads, num_files)


class Watch:
    """Samples of the API process and of the engine processes."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self.api: list[Sample] = []
        self.engine: list[Sample] = []

    async def run(self) -> None:
        while True:
            self.api.append(sample(self._server.process.pid))
            with suppress(OSError, ValueError):  # the engine is being replaced
                self.engine.append(sample(self._server.engine_pid()))
            await asyncio.sleep(SAMPLE_S)

    def report(self, ledger: Ledger) -> list[str]:
        """Describe both processes, and record a violation for each that grows."""
        last = [one for one in self.engine if one.pid == self.engine[-1].pid]
        return [_judge("API", self.api, ledger), _judge("last engine", last, ledger)]


def _judge(name: str, samples: list[Sample], ledger: Ledger) -> str:
    judged = samples[int(len(samples) * WARM_UP) :]
    slope = slope_mib(judged)
    first, last = judged[0], judged[-1]
    half = len(judged) // 2 + 1
    more_threads, more_files = (
        max(getattr(one, name) for one in judged[half:] or judged)
        - max(getattr(one, name) for one in judged[:half])
        for name in ("num_threads", "num_files")
    )
    is_judged = last.at_s - first.at_s >= MIN_JUDGED_S
    text = (
        f"{name}: {first.memory_mib:.0f} to {last.memory_mib:.0f} MiB in "
        f"{(last.at_s - first.at_s) / 60:.1f} min, {slope:+.2f} MiB/min"
        f"{'' if is_judged else ' (too short to judge)'}; threads {first.num_threads} to "
        f"{last.num_threads}, files {first.num_files} to {last.num_files}, at most "
        f"{max(one.num_threads for one in judged)} and {max(one.num_files for one in judged)}"
    )
    if is_judged and slope > MAX_SLOPE_MIB:
        ledger.violate(f"memory grows: {text}")
    if is_judged and (more_threads > MAX_MORE_THREADS or more_files > MAX_MORE_FILES):
        ledger.violate(f"threads or files grow: {text}")
    return text


def slope_mib(samples: list[Sample]) -> float:
    """Return the growth of memory in MiB per minute, by least squares."""
    if len(samples) < 3:
        return 0.0
    times = [one.at_s / 60 for one in samples]
    return statistics.linear_regression(times, [one.memory_mib for one in samples]).slope
