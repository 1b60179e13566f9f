"""Ten thousand mixed requests over 32 tasks, swaps and cancels among them: no output is influenced
by another task. And deliberately broken engines, each of which this must notice."""

from __future__ import annotations

import asyncio
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
from server.engine.memory.residency import Residency, ResidentPrefix
from server.engine.scheduler import prompt_cache
from server.engine.scheduler.prompt_cache import PromptCache
from server.engine.scheduler.sequence import Sequence
from server.generation.prompt import GenerateParams
from server.settings import Settings
from server.text.tokenizer import Tokenizer
from tests.server.fakes import make_prefix, make_transformers_tokenizer
from tests.server.loop_engine import LoopEngine, checksum, expected, stacked
from tests.server.stores import open_store

NUM_TASKS = 32
NUM_REQUESTS = 10_000
NUM_WORKERS = 48


@dataclass
class ActivationSeen:
    """What came out, against what each request's own prefix and prompt make alone."""

    num_right: int = 0
    num_wrong: int = 0
    num_cancelled: int = 0
    num_swaps: int = 0
    num_reused_tokens: int = 0
    num_loads: int = 0
    num_preemptions: int = 0
    digests: set[Digest | None] = field(default_factory=set)


class Traffic:
    """Requests as clients would make them, from a seed."""

    def __init__(self, services: Services, seed: int = 0) -> None:
        self._services = services
        self._dice = random.Random(seed)
        self._sums: dict[Digest | None, int] = {None: 0}
        self._num_versions = [0] * NUM_TASKS
        self._changing = [asyncio.Lock() for _ in range(NUM_TASKS)]
        """One change of a task at a time: of two that overlap one is refused."""
        self.seen = ActivationSeen()

    async def run(self, num_requests: int) -> ActivationSeen:
        for task in range(NUM_TASKS):
            for _ in range(2):
                await self._upload(task)
        left = iter(range(num_requests))

        async def work() -> None:
            for i in left:
                if i % 25 == 0:
                    await self._swap()
                await self._ask()

        await asyncio.gather(*(work() for _ in range(NUM_WORKERS)))
        return self.seen

    async def _upload(self, task: int) -> None:
        """A version like no other."""
        prefix = make_prefix(len(self._sums), num_tokens=self._dice.randint(1, 6))
        body, name = artifact.dump(prefix), f"task-{task}"
        pushed = await self._services.uploads.push(
            name, body, formats.SAFETENSORS, activate=True, create=True
        )
        self._sums[Digest(pushed.manifest.digest)] = checksum(stacked(prefix))
        self._num_versions[task] += 1

    async def _swap(self) -> None:
        self.seen.num_swaps += 1
        task = self._dice.randrange(NUM_TASKS)
        async with self._changing[task]:
            if self._dice.random() < 0.2:
                await self._upload(task)
                return
            version = self._dice.randint(1, self._num_versions[task])
            await self._services.store.activate(f"task-{task}", version)

    async def _ask(self) -> None:
        """Prompts of all tasks begin alike, so that a cache has something to mix up."""
        dice = self._dice
        prompt = list(range(10, 10 + dice.choice((0, 8, 16))))
        prompt += [dice.randint(3, 5) for _ in range(dice.randint(1, 9))]
        task = None if dice.random() < 0.05 else f"task-{dice.randrange(NUM_TASKS)}"
        params = GenerateParams(prompt=list(prompt), max_tokens=dice.randint(1, 12))
        leaves_after = dice.randint(0, 3) if dice.random() < 0.1 else None
        completion = await self._services.router.admit(task, None, params)
        self.seen.digests.add(completion.target.digest)
        got: list[int] = []
        if leaves_after != 0:
            async for piece in completion:
                got += piece.token_ids
                if len(got) == leaves_after:
                    break
        completion.close()
        assert params.max_tokens is not None
        while completion.target.digest not in self._sums:
            await asyncio.sleep(0.001)  # its upload is not answered yet
        right = expected(self._sums[completion.target.digest], prompt, params.max_tokens)
        if completion.finish_reason is None:
            self.seen.num_cancelled += 1
            right = right[: len(got)]
        self.seen.num_right += got == right
        self.seen.num_wrong += got != right


Run = Callable[..., ActivationSeen]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(num_requests: int, *, forgets_mask: bool = False) -> ActivationSeen:
        settings = Settings(_cli_parse_args=False, store=tmp_path)
        engine = LoopEngine(FileBlobStore(tmp_path / "blobs"), forgets_mask=forgets_mask)
        tokenizer = Tokenizer(make_transformers_tokenizer())

        async def traffic(app: FastAPI) -> ActivationSeen:
            async with app.router.lifespan_context(app):
                seen = await Traffic(app.state.services).run(num_requests)
                seen.num_reused_tokens = engine.scheduler.num_reused_tokens
                seen.num_preemptions = engine.scheduler.num_preemptions
                seen.num_loads = engine.residency.num_loads
                return seen

        with open_store(tmp_path) as stored:
            app = create_app(settings, *stored, engine, tokenizer, "tiny")
            return asyncio.run(traffic(app))

    return run


@pytest.mark.timeout(240)
def test_no_output_is_influenced_by_another_task(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = run(NUM_REQUESTS)
    with capsys.disabled():
        print(  # noqa: T201
            f"\nisolation: {seen.num_right} of {NUM_REQUESTS} as alone, {seen.num_cancelled} "
            f"cancelled, {seen.num_swaps} swaps, {len(seen.digests)} prefixes loaded "
            f"{seen.num_loads} times, {seen.num_reused_tokens} prompt tokens reused, "
            f"{seen.num_preemptions} preemptions"
        )

    assert seen.num_wrong == 0
    assert seen.num_right == NUM_REQUESTS
    assert seen.num_reused_tokens > NUM_REQUESTS, "the prompt cache had no part in this"
    assert seen.num_loads > 10 * NUM_TASKS, "nothing was evicted"
    assert len(seen.digests) > 2 * NUM_TASKS
    assert seen.num_cancelled > NUM_REQUESTS // 50


def test_two_prefixes_swapped_are_noticed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    get = Residency.get
    first: list[Digest] = []

    def swapped(self: Residency, digest: Digest) -> ResidentPrefix:
        first[:] = first or [digest]
        others = [other for other in self.on_device if other != digest]
        return get(self, others[0] if digest == first[0] and others else digest)

    monkeypatch.setattr(Residency, "get", swapped)

    assert run(500).num_wrong > 0


def test_a_mask_forgotten_is_noticed(run: Run) -> None:
    assert run(500, forgets_mask=True).num_wrong > 0


def test_a_prompt_cache_keyed_by_the_tasks_name_is_noticed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = PromptCache._labels

    def by_name(self: PromptCache, seq: Sequence, num_pages: int) -> list[bytes]:
        prompt_cache._root = lambda prefix: str(seq.scheduling.queue).encode()
        return labels(self, seq, num_pages)

    monkeypatch.setattr(prompt_cache, "_root", prompt_cache._root)  # put back afterwards
    monkeypatch.setattr(PromptCache, "_labels", by_name)

    assert run(1500).num_wrong > 0
