"""Another client beside costly requests, in a process of its own: is the server there for it?

`python -m tests.corpus.watch URL`, until its input ends; then one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from dataclasses import dataclass

import httpx

from tests.corpus.live_traffic import beside

_PAUSE_S = 0.02
_STREAM = {"prompt": [5, 6, 7], "max_tokens": 200, "ignore_eos": True, "stream": True}


@dataclass
class Seen:
    """What the client saw, once the block of `watch` has ended."""

    num_health_checks: int = 0
    slowest_livez_ms: float = 0.0
    num_chunks: int = 0
    longest_gap_ms: float = 0.0
    """The longest time between two chunks of a stream."""
    error: str = ""

    def __str__(self) -> str:
        return (
            f"slowest /livez {self.slowest_livez_ms:.0f} ms of {self.num_health_checks}, longest "
            f"stream gap {self.longest_gap_ms:.0f} ms of {self.num_chunks}"
        )


def watch(url: str) -> contextlib.AbstractContextManager[Seen]:
    return beside("tests.corpus.watch", url, Seen())


def _check_health(url: str, seen: Seen, ended: threading.Event) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        while not ended.wait(_PAUSE_S):
            started_s = time.perf_counter()
            client.get("/livez").raise_for_status()
            seen.num_health_checks += 1
            spent_ms = (time.perf_counter() - started_s) * 1000
            seen.slowest_livez_ms = max(seen.slowest_livez_ms, spent_ms)


def _stream(url: str, seen: Seen, ended: threading.Event) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        while not ended.is_set():
            with client.stream("POST", "/generate", json=_STREAM) as response:
                response.raise_for_status()
                last_s = time.perf_counter()
                for _ in response.iter_raw():
                    now_s = time.perf_counter()
                    seen.num_chunks += 1
                    seen.longest_gap_ms = max(seen.longest_gap_ms, (now_s - last_s) * 1000)
                    last_s = now_s


def _main(url: str) -> None:
    ended = threading.Event()
    seen = Seen()

    def guarded(work: object) -> None:
        try:
            work(url, seen, ended)  # type: ignore[operator]
        except httpx.HTTPError as exc:
            seen.error = repr(exc)

    clients = [threading.Thread(target=guarded, args=[w]) for w in (_check_health, _stream)]
    for client in clients:
        client.start()
    sys.stdout.write("started\n")
    sys.stdout.flush()
    sys.stdin.read()
    ended.set()
    for client in clients:
        client.join()
    sys.stdout.write(json.dumps(vars(seen)))


if __name__ == "__main__":
    _main(sys.argv[1])
