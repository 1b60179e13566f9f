"""Tests that need a CUDA device: graphs, one step ahead, copies during steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from prefix_store.digest import Digest
from server.engine.attention.base import AttentionBackend
from server.engine.attention.interface import ATTENTION_NAME
from server.engine.attention.ref import RefBackend
from server.engine.loop.steps import Steps
from server.engine.memory.transfer import SideCopy
from server.engine.params import Delta, SamplingParams
from server.engine.runner.forward import ModelForward
from server.engine.runner.graphs import CudaCapture, Graphs
from server.engine.runner.runner import Runner, RunnerParts
from server.engine.runner.self_test import agrees, capture_and_test, example_steps
from server.engine.sampling.sampler import INVALID, SampleRow, sample
from server.engine.scheduler.batch import Batch
from server.engine.scheduler.scheduler import Scheduler
from server.engine.scheduler.sequence import Sequence
from tests.tiny_models import CONFIGS, VOCAB, build_model, make_engine, random_prefix, spec_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")
FAMILIES = ["llama", "qwen3", "gemma2", "mistral"]
PREFIX = Digest.of(b"prefix")


def triton() -> AttentionBackend:
    from server.engine.attention.triton import TritonBackend

    return TritonBackend()


def parts(
    family: str, backend: AttentionBackend, *, with_graphs: bool = False
) -> tuple[Scheduler, Runner]:
    """Return the scheduler and runner of a tiny model on the device, with a prefix."""
    model = build_model(family, ATTENTION_NAME).to(CUDA)
    engine = make_engine(model, backend, page_size=16, num_pages=200, max_num_batched_tokens=64)
    prefix = random_prefix(spec_of(CONFIGS[family]), 21, 0)
    engine.add(-1, [5], prefix, 1)
    engine.scheduler.cancel(-1)
    (resident,) = engine.ready.prefixes.values()
    forward = ModelForward(model)
    graphs = graphs_of(forward) if with_graphs else None
    if graphs is not None:
        graphs.capture_all()
    prefix_of = {PREFIX: resident}.__getitem__
    return engine.scheduler, Runner(RunnerParts(forward, backend, prefix_of, graphs=graphs))


def graphs_of(forward: ModelForward) -> Graphs:
    return Graphs(forward, CudaCapture(), max_num_tokens=64, max_num_rows=32, device=CUDA)


@pytest.mark.parametrize("family", FAMILIES)
def test_replays_agree_with_the_forward(family: str) -> None:
    backend = triton()
    forward = parts(family, backend)[1].parts.forward
    steps = example_steps(spec_of(CONFIGS[family]), VOCAB, CUDA)

    assert capture_and_test(graphs_of(forward), forward, backend, steps) is not None


def test_a_backend_that_plans_on_the_host_does_not_pass() -> None:
    """Control: a graph of the oracle cannot be captured, or repeats one step forever."""
    backend = RefBackend()
    forward = parts("llama", backend)[1].parts.forward
    steps = example_steps(spec_of(CONFIGS["llama"]), VOCAB, CUDA)

    assert not agrees(graphs_of(forward), forward, backend, steps)


@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_and_overlap_do_not_change_the_tokens(family: str) -> None:
    plain = run(family, with_graphs=False, overlap=False)

    assert len(plain) == 16
    assert run(family, with_graphs=True, overlap=False) == plain
    assert run(family, with_graphs=False, overlap=True) == plain
    assert run(family, with_graphs=True, overlap=True) == plain


def run(family: str, *, with_graphs: bool, overlap: bool) -> dict[int, list[int]]:
    scheduler, runner = parts(family, triton(), with_graphs=with_graphs)
    completions: dict[int, list[int]] = {}

    def on_commit(batch: Batch, deltas: list[Delta]) -> None:
        for delta in deltas:
            completions.setdefault(delta.request_id, []).extend(delta.token_ids)

    def on_failure(seq: Sequence, message: str) -> None:
        raise AssertionError(message)

    for i in range(16):
        drawn: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": i} if i % 4 else {}
        sampling = SamplingParams(max_tokens=12, ignore_eos=True, **drawn)
        prefix = PREFIX if i % 3 else None
        scheduler.add(Sequence(i, prefix, [*range(3 + i, 5 + 4 * i)], sampling))
    steps = Steps(scheduler, runner, on_commit=on_commit, on_failure=on_failure, overlap=overlap)
    for _ in range(300):
        if not steps.has_work:
            return completions
        steps.step()
    raise AssertionError("the engine did not come to an end")


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise on any operation that makes the host wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("with_graphs", [False, True])
def test_a_launch_never_waits_for_the_device(with_graphs: bool) -> None:
    scheduler, runner = parts("llama", triton(), with_graphs=with_graphs)
    kinds: list[dict[str, Any]] = [
        {}, {"temperature": 0.8}, {"temperature": 0.8, "top_k": 9}, {"temperature": 1, "top_p": 0.9}
    ]  # fmt: skip
    for i in range(8):
        sampling = SamplingParams(max_tokens=20, ignore_eos=True, **kinds[i % 4])
        scheduler.add(Sequence(i, PREFIX if i % 2 else None, [*range(5, 12)], sampling))
    for _ in range(3):  # compiles the kernels
        batch = scheduler.schedule()
        scheduler.commit(batch, runner.launch(batch).tokens())

    with no_waiting():
        batches = [scheduler.schedule() for _ in range(2)]
        handles = [runner.launch(batch) for batch in batches]

    assert any(chunk.input_in_flight for chunk in batches[1].chunks)
    assert [len(handle.tokens()) for handle in handles] == [8, 8]


def test_the_device_samples_what_the_cpu_samples() -> None:
    logits = torch.randn(40, 5000, generator=torch.Generator().manual_seed(0)) * 3
    logits[7, 123] = torch.nan
    rows = [
        SampleRow(
            SamplingParams(
                max_tokens=1, temperature=(0, 0.7, 1.3)[i % 3], top_k=(0, 5, 300)[i // 3 % 3],
                top_p=(1, 0.9)[i % 2], seed=i,
            ),
            i,
        )
        for i in range(40)
    ]  # fmt: skip

    on_device = sample(logits.to(CUDA), rows).tolist()

    assert on_device[7] == INVALID
    same = sum(a == b for a, b in zip(on_device, sample(logits, rows).tolist(), strict=True))
    assert same >= 39, "a threshold may differ in the last bit"


@pytest.mark.parametrize("num_values", [1, 1000, 3000, 8192 * 3 + 5])
def test_a_copy_during_a_step_is_complete_and_does_not_wait_for_it(num_values: int) -> None:
    kv = torch.randn(num_values, dtype=torch.float32).to(torch.bfloat16).view(1, -1)
    copy = SideCopy("cuda", piece_bytes=4096)
    copy(kv)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # a second or so of a step
    busy = torch.cuda.Event()
    busy.record()

    copied = copy(kv)

    assert not busy.query(), "the copy waited for the step"
    assert torch.equal(copied.cpu(), kv)


def test_the_engine_is_assembled_for_cuda(tmp_path: Path) -> None:
    pytest.importorskip("msgspec")
    from server.engine.assembly import assemble, make_runner
    from server.engine.ipc.messages import EngineConfig

    build_model("llama", "eager").save_pretrained(tmp_path)
    config = EngineConfig(
        model=str(tmp_path), blobs=str(tmp_path), kv_cache_bytes=64 << 20, max_num_seqs=8,
        max_num_batched_tokens=64,
    )  # fmt: skip

    built = assemble(config)

    assert (built.device, built.backend.name, built.loaded.spec.dtype) == (
        "cuda", "triton", "bfloat16",
    )  # fmt: skip
    assert built.copy is not None
    assert make_runner(built, config, {}.__getitem__).parts.graphs is not None
