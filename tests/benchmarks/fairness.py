"""Measures what a key at its limits does to another key: `python -m tests.benchmarks.fairness`.

A real server with two keys. The victim has four short requests at a time. The attacker fills what
its key allows, in one form after another. Each form runs in alternation with the victim alone, and
the ratios of the victim's times are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from foreword_bench import tasks
from prefix_store.registry.keys import Grant, Scope
from server.default_model import ensure_default_model
from server.settings import Settings
from server.storage import open_storage
from tests.running_server import running_server

PREFIX_TOKENS = 16
VICTIM_CONCURRENCY = 4
WARM_UP_S = 15.0
"""Time for the process of the attacker to start, and for its requests to fill the server."""
_RETRY_S = 0.02


@dataclass(frozen=True, slots=True)
class Form:
    """A form of attack: a request, how many of its sequences one request has, and its task."""

    path: str
    body: Callable[[], dict[str, Any]]
    num_sequences: int = 1
    task: int = 0


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


def prompt(num_tokens: int) -> list[int]:
    return [random.randrange(1000, 40_000) for _ in range(num_tokens)]


def completion(num_prompt_tokens: int, max_tokens: int) -> dict[str, Any]:
    return {
        "prompt": prompt(num_prompt_tokens), "max_tokens": max_tokens, "ignore_eos": True,
    }  # fmt: skip


def choices() -> dict[str, Any]:
    return completion(32, 64) | {"n": 64, "temperature": 1.0}


def prompts() -> dict[str, Any]:
    return completion(1, 16) | {"prompt": [prompt(256) for _ in range(64)]}


def texts() -> dict[str, Any]:
    return {"prompt": prompt(64), "rank": {"texts": [f"text number {i}" for i in range(64)]}}


VICTIM = Form("/generate", lambda: completion(32, 16))
FORMS = {
    "short requests": Form("/generate", lambda: completion(32, 16)),
    "long prompts": Form("/generate", lambda: completion(800, 1)),
    "long completions": Form("/generate", lambda: completion(16, 800)),
    "64 choices": Form("/v1/completions", choices, 64),
    "64 prompts": Form("/v1/completions", prompts, 64),
    "64 ranked texts": Form("/generate", texts, 64),
    "long prompts, other task": Form("/generate", lambda: completion(800, 1), task=1),
    "long completions, other task": Form("/generate", lambda: completion(16, 800), task=1),
}


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of one key, kept at a number of them at a time."""

    url: str
    key: str
    form: str
    concurrency: int

    async def run(self, seconds: float) -> list[float]:
        """Return the seconds of each request that ended within the time."""
        form = FORMS.get(self.form, VICTIM)
        task = f"bench-{PREFIX_TOKENS}-{form.task}"
        limits = httpx.Limits(max_connections=self.concurrency)
        headers = {"Authorization": f"Bearer {self.key}"}
        end_s, times_s = time.monotonic() + seconds, list[float]()

        async def client_of_one(http: httpx.AsyncClient) -> None:
            while time.monotonic() < end_s:
                query = {"task": task} if form.path == "/generate" else None
                body = form.body() | ({} if query else {"model": task})
                started_s = time.monotonic()
                answer = await http.post(form.path, params=query, json=body)
                if answer.status_code == 429:
                    await asyncio.sleep(_RETRY_S)
                    continue
                answer.raise_for_status()
                times_s.append(time.monotonic() - started_s)

        async with httpx.AsyncClient(
            base_url=self.url, headers=headers, limits=limits, timeout=None
        ) as http:
            running = [asyncio.create_task(client_of_one(http)) for _ in range(self.concurrency)]
            await asyncio.wait(running, timeout=seconds)
            for one in running:
                one.cancel()
            ended = await asyncio.gather(*running, return_exceptions=True)
        failed = [e for e in ended if isinstance(e, Exception)]
        assert not failed, failed[0]
        return times_s


