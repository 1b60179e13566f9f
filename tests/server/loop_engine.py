"""An engine without a process and without a model: the real client, step loop, scheduler, prompt
cache and residency, with a simulated device of plain numbers."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread

import torch
from torch import Tensor

from prefix_store import artifact
from prefix_store.blobs.blobs import BlobStore
from prefix_store.digest import Digest
from prefix_store.prefix import Prefix
from server.engine.ipc import messages as m
from server.engine.ipc.client import EngineClient
from server.engine.ipc.state import EngineState
from server.engine.loop.grammars import Grammars
from server.engine.loop.loop import ConnectionClosed, Inbox, StepLoop
from server.engine.loop.prefix_compiler import PrefixCompiler
from server.engine.memory.kv_pool import KvPool
from server.engine.memory.prefix import ResidentPrefix
from server.engine.memory.residency import Residency
from server.engine.params import Logprobs
from server.engine.scheduler.batch import Batch, Chunk
from server.engine.scheduler.page_allocator import PageAllocator
from server.engine.scheduler.prompt_cache import PromptCache
from server.engine.scheduler.scheduler import Scheduler
from tests.server.fakes import BASE, INFO, make_vocabulary

EOS = INFO.eos_token_ids[0]
PAGE_SIZE = 4
NUM_PAGES = 160


def checksum(kv: Tensor) -> int:
    """Return a checksum of all numbers of a prefix, which the device uses in their place."""
    return zlib.crc32(kv.contiguous().numpy().tobytes())


def stacked(prefix: Prefix) -> Tensor:
    """Return keys and values as one tensor [num_layers, 2, num_kv_heads, L, head_dim]."""
    layers = zip(prefix.keys, prefix.values, strict=True)
    return torch.stack([torch.stack(layer) for layer in layers])


def written(token_id: int, seen: int) -> int:
    """Return the number that stands for a token's key and value: it depends on all that it saw."""
    return zlib.crc32(token_id.to_bytes(4, "little") + seen.to_bytes(8, "little"))


def sampled(seen: int) -> int:
    """Return the token sampled after `seen`; about every 23rd is EOS."""
    return EOS if seen % 23 == 0 else 3 + seen % 200


def expected(prefix_sum: int, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """Return the right completion, computed alone, from the start, without pages."""
    token_ids, seen = list(prompt), prefix_sum
    for token_id in prompt:
        seen += written(token_id, seen)
    while len(token_ids) < len(prompt) + max_tokens and token_ids[-1] != EOS:
        token_ids.append(sampled(seen))
        seen += written(token_ids[-1], seen)
    return token_ids[len(prompt) :]


class FinishedStep:
    """Handle of a step that has already run."""

    def __init__(self, token_ids: list[int]) -> None:
        self._token_ids = token_ids

    def sample(self) -> None: ...

    def tokens(self) -> list[int]:
        return self._token_ids

    def logprobs(self) -> dict[int, Logprobs]:
        return {}

    def prompt_logprobs(self) -> dict[int, Logprobs]:
        return {}


class Device:
    """Runner whose attention is a sum over all that a token may see: the prefix and its own slots.

    With `forgets_mask` it is a sum over all slots of its pages: a fault that tests must detect.
    """

    def __init__(
        self, prefix_of: Callable[[Digest], ResidentPrefix], *, forgets_mask: bool = False
    ) -> None:
        self.embeds: dict[int, Tensor] = {}
        self.probes: dict[int, Tensor | None] = {}
        self._prefix_of = prefix_of
        self._forgets_mask = forgets_mask
        self.answers_probes = False
        """Whether it keeps logits for verifications: those of nothing but zeros."""
        self._pool = [[0] * PAGE_SIZE for _ in range(NUM_PAGES)]

    def launch(self, batch: Batch) -> FinishedStep:
        tokens = [self._run(chunk) for chunk in batch.chunks]
        if self.answers_probes:
            self.probes.update(dict.fromkeys(self.probes, torch.zeros(2)))
        return FinishedStep(
            [t for t, chunk in zip(tokens, batch.chunks, strict=True) if chunk.samples]
        )

    def _run(self, chunk: Chunk) -> int:
        seq = chunk.seq
        prefix_sum = 0 if seq.prefix is None else checksum(self._prefix_of(seq.prefix).kv)
        for i in range(chunk.start, chunk.end):
            page, slot = divmod(i, PAGE_SIZE)
            seen = prefix_sum + self._attend(seq.pages, i)
            self._pool[seq.pages[page]][slot] = written(seq.token_ids[i], seen)
        return sampled(prefix_sum + self._attend(seq.pages, chunk.end))

    def _attend(self, pages: list[int], num_tokens: int) -> int:
        slots = [value for page in pages for value in self._pool[page]]
        return sum(slots if self._forgets_mask else slots[:num_tokens])


class LoopEngine(EngineClient):
    """The client with the step loop on a thread instead of in a process."""

    def __init__(self, blobs: BlobStore, *, forgets_mask: bool = False) -> None:
        config = m.EngineConfig(model="tiny", blobs=str(Path("unused")))
        super().__init__(config, start_timeout_s=10, hang_timeout_s=60)
        self._inbox: Inbox = Inbox()
        self._blobs = blobs
        self._forgets_mask = forgets_mask
        self._thread: Thread | None = None
        self.on_event: Callable[[m.Event], None] = self._dispatch

    @property
    def num_cached_tokens(self) -> int:
        return self.scheduler.num_cached_tokens

    async def start(self) -> None:
        self._info = INFO
        self._state = EngineState.READY
        on_loop = asyncio.get_running_loop().call_soon_threadsafe
        self.residency = Residency(self._read, self._inbox.put, device_bytes=6000, host_bytes=12000)
        allocator = PageAllocator(NUM_PAGES, PAGE_SIZE)
        self.scheduler = Scheduler(
            allocator,
            self.residency,
            max_num_seqs=16,
            max_num_batched_tokens=64,
            eos_token_ids=[EOS],
            prompt_cache=PromptCache(allocator),
        )
        self.compiler = PrefixCompiler(self._inbox.put, self._blobs, BASE)
        self.device = Device(self.residency.get, forgets_mask=self._forgets_mask)
        self.loop = loop = StepLoop(
            self._inbox,
            lambda event: on_loop(self.on_event, event),
            self.scheduler,
            self.residency,
            self.device,  # type: ignore[arg-type]
            KvPool(BASE, num_pages=1, page_size=1, device="cpu"),
            self.compiler,
            Grammars(self._inbox.put, make_vocabulary),
            overlap=False,
        )
        self._thread = Thread(target=loop.run, name="step loop")
        self._thread.start()

    async def verify(self, digest: Digest, token_ids: list[int]) -> float:
        """Return a constant, because this device has no logits."""
        return 1.0

    async def stop(self, drain_timeout_s: float) -> None:
        self._inbox.put(ConnectionClosed())
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 10)

    def _send(self, message: m.Request) -> None:
        self._inbox.put(message)

    def _read(self, digest: Digest) -> ResidentPrefix:
        prefix = artifact.read(self._blobs.get(digest))
        return ResidentPrefix(stacked(prefix), prefix.position_offset, prefix.num_virtual_tokens)
