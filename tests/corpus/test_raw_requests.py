"""Bad input: zero exits, zero 5xx, no echo, no traceback, and live traffic beside it unharmed."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import httpx
import pytest

from prefix_store import artifact
from server.default_model import ensure_default_model
from server.settings import Settings
from tests.corpus import probe
from tests.corpus.bounds import expensive
from tests.corpus.fake_server import fake_server
from tests.corpus.live_traffic import Traffic, live_traffic
from tests.corpus.raw_bytes import Raw
from tests.corpus.raw_requests import CLOSED, SECRET, corpus
from tests.running_server import running_server
from tests.server.fakes import ARTIFACT, make_prefix

MAX_AT_ONCE = 8
MAX_ANSWER_BYTES = 8 << 10
TIMEOUT_S = 20.0  # the server itself waits ten for a head
_STATUS = re.compile(rb"(?:^|\n|\})HTTP/1\.1 ([2-5][0-9][0-9]) ?[^\r\n]*\r\n")


async def ask(port: int, data: bytes) -> bytes:
    """Send bytes; everything that comes back until the server closes the connection."""
    return (await ask_from(port, data))[1]


async def ask_from(port: int, data: bytes, *, timeout_s: float = TIMEOUT_S) -> tuple[int, bytes]:
    """Like `ask`. Returns the port that the bytes were sent from too."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    client: int = writer.get_extra_info("sockname")[1]
    answer = bytearray()

    async def read() -> None:
        while piece := await reader.read(65536):
            answer.extend(piece)

    reading = asyncio.create_task(read())
    try:
        async with asyncio.timeout(timeout_s):
            writer.write(data)
            await asyncio.gather(reading, writer.drain(), return_exceptions=True)
    finally:
        reading.cancel()
        writer.transport.abort()
    return client, bytes(answer)


async def ask_all(
    port: int,
    requests: Sequence[Raw],
    clients: dict[int, Raw] | None = None,
    *,
    at_once: int = MAX_AT_ONCE,
    timeout_s: float = TIMEOUT_S,
) -> list[tuple[Raw, bytes]]:
    """Send all of them, some at once. `clients`: gets the port that each was sent from."""
    left = iter(requests)
    answers: list[tuple[Raw, bytes]] = []

    async def work() -> None:
        for raw in left:
            try:
                client, answer = await ask_from(port, raw.data, timeout_s=timeout_s)
            except TimeoutError:
                raise AssertionError(f"{raw.name}: the connection stays open") from None
            answers.append((raw, answer))
            (clients if clients is not None else {})[client] = raw

    await asyncio.gather(*(work() for _ in range(at_once)))
    return answers


def statuses(answer: bytes) -> list[int]:
    return [int(found) for found in _STATUS.findall(answer)]


def wrong_with(raw: Raw, answer: bytes, *, exact: bool = True) -> str | None:
    """What an answer should not be; `exact`: the corpus knows the statuses of this server."""
    got = statuses(answer) or [CLOSED]
    if any(status >= 500 for status in got):
        return f"{got}"
    if exact and not raw.allowed.issuperset(got):
        return f"{got} instead of {sorted(raw.allowed)}: {answer[:80]!r} {answer[-200:]!r}"
    if SECRET in answer or b"Traceback" in answer or b"Set-Cookie" in answer:
        return f"an echo: {answer[-200:]!r}"
    if got[-1] >= 400 and not raw.data.startswith(b"HEAD "):
        head, _, body = answer.rpartition(b"\r\n\r\n")
        if len(answer) > MAX_ANSWER_BYTES or not isinstance(_problem(head, body), dict):
            return f"no problem: {answer[-200:]!r}"
    return None


def _problem(head: bytes, body: bytes) -> object:
    if b"application/problem+json" not in head and b"application/json" not in head:
        return None
    try:
        return json.loads(body)
    except ValueError:
        return None


def setup(url: str) -> None:
    """A task `x` with one version, made of the fake engine's geometry if that fits."""
    body = artifact.dump(make_prefix())
    httpx.put(f"{url}/tasks/x/prefix", content=body, headers=ARTIFACT, timeout=60)


def figures(title: str, answers: Iterable[tuple[Raw, bytes]], seconds: float) -> str:
    found = [statuses(answer) or [CLOSED] for _, answer in answers]
    counts = Counter(status for got in found for status in got)
    num_5xx = sum(count for status, count in counts.items() if status >= 500)
    by_status = ", ".join(
        f"{count} x {status or 'closed'}" for status, count in sorted(counts.items())
    )
    return f"{title}: {len(found)} cases in {seconds:.0f} s, {num_5xx} 5xx ({by_status})"


