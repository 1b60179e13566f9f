"""The step loop: handles requests, runs steps, sends tokens. One thread, which reads no disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from prefix_store.digest import Digest
from server.engine.ipc import messages as m
from server.engine.loop.grammars import GrammarCompiled, Grammars
from server.engine.loop.prefix_compiler import PrefixCompiler, SoftPromptRead
from server.engine.loop.steps import Steps
from server.engine.loop.verifier import Verifier
from server.engine.memory.kv_pool import KvPool
from server.engine.memory.prefix import LoadResult
from server.engine.memory.residency import Residency
from server.engine.params import Delta
from server.engine.runner.runner import Runner
from server.engine.scheduler.batch import Batch
from server.engine.scheduler.scheduler import Scheduler
from server.engine.scheduler.sequence import Sequence, SequenceStatus
from server.errors import CompileFailed, InvalidRequest, PinRefused, PrefixUnavailable, StepFailed

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0


class ConnectionClosed:
    """The API process has closed the connection, so that nothing can be answered."""


InboxItem = m.Request | m.Event | LoadResult | SoftPromptRead | GrammarCompiled
Inbox = SimpleQueue[InboxItem | ConnectionClosed]


class StepLoop:
    """The engine's main loop. It alone uses the device, and receives everything through `inbox`."""

    def __init__(
        self,
        inbox: Inbox,
        send: Callable[[m.Event], None],
        scheduler: Scheduler,
        residency: Residency,
        runner: Runner,
        pool: KvPool,
        compiler: PrefixCompiler,
        grammars: Grammars,
        *,
        overlap: bool,
    ) -> None:
        self._inbox = inbox
        self._send = send
        self._scheduler = scheduler
        self._residency = residency
        self._runner = runner
        self._pool = pool
        self._compiler = compiler
        self._grammars = grammars
        self._steps = Steps(
            scheduler,
            runner,
            on_commit=self._postprocess,
            on_failure=lambda seq, message: self._fail(seq, StepFailed.code, message),
            overlap=overlap,
        )
        self._verifier = Verifier(runner.probes)
        self._stats = m.EngineStats()
        self._next_heartbeat_s = 0.0
        self._loads: list[m.Load | m.Pin] = []
        self._is_draining = False

    def check(self) -> None:
        """Check before `run` that a step can run. Raises `DeviceLost`."""
        self._steps.check()

    def run(self) -> None:
        """Run until drained or until the API process disconnects. Raises `DeviceLost`."""
        while self._receive() and not (self._is_draining and self._is_idle):
            self._fail_unloadable()
            self._answer_loads()
            if self._steps.has_work:
                started_s = time.perf_counter()
                self._steps.step()
                self._stats.step_time_s += time.perf_counter() - started_s
            self._send_heartbeat()
        self._residency.close()
        self._compiler.close()
        self._grammars.close()

    # --- results of steps ---

    def _postprocess(self, batch: Batch, deltas: list[Delta]) -> None:
        if deltas:
            self._send(m.Tokens(deltas))
        for chunk in batch.chunks:
            if chunk.seq.compiles and chunk.seq.num_uncomputed == 0:
                self._finish_compile(chunk.seq)
        for chunk in batch.sampled:
            if chunk.seq.request_id in self._verifier:
                self._advance(chunk.seq)
        self._count(batch)

    def _advance(self, probe: Sequence) -> None:
        match self._verifier.advance(probe):
            case Sequence() as other:
                self._add(other)
            case answer:
                self._send(answer)

    def _finish_compile(self, seq: Sequence) -> None:
        kv = self._pool.read(seq.pages, seq.num_prompt_tokens)
        self._runner.embeds.pop(seq.request_id, None)
        self._scheduler.finish(seq)
        self._compiler.finish(seq.request_id, kv)

    def _fail(self, seq: Sequence, code: str, message: str) -> None:
        self._runner.embeds.pop(seq.request_id, None)
        self._compiler.remove(seq.request_id)
        self._verifier.remove(seq.request_id)
        if seq.status is not SequenceStatus.FINISHED:
            self._scheduler.finish(seq)
        self._send(m.Failed(seq.request_id, CompileFailed.code if seq.compiles else code, message))

    # --- the inbox ---

    @property
    def _is_idle(self) -> bool:
        no_sequences = not (self._scheduler.running or self._scheduler.waiting)
        under_way = not (self._compiler.is_idle and self._grammars.is_idle)
        return no_sequences and not self._steps.has_work and not under_way

    def _receive(self) -> bool:
        """Handle all items in the inbox, and wait for one if there is no work.

        Returns False once the connection is closed.
        """
        block = not self._steps.has_work
        try:
            while True:
                item = self._inbox.get(block, timeout=HEARTBEAT_S if block else None)
                if isinstance(item, ConnectionClosed):
                    return False
                self._handle(item)
                block = False
        except Empty:
            return True

    def _handle(self, item: InboxItem) -> None:
        match item:
            case m.Submit(request_id, prefix, token_ids, sampling, scheduling):
                digest = Digest(prefix) if prefix is not None else None
                seq = Sequence(request_id, digest, token_ids, sampling, scheduling)
                if sampling.grammar is None or self._grammars.attach_matcher(seq):
                    self._add(seq)
            case GrammarCompiled():
                for seq in self._grammars.on_compiled(item):
                    self._start(seq)
            case m.Cancel(request_id):
                self._grammars.cancel(request_id)
                self._scheduler.cancel(request_id)
            case m.Load(_, prefix) | m.Pin(_, prefix):
                self._residency.acquire(Digest(prefix))
                self._loads.append(item)
            case m.Unload(request_id, prefix):
                was_evicted = self._residency.evict(Digest(prefix))
                self._send_with_stats(m.Unloaded(request_id, was_evicted))
            case m.Unpin(prefix):
                self._residency.unpin(Digest(prefix))
            case m.PreviewEviction(request_id, num_bytes):
                eviction_candidates = self._residency.eviction_candidates(num_bytes)
                evicted = [str(digest) for digest in eviction_candidates or ()]
                self._send(m.EvictionPreview(request_id, eviction_candidates is not None, evicted))
            case m.Verify():
                self._add(self._verifier.start(item))
            case m.CompilePrefix():
                if (compiling := self._compiler.start(item)) is not None:
                    self._add(compiling)
            case SoftPromptRead(request, embeddings):
                self._runner.embeds[request.request_id] = embeddings
                self._add(item.sequence)
            case LoadResult():
                self._residency.on_loaded(item)
                if item.prefix is None and not self._steps.has_work:  # else the next step checks it
                    self._steps.check()
            case m.Drain():
                self._is_draining = True
            case m.PrefixCompiled(request_id) | m.Failed(request_id):
                self._compiler.remove(request_id)
                self._send(item)

    def _add(self, seq: Sequence) -> None:
        """Queue a sequence, or fail it if the pool can never hold it: it would block others."""
        self._scheduler.add(seq)
        if not self._scheduler.can_hold(seq):
            text = f"the request needs {seq.max_slots} tokens of KV cache, more than there are"
            self._fail(seq, InvalidRequest.code, text)

    def _start(self, seq: Sequence) -> None:
        """Queue a sequence whose grammar was compiled, or fail it if that failed."""
        if seq.matcher is not None:
            self._add(seq)
            return
        text = "the grammar could not be compiled"
        self._send(m.Failed(seq.request_id, StepFailed.code, text))

    def _answer_loads(self) -> None:
        """Answer finished loads and pins. Until then, each holds a reference against eviction."""
        for load in list(self._loads):
            digest = Digest(load.prefix)
            error = self._residency.error(digest)
            if error is not None:
                self._send(m.Failed(load.request_id, PrefixUnavailable.code, error))
            elif not self._residency.is_resident(digest):
                continue
            elif isinstance(load, m.Pin) and not self._residency.pin(digest):
                text = "pinned prefixes may take at most half of the device budget"
                self._send(m.Failed(load.request_id, PinRefused.code, text))
            else:
                self._send_with_stats(m.Loaded(load.request_id))
            self._loads.remove(load)
            self._residency.release(digest)

    def _fail_unloadable(self) -> None:
        for seq in list(self._scheduler.waiting):
            if seq.prefix is not None and (error := self._residency.error(seq.prefix)) is not None:
                self._fail(seq, PrefixUnavailable.code, error)

    # --- statistics ---

    def _send_with_stats(self, event: m.Event) -> None:
        """Send an answer after a heartbeat, so that the client's statistics agree with it."""
        self._next_heartbeat_s = 0.0
        self._send_heartbeat()
        self._send(event)

    def _count(self, batch: Batch) -> None:
        num_tokens = sum(chunk.num_tokens for chunk in batch.chunks)
        num_decode = sum(chunk.num_tokens == 1 for chunk in batch.chunks)
        self._stats.num_steps += 1
        self._stats.num_decode_tokens += num_decode
        self._stats.num_prefill_tokens += num_tokens - num_decode
        self._stats.last_batch_size = len(batch.chunks)

    def _send_heartbeat(self) -> None:
        """Send a heartbeat if one is due. It comes from this thread to prove that the loop runs."""
        now_s = time.monotonic()
        if now_s < self._next_heartbeat_s:
            return
        self._next_heartbeat_s = now_s + HEARTBEAT_S
        self._residency.start_loads()  # a head-of-line period ends without an event
        scheduler, residency, stats = self._scheduler, self._residency, self._stats
        stats.num_waiting, stats.num_running = len(scheduler.waiting), len(scheduler.running)
        stats.num_preemptions = scheduler.num_preemptions
        stats.num_cached_tokens = scheduler.num_cached_tokens
        stats.kv_pages_total = scheduler.allocator.num_pages
        stats.kv_pages_used = stats.kv_pages_total - scheduler.allocator.num_free
        stats.kv_pages_cached = scheduler.allocator.num_cached
        stats.num_loading = residency.num_loading
        stats.prefix_loads, stats.prefix_evictions = residency.num_loads, residency.num_evictions
        stats.prefix_device_bytes = residency.num_device_bytes
        stats.prefix_host_bytes = residency.num_host_bytes
        stats.prefixes_on_device = [str(digest) for digest in residency.on_device]
        stats.prefixes_on_host = [str(digest) for digest in residency.on_host]
        self._send(m.Heartbeat(stats))
