"""The step loop with a fake runner: failures affect one request only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.digest import Digest
from prefix_store.errors import StorageFailure
from server.engine import grammar
from server.engine.ipc import messages as m
from server.engine.loop.grammars import Grammars
from server.engine.loop.loop import Inbox, StepLoop
from server.engine.loop.prefix_compiler import PrefixCompiler
from server.engine.loop.steps import DeviceLost
from server.engine.memory.kv_pool import KvPool
from server.engine.memory.prefix import ResidentPrefix
from server.engine.memory.residency import Residency
from server.engine.params import Logprobs, SamplingParams
from server.engine.sampling.sampler import INVALID
from server.engine.scheduler.batch import Batch
from server.engine.scheduler.page_allocator import PageAllocator
from server.engine.scheduler.scheduler import Scheduler
from tests.server.fakes import make_vocabulary
from tests.tiny_models import CONFIGS, spec_of

TOKEN = 7
NAN, BROKEN, HUGE, LOSES_DEVICE, NO_MEMORY = 40, 41, 42, 43, 44
"""First prompt tokens that make the fake runner fail."""


@dataclass
class Sampled:
    token_ids: list[int]

    def sample(self) -> None: ...

    def tokens(self) -> list[int]:
        return self.token_ids

    def logprobs(self) -> dict[int, Logprobs]:
        return {}

    def prompt_logprobs(self) -> dict[int, Logprobs]:
        return {}


class FakeRunner:
    """Runner that samples `TOKEN`, and fails for some sequences as a device could."""

    def __init__(self) -> None:
        self.embeds: dict[int, Tensor] = {}
        self.probes: dict[int, Tensor | None] = {}
        self.batches: list[list[int]] = []
        self.is_lost = False

    def launch(self, batch: Batch) -> Sampled:
        self.batches.append([chunk.seq.request_id for chunk in batch.chunks])
        firsts = [chunk.seq.token_ids[0] for chunk in batch.chunks]
        self.is_lost |= LOSES_DEVICE in firsts
        if self.is_lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if NO_MEMORY in firsts:
            raise torch.OutOfMemoryError("no room")
        if BROKEN in firsts:
            raise RuntimeError("an index is out of range")
        if HUGE in firsts and sum(chunk.num_tokens for chunk in batch.chunks) > 8:
            raise torch.OutOfMemoryError("no room")
        return Sampled([INVALID if c.seq.token_ids[0] == NAN else TOKEN for c in batch.sampled])


Run = Callable[..., tuple[dict[int, list[int]], dict[int, m.Failed], FakeRunner]]


@pytest.fixture(params=[False, True], ids=["in turn", "one ahead"])
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    """Runs requests through a loop until all are answered.

    Returns the tokens and the failures by request id, and the runner.
    """

    def run(
        *requests: m.Request,
        read: Callable[[Digest], ResidentPrefix] | None = None,
        sent: list[m.Event] | None = None,
    ) -> tuple[dict[int, list[int]], dict[int, m.Failed], FakeRunner]:
        spec = spec_of(CONFIGS["llama"])
        inbox: Inbox = Inbox()
        sent = [] if sent is None else sent
        residency = Residency(
            read or _unreadable, inbox.put, device_bytes=1 << 20, host_bytes=1 << 20
        )
        scheduler = Scheduler(
            PageAllocator(8, 64), residency, max_num_seqs=4, max_num_batched_tokens=16,
            eos_token_ids=[2],
        )  # fmt: skip
        pool = KvPool(spec, num_pages=8, page_size=64, device="cpu")
        compiler = PrefixCompiler(inbox.put, FileBlobStore(tmp_path), spec)
        runner = FakeRunner()
        loop = StepLoop(
            inbox, sent.append, scheduler, residency, runner, pool, compiler,
            Grammars(inbox.put, make_vocabulary), overlap=request.param,
        )  # fmt: skip
        for each in (*requests, m.Drain()):
            inbox.put(each)
        loop.run()
        scheduler.check()
        assert scheduler.allocator.num_free == 8
        tokens: dict[int, list[int]] = {}
        for event in sent:
            for delta in event.deltas if isinstance(event, m.Tokens) else ():
                tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
        return tokens, {e.request_id: e for e in sent if isinstance(e, m.Failed)}, runner

    return run


def submit(
    request_id: int,
    first: int = 5,
    *,
    num_tokens: int = 3,
    max_tokens: int = 2,
    regex: str | None = None,
) -> m.Submit:
    token_ids = [first] + [5] * (num_tokens - 1)
    form = None if regex is None else grammar.from_regex(regex)
    return m.Submit(
        request_id, None, token_ids, SamplingParams(max_tokens=max_tokens, grammar=form)
    )


def _unreadable(digest: Digest) -> ResidentPrefix:
    raise OSError("the disk is gone")


def test_a_row_of_nan_fails_its_request_and_no_other(run: Run) -> None:
    tokens, failed, _ = run(submit(1), submit(2, NAN, max_tokens=1), submit(3))

    assert tokens == {1: [TOKEN] * 2, 3: [TOKEN] * 2}
    assert {request_id: error.code for request_id, error in failed.items()} == {2: "step_failed"}


def test_a_request_that_breaks_a_step_is_identified_and_fails_alone(run: Run) -> None:
    tokens, failed, runner = run(submit(1), submit(2, BROKEN), submit(3))

    assert tokens == {1: [TOKEN] * 2, 3: [TOKEN] * 2}
    assert list(failed) == [2]
    assert runner.batches[:4] == [[1, 2, 3], [1], [2], [3]]


def test_a_row_of_nan_fails_when_sequences_are_run_again_alone(run: Run) -> None:
    tokens, failed, _ = run(submit(1, NAN, max_tokens=1), submit(2, BROKEN), submit(3))

    assert tokens == {3: [TOKEN] * 2}
    assert sorted(failed) == [1, 2]


def test_out_of_memory_makes_the_steps_smaller_and_loses_nothing(run: Run) -> None:
    tokens, failed, runner = run(submit(1, HUGE, num_tokens=12), submit(2))

    assert tokens == {1: [TOKEN] * 2, 2: [TOKEN] * 2}
    assert not failed
    assert runner.batches[:2] == [[1, 2], [1]]


def test_a_request_larger_than_the_pool_fails_and_blocks_no_other(run: Run) -> None:
    """The router refuses such requests; one that gets through must not block the loop."""
    tokens, failed, _ = run(
        submit(1, num_tokens=500, max_tokens=14), submit(2, num_tokens=513), submit(3),
        m.CompilePrefix(4, [5] * 513, None, {}), submit(5, num_tokens=400, max_tokens=113),
    )  # fmt: skip

    codes = {request_id: error.code for request_id, error in failed.items()}
    assert codes == {1: "invalid_request", 2: "invalid_request", 4: "compile_failed"}
    assert {request_id: len(ids) for request_id, ids in tokens.items()} == {3: 2, 5: 113}


def test_a_lost_device_ends_the_loop_and_no_request_is_blamed(run: Run) -> None:
    sent: list[m.Event] = []
    with pytest.raises(DeviceLost, match="illegal memory access"):
        run(submit(1), submit(2, LOSES_DEVICE), submit(3), sent=sent)

    assert not [event for event in sent if isinstance(event, m.Failed)]


def test_a_lost_device_is_noticed_by_a_prefix_that_cannot_be_copied_there(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = property(lambda _: True, lambda *_: None)
    monkeypatch.setattr(FakeRunner, "is_lost", lost, raising=False)

    with pytest.raises(DeviceLost):
        run(m.Submit(1, str(Digest.of(b"gone")), [5, 5], SamplingParams(max_tokens=2)))


def test_a_request_that_breaks_every_step_alone_does_not_end_the_loop(run: Run) -> None:
    """However often the client retries it."""
    tokens, failed, _ = run(*(submit(i, BROKEN) for i in range(1, 21)), submit(21))

    assert sorted(failed) == [*range(1, 21)]
    assert tokens == {21: [TOKEN] * 2}


def test_a_request_that_exhausts_memory_does_not_end_the_loop(run: Run) -> None:
    tokens, failed, _ = run(*(submit(i, NO_MEMORY) for i in range(1, 21)), submit(21))

    assert sorted(failed) == [*range(1, 21)]
    assert tokens == {21: [TOKEN] * 2}


def test_a_device_without_memory_for_a_single_token_counts_as_lost_after_a_while(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_launches = []

    def launch(self: FakeRunner, batch: Batch) -> Sampled:
        num_launches.append(len(batch.chunks))
        if len(num_launches) < full_for:
            raise torch.OutOfMemoryError("no room")
        return Sampled([TOKEN] * len(batch.sampled))

    monkeypatch.setattr(FakeRunner, "launch", launch)
    full_for = 9
    run(*(submit(i) for i in range(1, 21)))

    num_launches.clear()
    full_for = 1000
    with pytest.raises(DeviceLost):
        run(*(submit(i) for i in range(1, 21)))


def test_a_request_that_waits_for_its_grammar_blocks_no_other_and_runs_later(run: Run) -> None:
    tokens, failed, runner = run(
        submit(1, regex=r"[\s\S]*"), submit(2), submit(3, regex="("), submit(4, regex=r"[\s\S]*"),
        submit(5, regex="[a-z]"), m.Cancel(5),
    )  # fmt: skip

    assert tokens == {1: [TOKEN] * 2, 2: [TOKEN] * 2, 4: [TOKEN] * 2}
    assert {request_id: error.code for request_id, error in failed.items()} == {3: "step_failed"}
    assert runner.batches[0] == [2]


def test_requests_with_an_unreadable_prefix_fail_and_others_run(run: Run) -> None:
    digest = str(Digest.of(b"gone"))
    with_prefix = m.Submit(2, digest, [5, 5], SamplingParams(max_tokens=2))

    tokens, failed, _ = run(submit(1), m.Load(9, digest), with_prefix, submit(3))

    assert tokens == {1: [TOKEN] * 2, 3: [TOKEN] * 2}
    assert {error.code for error in failed.values()} == {"prefix_unavailable"}
    assert 2 in failed


def test_a_compile_of_missing_embeddings_fails(run: Run) -> None:
    tokens, failed, _ = run(m.CompilePrefix(4, None, str(Digest.of(b"none")), {}), submit(1))

    assert tokens == {1: [TOKEN] * 2}
    assert failed[4].code == "compile_failed"


def test_a_compile_fails_as_unavailable_if_the_blob_store_is_unreachable(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bytes:
        raise StorageFailure("the blob store cannot be read")

    monkeypatch.setattr(FileBlobStore, "get", refuse)
    tokens, failed, _ = run(m.CompilePrefix(4, None, str(Digest.of(b"away")), {}), submit(1))

    assert tokens == {1: [TOKEN] * 2}
    assert failed[4].code == "unavailable"