@contextlib.contextmanager
def attack(load: Load, seconds: float) -> Iterator[None]:
    """Run a load in a process of its own, with the lowest priority, until the block ends."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.fairness",
        "--load",
        json.dumps(asdict(load)),
    ]
    process = subprocess.Popen(
        [*command, "--seconds", str(seconds)], preexec_fn=lambda: os.nice(15) and None
    )
    try:
        yield
        assert process.poll() is None, "the attacker failed"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


@dataclass(frozen=True, slots=True)
class Result:
    """Times of the victim in one period."""

    num_requests: int
    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, times_s: list[float]) -> Result:
        if not times_s:
            return cls(0, float("inf"), float("inf"))
        return cls(len(times_s), 1000 * percentile(times_s, 0.5), 1000 * percentile(times_s, 0.99))


@dataclass(frozen=True, slots=True)
class Measurement:
    """Measures forms of attack on one server."""

    url: str
    victim: str
    attacker: str
    max_sequences: int
    """Sequences that a key may have."""
    seconds: float

    def measure(self, name: str, rounds: int) -> None:
        """Print the victim's times alone and under attack, and the median of their ratios."""
        pairs = [(self._alone(), self._attacked(name)) for _ in range(rounds)]
        for what in ("p50_ms", "p99_ms"):
            alone, attacked = (
                [getattr(r, what) for r in column] for column in zip(*pairs, strict=True)
            )
            ratios = [b / a for a, b in zip(alone, attacked, strict=True)]
            print(  # noqa: T201
                f"{name:30} {what[:3]}  alone {median(alone):7.0f} ms  attacked "
                f"{median(attacked):7.0f} ms  ratio {median(ratios):5.2f}  "
                f"({', '.join(f'{ratio:.2f}' for ratio in ratios)})  "
                f"{pairs[-1][0].num_requests} / {pairs[-1][1].num_requests} requests",
                flush=True,
            )

    def _alone(self) -> Result:
        load = Load(self.url, self.victim, "", VICTIM_CONCURRENCY)
        asyncio.run(load.run(1.0))
        return Result.of(asyncio.run(load.run(self.seconds)))

    def _attacked(self, name: str) -> Result:
        concurrency = max(1, self.max_sequences // FORMS[name].num_sequences)
        load = Load(self.url, self.attacker, name, concurrency)
        with attack(load, self.seconds + WARM_UP_S + 30):
            time.sleep(WARM_UP_S)
            result = self._alone()
        time.sleep(1.0)  # what the attacker had running is cancelled
        return result


def make_keys(store: Path) -> tuple[str, str]:
    """Create the keys of victim and attacker. The victim's may upload too."""
    storage = open_storage(Settings(_cli_parse_args=False, store=store))
    every: tuple[Scope, ...] = ("generate", "read", "write", "promote")
    _, victim = storage.keys.create(Grant(name="victim", scopes=every))
    _, attacker = storage.keys.create(Grant(name="attacker", scopes=("generate",)))
    storage.close()
    return victim, attacker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--form", action="append", choices=FORMS, help="default: all")
    parser.add_argument(
        "--flag", action="append", default=[], help="of the server: --dtype=float32"
    )
    parser.add_argument("--load", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load is not None:
        asyncio.run(Load(**json.loads(args.load)).run(args.seconds))
        return
    model = ensure_default_model(Settings(_cli_parse_args=False).cache)
    settings = Settings(_cli_parse_args=False)
    max_sequences = (settings.max_num_seqs + settings.max_waiting) // 2
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        victim, attacker = make_keys(store)
        with running_server(model, store, *args.flag) as server:
            headers = {"Authorization": f"Bearer {victim}"}
            with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
                tasks.ensure(client, 2, PREFIX_TOKENS)
            measurement = Measurement(server.url, victim, attacker, max_sequences, args.seconds)
            for name in args.form or FORMS:
                measurement.measure(name, args.rounds)


if __name__ == "__main__":
    main()
