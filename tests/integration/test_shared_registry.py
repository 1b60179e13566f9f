"""Two servers on one PostgreSQL and one S3: swaps are seen, and outages are not, by requests.

The servers, the database and the store are real; the engine's device computes sums, so that there
is load. NUM_ACTIVATIONS and OUTAGE_S make it as long as docs/promises.md has it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from prefix_store import artifact
from prefix_store.registry.keys import Grant
from server.app import create_app
from server.settings import Settings
from server.storage import open_blobs, open_storage
from server.text.tokenizer import Tokenizer
from tests.integration.swap_timing import TARGET_S, Answer, Swap, num_late
from tests.postgres import Postgres, running_postgres
from tests.s3 import BUCKET, S3, running_s3
from tests.server.fakes import make_prefix, make_transformers_tokenizer
from tests.server.live import serve
from tests.server.loop_engine import LoopEngine, checksum, expected, stacked

pytestmark = pytest.mark.timeout(900)

logger = logging.getLogger(__name__)

NUM_ACTIVATIONS = int(os.environ.get("NUM_ACTIVATIONS", "40"))
OUTAGE_S = float(os.environ.get("OUTAGE_S", "6"))
NUM_VERSIONS = 4
NUM_CLIENTS = 4
PROMPT = [10, 11, 12]
MAX_TOKENS = 5
SUMS = {v: checksum(stacked(make_prefix(v))) for v in range(1, NUM_VERSIONS + 1)}


@dataclass
class Pair:
    """Two servers, and who they share."""

    urls: list[str]
    key: str
    postgres: Postgres
    s3: S3


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with running_s3() as server:
        yield server


@pytest.fixture
def pair(postgres: Postgres, s3: S3, tmp_path: Path) -> Iterator[Pair]:
    pepper = tmp_path / "pepper"
    pepper.write_text("p" * 32)
    pepper.chmod(0o600)
    database = postgres.new_database(is_migrated=False)
    settings = [
        Settings(
            _cli_parse_args=False,
            store=tmp_path / name,
            registry=database,
            blobs=f"s3://{BUCKET}/{tmp_path.name}",
            key_pepper_file=pepper,
            max_waiting=1000,
        )
        for name in ("here", "there")
    ]
    with server(settings[0]) as (here, key), server(settings[1], new_key=False) as (there, _):
        yield Pair([here, there], key, postgres, s3)


@contextmanager
def server(settings: Settings, *, new_key: bool = True) -> Iterator[tuple[str, str]]:
    """Its URL, and a key that allows everything."""
    storage = open_storage(settings)
    tokenizer = Tokenizer(make_transformers_tokenizer())
    engine = LoopEngine(open_blobs(settings))
    parts = (storage.store, storage.keys, storage.audit, engine, tokenizer, "tiny")
    grant = Grant(name="all", scopes=("generate", "read", "write", "promote", "admin"))
    key = storage.keys.create(grant)[1] if new_key else ""
    with closing(storage), serve(create_app(settings, *parts, storage.replica)) as live:
        yield live.url, key


def client(pair: Pair, url: str) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {pair.key}"}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=60)


@dataclass
class Load:
    """Requests as fast as they are answered, on both servers, each answer checked."""

    pair: Pair
    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    num_wrong: int = 0

    async def ask(self, http: httpx.AsyncClient, server: int) -> Answer:
        dice = random.Random()
        prompt = [*PROMPT, *(dice.randint(3, 200) for _ in range(dice.randint(0, 5)))]
        body = {"prompt": prompt, "max_tokens": MAX_TOKENS, "return_token_ids": True}
        sent_s = time.monotonic()
        response = await http.post("/generate?task=x", json=body)
        answer = response.json()
        if response.status_code != 200:
            self.failures.append(response.text)
            return Answer(server, sent_s, time.monotonic(), 0)
        version = int(answer["version"])
        self.num_wrong += answer["token_ids"] != expected(SUMS[version], prompt, MAX_TOKENS)
        self.answers.append(Answer(server, sent_s, time.monotonic(), version))
        return self.answers[-1]

    async def _keep_asking(self, server: int) -> None:
        async with client(self.pair, self.pair.urls[server]) as http:
            while True:
                await self.ask(http, server)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        work = [asyncio.create_task(self._keep_asking(i % 2)) for i in range(NUM_CLIENTS)]
        yield
        for task in work:
            assert not task.done(), task.exception()
            task.cancel()


async def upload(http: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/vnd.safetensors"}
    for number in range(1, NUM_VERSIONS + 1):
        body = artifact.dump(make_prefix(number))
        (await http.put("/tasks/x/prefix", content=body, headers=headers)).raise_for_status()


async def health(http: httpx.AsyncClient) -> tuple[int, str, str]:
    response = await http.get("/readyz")
    found = response.json()
    return response.status_code, found["status"], " ".join(found["reasons"])


async def until(condition, timeout_s: float) -> float:  # type: ignore[no-untyped-def]
    began_s = time.monotonic()
    while not await condition():
        assert time.monotonic() - began_s < timeout_s, "it did not happen in time"
        await asyncio.sleep(0.05)
    return time.monotonic() - began_s


async def away(http: httpx.AsyncClient, part: str) -> float:
    for family in text_string_to_metric_families((await http.get("/metrics")).text):
        for sample in family.samples:
            if sample.name == "foreword_storage_away" and sample.labels["part"] == part:
                return sample.value
    raise LookupError(part)


async def test_a_swap_on_either_server_is_seen_by_both(pair: Pair) -> None:
    here, there = (client(pair, url) for url in pair.urls)
    load, staleness_s, swaps = Load(pair), [], []
    async with here, there:
        began_s = time.monotonic()
        await upload(here)
        await until(lambda: _answers(there, NUM_VERSIONS), 5)
        swaps.append(Swap(0, began_s, time.monotonic(), NUM_VERSIONS))
        async with load.running():
            for i in range(NUM_ACTIVATIONS):
                made_on, version = int(i % 3 == 0), i % NUM_VERSIONS + 1
                changed, other = (there, here) if made_on else (here, there)
                began_s = time.monotonic()
                swap = await changed.post("/tasks/x/activate", json={"version": version})
                assert swap.status_code == 200, swap.text
                swaps.append(Swap(made_on, began_s, time.monotonic(), version))
                await load.ask(changed, made_on)
                while (seen := await load.ask(other, 1 - made_on)).version != version:
                    assert time.monotonic() - swaps[-1].ended_s < 10, "never seen"
                staleness_s.append(seen.sent_s - swaps[-1].ended_s)

    p50, p99 = np.percentile(staleness_s, [50, 99])
    logger.warning(
        "%d activations, %d answers, staleness p50 %.1f ms, p99 %.1f ms, max %.1f ms; wrong: %d; "
        "slowest answer %.1f s",
        NUM_ACTIVATIONS, len(load.answers), p50 * 1e3, p99 * 1e3, max(staleness_s) * 1e3,
        load.num_wrong, max(one.answered_s - one.sent_s for one in load.answers),
    )  # fmt: skip
    assert load.failures == []
    assert load.num_wrong == 0
    assert num_late(load.answers, swaps) == 0
    assert p99 < TARGET_S


async def _answers(http: httpx.AsyncClient, version: int) -> bool:
    response = await http.post("/generate?task=x", json={"prompt": PROMPT, "max_tokens": 1})
    return response.status_code == 200 and response.json()["version"] == version


async def test_no_request_notices_that_the_database_is_away(pair: Pair) -> None:
    here, there = (client(pair, url) for url in pair.urls)
    load = Load(pair)
    async with here, there:
        await upload(here)
        await until(lambda: _answers(there, NUM_VERSIONS), 5)
        async with load.running():
            pair.postgres.stop()
            stopped_s = time.monotonic()
            statuses = set()
            while time.monotonic() < stopped_s + OUTAGE_S:
                for http in (here, there):
                    change = await http.post("/tasks/x/rollback")
                    statuses.add((change.status_code, change.json()["code"]))
                    assert change.headers["Retry-After"] == "5"
                await asyncio.sleep(0.2)
            told = [await health(http) for http in (here, there)]
            measured = [await away(http, "registry") for http in (here, there)]
            pair.postgres.start()
            began_s = time.monotonic()
            for http in (here, there):
                await until(lambda http=http: _is_well(http), 10)
            healed_s = time.monotonic() - began_s
            (await here.post("/tasks/x/rollback")).raise_for_status()
            await until(lambda: _answers(there, NUM_VERSIONS - 1), 5)
    sent_meanwhile = [one for one in load.answers if stopped_s < one.sent_s < stopped_s + OUTAGE_S]
    logger.warning(
        "%.0f s without the database: %d answers, %d failed; well again after %.2f s",
        OUTAGE_S, len(sent_meanwhile), len(load.failures), healed_s,
    )  # fmt: skip

    assert load.failures == []
    assert load.num_wrong == 0
    assert {one.version for one in sent_meanwhile} == {NUM_VERSIONS}
    assert {one.server for one in sent_meanwhile} == {0, 1}
    assert statuses == {(503, "storage_failure")}
    assert {(code, status) for code, status, _ in told} == {(200, "degraded")}
    assert all("tasks and keys are as" in reason for _, _, reason in told)
    assert measured == [1.0, 1.0]


async def _is_well(http: httpx.AsyncClient) -> bool:
    return (await health(http))[:2] == (200, "ok")


async def test_prefixes_that_were_used_outlast_the_blob_store(pair: Pair) -> None:
    here, there = (client(pair, url) for url in pair.urls)
    load = Load(pair)
    async with here, there:
        await upload(here)
        await until(lambda: _answers(there, NUM_VERSIONS), 5)
        pair.s3.stop()
        (await there.post(f"/tasks/x/versions/{NUM_VERSIONS}/evict")).raise_for_status()
        for server, http in enumerate((here, there)):  # there, from the copy on disk
            await load.ask(http, server)
        refused = await here.put("/tasks/y/prefix", content=artifact.dump(make_prefix(9)))
        await until(lambda: _is_degraded(here), 20)
        measured = await away(here, "blobs")
        pair.s3.start()
        await until(lambda: _is_well(here), 20)

    assert load.failures == []
    assert load.num_wrong == 0
    assert len(load.answers) == 2
    assert (refused.status_code, refused.json()["code"]) == (503, "storage_failure")
    assert refused.headers["Retry-After"] == "5"
    assert measured == 1.0


async def _is_degraded(http: httpx.AsyncClient) -> bool:
    return (await health(http))[:2] == (200, "degraded")
