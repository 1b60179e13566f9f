"""An ordinary client beside bad input, in a process of its own: is it served, how soon, and right?

`python -m tests.corpus.live_traffic URL`, until its input ends; then one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import httpx

T = TypeVar("T")

PAUSE_S = 0.01
"""Between requests: one process that asks without a pause takes as much as all that is tested."""
BODY = {"prompt": [5, 6, 7], "max_tokens": 8, "ignore_eos": True, "return_token_ids": True}


@dataclass
class Traffic:
    """What the client saw, once the block of `live_traffic` has ended."""

    num_requests: int = 0
    num_bad: int = 0
    """Answers that were no 200, or had other tokens than the first one had."""
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    errors: list[str] = field(default_factory=list)


@contextlib.contextmanager
def beside(module: str, url: str, seen: T) -> Iterator[T]:
    """Run a client's module beside the block. `seen` has what it saw once the block has ended."""
    command = [sys.executable, "-m", module, url]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        yield seen
        out, _ = process.communicate(timeout=30)
        seen.__init__(**json.loads(out))  # type: ignore[misc]
    finally:
        process.kill()
        process.wait(10)


def live_traffic(url: str) -> contextlib.AbstractContextManager[Traffic]:
    return beside("tests.corpus.live_traffic", url, Traffic())


def _main(url: str) -> None:
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    seen = Traffic()
    times_ms: list[float] = []
    with httpx.Client(base_url=url, timeout=20) as client:
        right = client.post("/generate", json=BODY).json()["token_ids"]
        sys.stdout.write("started\n")
        sys.stdout.flush()
        while not ended.wait(PAUSE_S):
            started_s = time.perf_counter()
            try:
                response = client.post("/generate", json=BODY)
                if response.status_code != 200 or response.json()["token_ids"] != right:
                    raise ValueError(f"{response.status_code} {response.text[:100]}")
            except (httpx.TransportError, ValueError) as exc:
                seen.num_bad += 1
                seen.errors = [*seen.errors, repr(exc)][:5]
            times_ms.append((time.perf_counter() - started_s) * 1000)
    times_ms.sort()
    seen.num_requests = len(times_ms)
    seen.p50_ms, seen.p99_ms = (round(times_ms[int(len(times_ms) * q)], 1) for q in (0.5, 0.99))
    sys.stdout.write(json.dumps(vars(seen)))


if __name__ == "__main__":
    _main(sys.argv[1])
