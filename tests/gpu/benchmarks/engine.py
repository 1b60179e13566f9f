"""An engine in this process, with a model of random weights made on the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from prefix_store.digest import Digest
from prefix_store.prefix import BaseModelSpec
from server.engine.attention import interface
from server.engine.attention.base import AttentionBackend, BatchCapacity
from server.engine.attention.ref import RefBackend
from server.engine.loop.steps import Steps
from server.engine.memory.kv_pool import KvPool
from server.engine.memory.prefix import ResidentPrefix
from server.engine.params import Delta, SamplingParams
from server.engine.runner.forward import ModelForward
from server.engine.runner.graphs import CudaCapture, Graphs, buckets_for
from server.engine.runner.runner import Runner, RunnerParts
from server.engine.runner.self_test import agrees, example_steps
from server.engine.scheduler.batch import Batch
from server.engine.scheduler.page_allocator import PageAllocator
from server.engine.scheduler.scheduler import Scheduler
from server.engine.scheduler.sequence import Sequence
from tests.gpu.benchmarks.scale import Geometry, Scale

PAGE_SIZE = 16
MAX_NUM_BATCHED_TOKENS = 512
WARM_UP_STEPS = 8


class Prefixes:
    """Prefixes that are always resident."""

    def __init__(self) -> None:
        self.resident: dict[Digest, ResidentPrefix] = {}

    def acquire(self, digest: Digest) -> None: ...

    def release(self, digest: Digest) -> None: ...

    def is_resident(self, digest: Digest) -> bool:
        return True


class Engine:
    """Scheduler, runner and pool. `graphs` is None if the device or the model cannot use them."""

    def __init__(self, geometry: Geometry, scale: Scale) -> None:
        self.geometry, self.scale = geometry, scale
        self.device = torch.device(scale.device)
        self.dtype = torch.bfloat16 if scale.device == "cuda" else torch.float32
        self.backend = backend_for(scale.device)
        self.model = make_model(geometry, self.device, self.dtype, self.backend)
        self.spec = BaseModelSpec(
            geometry.name, "sha256:" + "0" * 64, geometry.num_layers, geometry.num_kv_heads,
            geometry.head_dim, geometry.hidden_size, str(self.dtype).removeprefix("torch."),
        )  # fmt: skip
        max_num_seqs = max(2, *scale.batch_sizes)
        max_len = scale.num_prompt_tokens + 4 * (scale.num_steps + WARM_UP_STEPS + 2)
        num_pages = max_num_seqs * -(-max_len // PAGE_SIZE)
        pool = KvPool(self.spec, num_pages=num_pages, page_size=PAGE_SIZE, device=scale.device)
        num_rows = buckets_for(MAX_NUM_BATCHED_TOKENS)[-1]
        self.backend.allocate(
            pool, BatchCapacity(geometry.num_heads, num_rows, max_num_seqs, max_len)
        )
        self.prefixes = Prefixes()
        self.scheduler = Scheduler(
            PageAllocator(num_pages, PAGE_SIZE), self.prefixes, max_num_seqs=max_num_seqs,
            max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS, eos_token_ids=[],
        )  # fmt: skip
        self._forward = ModelForward(self.model)
        self.graphs = self._tested_graphs() if self.device.type == "cuda" else None
        self.use_graphs(self.graphs)
        self._generator = torch.Generator().manual_seed(0)
        self._num_tokens = 0

    def use_graphs(self, graphs: Graphs | None) -> None:
        """Build the runner, with these graphs or with none."""
        prefix_of = self.prefixes.resident.__getitem__
        self.runner = Runner(RunnerParts(self._forward, self.backend, prefix_of, graphs=graphs))

    def _tested_graphs(self) -> Graphs | None:
        """Return graphs that passed the test. The first step of a bucket captures it: few are
        used here."""
        graphs = Graphs(
            self._forward, CudaCapture(), max_num_tokens=MAX_NUM_BATCHED_TOKENS,
            max_num_rows=self.scheduler.max_num_seqs, device=self.device,
        )  # fmt: skip
        steps = example_steps(self.spec, self.geometry.vocab_size, self.device)
        return graphs if agrees(graphs, self._forward, self.backend, steps) else None

    def make_prefix(self, num_tokens: int) -> ResidentPrefix:
        shape = (
            self.spec.num_layers, 2, self.spec.num_kv_heads, num_tokens, self.spec.head_dim,
        )  # fmt: skip
        kv = torch.randn(shape, device=self.device, dtype=self.dtype)
        return ResidentPrefix(kv, num_tokens, num_tokens)

    @contextmanager
    def requests(self, digests: list[Digest | None], *, overlap: bool = True) -> Iterator[Steps]:
        """Run one request per item of `digests`. In the block all prompts have been computed and
        all requests generate."""
        self._num_tokens = 0
        steps = Steps(
            self.scheduler, self.runner, on_commit=self._count, on_failure=_fail, overlap=overlap
        )
        shape = (len(digests), self.scale.num_prompt_tokens)
        prompts = torch.randint(self.geometry.vocab_size, shape, generator=self._generator)
        for i, (digest, prompt) in enumerate(zip(digests, prompts.tolist(), strict=True)):
            sampling = SamplingParams(max_tokens=1 << 20, ignore_eos=True)
            self.scheduler.add(Sequence(i, digest, prompt, sampling))
        while self.scheduler.waiting or any(s.num_uncomputed > 1 for s in self.scheduler.running):
            steps.step()
        yield steps
        for i in range(len(digests)):
            self.scheduler.cancel(i)
        while steps.has_work:
            steps.step()

    def seconds_per_step(self, steps: Steps) -> float:
        """Return the time of a step on host and device: the median of four rounds."""
        for _ in range(WARM_UP_STEPS):
            steps.step()
        rounds = [self._time(steps, max(1, self.scale.num_steps // 4)) for _ in range(4)]
        return median(rounds)

    def _time(self, steps: Steps, num_steps: int) -> float:
        synchronize(self.device)
        began_s, num_tokens = time.perf_counter(), self._num_tokens
        for _ in range(num_steps):
            steps.step()
        took_s = time.perf_counter() - began_s
        num_running = len(self.scheduler.running)
        assert self._num_tokens - num_tokens == num_steps * num_running, "not every row decoded"
        return took_s / num_steps

    def _count(self, batch: Batch, deltas: list[Delta]) -> None:
        self._num_tokens += len(deltas)

    @property
    def num_own_tokens(self) -> int:
        """Tokens whose keys and values a step reads, without prefixes."""
        return sum(len(seq.token_ids) for seq in self.scheduler.running)

    @property
    def num_weight_bytes(self) -> int:
        """Bytes of weights that a step reads: without an embedding that is not also the head."""
        num_bytes: int = sum(p.numel() * p.itemsize for p in self.model.parameters())
        embedding: Tensor = self.model.get_input_embeddings().weight
        return num_bytes - (0 if self.geometry.tied else embedding.numel() * embedding.itemsize)


def backend_for(device: str) -> AttentionBackend:
    if device == "cpu":
        return RefBackend()
    from server.engine.attention.triton import TritonBackend

    return TritonBackend()


def make_model(
    geometry: Geometry, device: torch.device, dtype: torch.dtype, backend: AttentionBackend
) -> PreTrainedModel:
    interface.register(backend.attend)
    config = LlamaConfig(
        vocab_size=geometry.vocab_size,
        hidden_size=geometry.hidden_size,
        intermediate_size=geometry.intermediate_size,
        num_hidden_layers=geometry.num_layers,
        num_attention_heads=geometry.num_heads,
        num_key_value_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        max_position_embeddings=1 << 17,
        tie_word_embeddings=geometry.tied,
    )
    with device:
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=interface.ATTENTION_NAME
        )
    model = model.eval().requires_grad_(requires_grad=False)
    if device.type == "cuda":
        from server.engine.model.fuse import fuse

        fuse(model)
    return model


def copy_rate(scale: Scale) -> float:
    """Return the bytes per second that a copy on the device reads and writes: an upper bound."""
    source = torch.ones(scale.copy_bytes, dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    times_s = [seconds(lambda: target.copy_(source), source.device) for _ in range(10)]
    return 2 * scale.copy_bytes / median(times_s[2:])


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the time of a call, including the work that it starts on the device."""
    synchronize(device)
    began_s = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began_s


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _fail(seq: Sequence, message: str) -> None:
    raise RuntimeError(f"request {seq.request_id}: {message}")


def per_second(num_tokens: float, took_s: float) -> float:
    return round(num_tokens / took_s, 1)


def ms(took_s: float) -> float:
    return round(took_s * 1e3, 3)
