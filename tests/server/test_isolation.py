"""Isolation: no output of thousands of mixed requests over 32 tasks, with swaps and cancels, is
influenced by another task. Deliberately broken engines check that the test detects faults.

NUM_REQUESTS makes it as long as docs/promises.md has it.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fastapi import FastAPI

from prefix_store import artifact, formats
from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.digest import Digest
from server.api.http.deps import Services
from server.app import create_app
from server.engine.memory.prefix import ResidentPrefix
from server.engine.memory.residency import Residency
from server.engine.scheduler import prompt_cache
from server.engine.scheduler.prompt_cache import PromptCache
from server.engine.scheduler.sequence import Sequence
from server.generation.prompt import GenerateParams
from server.generation.sampling import RequestOptions
from server.settings import Settings
from server.text.tokenizer import Tokenizer
from tests.server.fakes import make_prefix, make_transformers_tokenizer
from tests.server.loop_engine import LoopEngine, checksum, expected, stacked
from tests.server.stores import open_store

NUM_TASKS = 32
NUM_REQUESTS = int(os.environ.get("NUM_REQUESTS", "3000"))
NUM_WORKERS = 48


@dataclass
class Tally:
    """Counts of outputs that equal those of the request's own prefix and prompt, and of events."""

    num_right: int = 0
    num_wrong: int = 0
    num_cancelled: int = 0
    num_swaps: int = 0
    num_cached_tokens: int = 0
    num_loads: int = 0
    num_preemptions: int = 0
    digests: set[Digest | None] = field(default_factory=set)


class Traffic:
    """Random requests and swaps, as clients make them, from a seed."""

    def __init__(self, services: Services, seed: int = 0) -> None:
        self._services = services
        self._random = random.Random(seed)
        self._sums: dict[Digest | None, int] = {None: 0}
        self._num_versions = [0] * NUM_TASKS
        self._changing = [asyncio.Lock() for _ in range(NUM_TASKS)]
        """A task is changed once at a time, because one of two overlapping changes is refused."""
        self.tally = Tally()

    async def run(self, num_requests: int) -> Tally:
        for task in range(NUM_TASKS):
            for _ in range(2):
                await self._upload(task)
        left = iter(range(num_requests))

        async def work() -> None:
            for i in left:
                if i % 25 == 0:
                    await self._swap()
                await self._generate()

        await asyncio.gather(*(work() for _ in range(NUM_WORKERS)))
        return self.tally

    async def _upload(self, task: int) -> None:
        """Upload a version with a prefix of its own."""
        prefix = make_prefix(len(self._sums), num_tokens=self._random.randint(1, 6))
        body, name = artifact.dump(prefix), f"task-{task}"
        pushed = await self._services.uploads.push(
            name, body, formats.SAFETENSORS, activate=True, create=True
        )
        self._sums[Digest(pushed.manifest.digest)] = checksum(stacked(prefix))
        self._num_versions[task] += 1

    async def _swap(self) -> None:
        self.tally.num_swaps += 1
        task = self._random.randrange(NUM_TASKS)
        async with self._changing[task]:
            if self._random.random() < 0.2:
                await self._upload(task)
                return
            version = self._random.randint(1, self._num_versions[task])
            await self._services.store.activate(f"task-{task}", version)

    async def _generate(self) -> None:
        """Send a request. Prompts of all tasks start alike, so that a cache could confuse them."""
        rng = self._random
        prompt = list(range(10, 10 + rng.choice((0, 8, 16))))
        prompt += [rng.randint(3, 5) for _ in range(rng.randint(1, 9))]
        task = None if rng.random() < 0.05 else f"task-{rng.randrange(NUM_TASKS)}"
        params = GenerateParams(
            prompt=list(prompt), options=RequestOptions(max_tokens=rng.randint(1, 12))
        )
        cancel_after = rng.randint(0, 3) if rng.random() < 0.1 else None
        completion = await self._services.router.admit(task, None, params)
        self.tally.digests.add(completion.target.digest)
        got: list[int] = []
        if cancel_after != 0:
            async for piece in completion:
                got += piece.token_ids
                if len(got) == cancel_after:
                    break
        completion.close()
        assert params.options.max_tokens is not None
        while completion.target.digest not in self._sums:
            await asyncio.sleep(0.001)  # its upload has not returned yet
        right = expected(self._sums[completion.target.digest], prompt, params.options.max_tokens)
        if completion.finish_reason is None:
            self.tally.num_cancelled += 1
            right = right[: len(got)]
        self.tally.num_right += got == right
        self.tally.num_wrong += got != right


Run = Callable[..., Tally]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(num_requests: int, *, forgets_mask: bool = False) -> Tally:
        settings = Settings(_cli_parse_args=False, store=tmp_path)
        engine = LoopEngine(FileBlobStore(tmp_path / "blobs"), forgets_mask=forgets_mask)
        tokenizer = Tokenizer(make_transformers_tokenizer())

        async def traffic(app: FastAPI) -> Tally:
            async with app.router.lifespan_context(app):
                tally = await Traffic(app.state.services).run(num_requests)
                tally.num_cached_tokens = engine.scheduler.num_cached_tokens
                tally.num_preemptions = engine.scheduler.num_preemptions
                tally.num_loads = engine.residency.num_loads
                return tally

        with open_store(tmp_path) as stored:
            app = create_app(settings, *stored, engine, tokenizer, "tiny")
            return asyncio.run(traffic(app))

    return run


def test_no_output_is_influenced_by_another_task(run: Run, note: Callable[[str], None]) -> None:
    tally = run(NUM_REQUESTS)
    note(
        f"isolation: {tally.num_right} of {NUM_REQUESTS} right, {tally.num_cancelled} "
        f"cancelled, {tally.num_swaps} swaps, {len(tally.digests)} prefixes loaded "
        f"{tally.num_loads} times, {tally.num_cached_tokens} prompt tokens cached, "
        f"{tally.num_preemptions} preemptions"
    )

    assert tally.num_wrong == 0
    assert tally.num_right == NUM_REQUESTS
    assert tally.num_cached_tokens > NUM_REQUESTS, "the prompt cache was not used"
    assert tally.num_loads > 10 * NUM_TASKS, "nothing was evicted"
    assert len(tally.digests) > 2 * NUM_TASKS
    assert tally.num_cancelled > NUM_REQUESTS // 50


def test_swapped_prefixes_are_detected(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    get = Residency.get
    first: list[Digest] = []

    def swapped(self: Residency, digest: Digest) -> ResidentPrefix:
        first[:] = first or [digest]
        others = [other for other in self.on_device if other != digest]
        return get(self, others[0] if digest == first[0] and others else digest)

    monkeypatch.setattr(Residency, "get", swapped)

    assert run(500).num_wrong > 0


def test_a_missing_mask_is_detected(run: Run) -> None:
    assert run(500, forgets_mask=True).num_wrong > 0


def test_a_prompt_cache_keyed_by_task_is_detected(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_hashes = PromptCache._block_hashes

    def by_task(self: PromptCache, seq: Sequence, num_pages: int) -> list[bytes]:
        prompt_cache._root = lambda prefix: str(seq.scheduling.queue).encode()
        return block_hashes(self, seq, num_pages)

    monkeypatch.setattr(prompt_cache, "_root", prompt_cache._root)  # restored by monkeypatch
    monkeypatch.setattr(PromptCache, "_block_hashes", by_task)

    assert run(1500).num_wrong > 0
