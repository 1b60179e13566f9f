"""Measures on a quiet machine what costly requests do to the clients of a real server.

`python -m tests.corpus.measure [MODEL]`: the slowest /livez, the longest gap of a stream, and the
memory of both processes before, at the most, and ten seconds after.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import httpx

from server.default_model import ensure_default_model
from server.settings import Settings
from tests.corpus import costly_requests
from tests.corpus.processes import MIB, forget_peak, usage
from tests.corpus.raw_requests import corpus
from tests.corpus.test_raw_requests import ask_all
from tests.corpus.watch import watch
from tests.running_server import RunningServer, running_server

_SETTLES_S = 10


def _measure(server: RunningServer) -> None:
    port = int(server.url.rpartition(":")[2])
    processes = {"API": server.process.pid, "engine": server.engine_pid()}
    costly = [raw for raw, _ in costly_requests.costly()]
    asyncio.run(ask_all(port, corpus()[:30], timeout_s=300))
    for name, requests, at_once in (
        ("costly requests, one at a time", costly, 1),
        ("costly requests, eight at once", costly, 8),
        ("the corpus, eight at once", corpus(), 8),
    ):
        before = {process: usage(pid) for process, pid in processes.items()}
        for pid in processes.values():
            forget_peak(pid)
        started_s = time.monotonic()
        with watch(server.url) as seen:
            asyncio.run(ask_all(port, requests, at_once=at_once, timeout_s=300))
        _write(f"{name}: {len(requests)} in {time.monotonic() - started_s:.0f} s; {seen}")
        time.sleep(_SETTLES_S)
        for process, pid in processes.items():
            was, now = before[process], usage(pid)
            _write(
                f"  {process}: resident {was.resident // MIB} MiB before, {now.peak // MIB} at "
                f"most, {now.resident // MIB} after; threads {was.num_threads}, {now.num_threads}; "
                f"files {was.num_files}, {now.num_files}"
            )


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _main(model: str | None) -> None:
    model = model or str(ensure_default_model(Settings(_cli_parse_args=False).cache))
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--dtype", "float32", "--body-timeout-s", "2")
        with running_server(model, Path(folder) / "store", *flags) as server:
            body = {"text": "Be brief.\n"}
            for task in ("x", "t"):
                httpx.put(f"{server.url}/tasks/{task}/prefix", json=body, timeout=60)
            _measure(server)


if __name__ == "__main__":
    _main(*sys.argv[1:2] or [None])