def beside(idle: Traffic, busy: Traffic) -> str:
    return (
        f"live traffic: {busy.num_requests} requests, {busy.num_bad} bad, p50 {busy.p50_ms} ms, "
        f"p99 {busy.p99_ms} ms; without the corpus p50 {idle.p50_ms} ms, p99 {idle.p99_ms} ms"
    )


PROBLEM = b"HTTP/1.1 422 \r\nContent-Type: application/problem+json\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 \r\nContent-Type: application/json\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n\r\n{}HTTP/1.1 503 \r\n\r\n{}",
        PROBLEM.replace(b"422", b"404") + b"{}",
        PROBLEM + b'{"input": "sw0rdfish"}',
        PROBLEM + b"<h1>Unprocessable</h1>",
        PROBLEM.replace(b"problem+json", b"octet-stream") + b"{}",
        PROBLEM + b'{"detail": "' + b"x" * MAX_ANSWER_BYTES + b'"}',
        b"",
    ],
    ids=range(8),
)
def test_a_wrong_answer_is_found(answer: bytes) -> None:
    raw = Raw("control", b"POST /generate", frozenset({200, 422}))

    assert wrong_with(raw, answer)
    assert wrong_with(raw, PROBLEM + b"{}") is None


def test_the_corpus_against_a_server_of_its_own(
    tmp_path: Path, note: Callable[[str], None]
) -> None:
    with fake_server(tmp_path, head_timeout_s=1.0) as server:
        setup(server.url)
        with live_traffic(server.url) as idle:
            time.sleep(2)
        requests = corpus()
        started_s = time.monotonic()
        clients: dict[int, Raw] = {}
        with live_traffic(server.url) as busy:
            answers = asyncio.run(ask_all(server.port, requests, clients))
        seconds = time.monotonic() - started_s
        state = probe.read(server.probe_port)
        assert httpx.get(f"{server.url}/tasks/x").status_code == 200
        listed = httpx.get(f"{server.url}/tasks?limit=1000").json()["tasks"]
        tracebacks = server.tracebacks
    note(f"{figures('corpus', answers, seconds)}, 0 exits; {beside(idle, busy)}")

    wrong = [f"{raw.name}: {said}" for raw, answer in answers if (said := wrong_with(raw, answer))]
    wrong += [f"{clients[p].name}: {said}" for p, said in expensive(state) if p in clients]
    assert not wrong, "\n".join(wrong)
    assert {task["name"] for task in listed} == {"x", "y"}
    assert tracebacks == []
    assert len(answers) == len(requests) >= 600
    assert busy.num_bad == 0, busy.errors
    assert busy.p99_ms < 500 + 20 * idle.p99_ms


@pytest.mark.smollm2
def test_a_sample_of_the_corpus_against_the_real_model(
    tmp_path: Path, note: Callable[[str], None]
) -> None:
    model = ensure_default_model(Settings(_cli_parse_args=False).cache)
    flags = ("--dtype", "float32", "--body-timeout-s", "1", "--max-body-bytes", "65536")
    with running_server(model, tmp_path / "store", *flags) as server:
        httpx.put(
            f"{server.url}/tasks/x/prefix", json={"text": "Be brief.\n"}, timeout=60
        ).raise_for_status()
        with live_traffic(server.url) as idle:
            time.sleep(2)
        started_s = time.monotonic()
        port = int(server.url.rpartition(":")[2])
        with live_traffic(server.url) as busy:
            answers = asyncio.run(ask_all(port, corpus()[::6]))
        seconds = time.monotonic() - started_s
        assert server.process.poll() is None
        assert httpx.get(f"{server.url}/livez").status_code == 200
        engine = httpx.get(f"{server.url}/metrics").text
    note(f"{figures('real model', answers, seconds)}; {beside(idle, busy)}")

    wrong = [
        f"{raw.name}: {said}"
        for raw, answer in answers
        if (said := wrong_with(raw, answer, exact=False))
    ]
    assert not wrong, "\n".join(wrong)
    assert "foreword_engine_restarts_total 0.0" in engine
    assert "Traceback" not in (tmp_path / "store.log").read_text()
    assert busy.num_bad == 0, busy.errors
