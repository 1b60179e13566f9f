"""The step loop: handles requests, runs steps, sends tokens. One thread, which reads no disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from prefix_store.digest import Digest
from server.engine.ipc import messages as m
from server.engine.loop.grammars import GrammarCompiled, Grammars
from server.engine.loop.prefix_compiler import PrefixCompiler, SoftPromptRead
from server.engine.loop.prefix_requests import PrefixRequests
from server.engine.loop.stats import HEARTBEAT_S, StatsReporter
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
from server.errors import CompileFailed, InvalidRequest, PrefixUnavailable, StepFailed


class ConnectionClosed:
    """The API process has closed the connection, so that nothing can be answered."""


WorkerResult = LoadResult | SoftPromptRead | GrammarCompiled | m.PrefixCompiled | m.Failed
InboxItem = m.Request | WorkerResult
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
        self._stats = StatsReporter(scheduler, residency, send)
        self._prefix_requests = PrefixRequests(residency, self._stats, send)
        self._is_draining = False

    def check(self) -> None:
        """Check before `run` that a step can run. Raises `DeviceLost`."""
        self._steps.check()

    def run(self) -> None:
        """Run until drained or until the API process disconnects. Raises `DeviceLost`."""
        while self._receive() and not (self._is_draining and self._is_idle):
            self._fail_unloadable()
            self._prefix_requests.answer_loads()
            if self._steps.has_work:
                started_s = time.perf_counter()
                self._steps.step()
                self._stats.add_step_time(time.perf_counter() - started_s)
            self._stats.send_if_due()
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
        self._stats.count(batch)

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
        if isinstance(item, m.Request):
            self._handle_request(item)
        else:
            self._handle_result(item)

    def _handle_request(self, request: m.Request) -> None:
        match request:
            case m.Submit(request_id, prefix, token_ids, sampling, scheduling):
                digest = Digest(prefix) if prefix is not None else None
                seq = Sequence(request_id, digest, token_ids, sampling, scheduling)
                if sampling.grammar is None or self._grammars.attach_matcher(seq):
                    self._add(seq)
            case m.Cancel(request_id):
                self._cancel(request_id)
            case m.Load() | m.Unload() | m.Pin() | m.Unpin() | m.PreviewEviction():
                self._prefix_requests.handle(request)
            case m.Verify():
                self._add(self._verifier.start(request))
            case m.CompilePrefix():
                if (compiling := self._compiler.start(request)) is not None:
                    self._add(compiling)
            case m.Drain():
                self._is_draining = True

    def _handle_result(self, result: WorkerResult) -> None:
        """Handle a result of the threads that load prefixes, compile grammars or access blobs."""
        match result:
            case GrammarCompiled():
                for seq in self._grammars.on_compiled(result):
                    self._start(seq)
            case SoftPromptRead(request) if request.request_id not in self._compiler:
                pass  # cancelled meanwhile
            case SoftPromptRead(request, embeddings):
                self._runner.embeds[request.request_id] = embeddings
                self._add(result.sequence)
            case LoadResult(prefix=prefix):
                self._residency.on_loaded(result)
                if prefix is None and not self._steps.has_work:  # else the next step checks it
                    self._steps.check()
            case m.PrefixCompiled(request_id) | m.Failed(request_id):
                self._compiler.remove(request_id)
                self._send(result)

    def _cancel(self, request_id: int) -> None:
        """Stop whatever a request does. Unknown ids are ignored: they have ended meanwhile."""
        self._grammars.cancel(request_id)
        self._prefix_requests.cancel(request_id)
        self._verifier.remove(request_id)
        self._scheduler.cancel(request_id)
        if self._compiler.cancel(request_id):
            self._runner.embeds.pop(request_id, None)
            self._send(m.Failed(request_id, CompileFailed.code, "the request was cancelled"))

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

    def _fail_unloadable(self) -> None:
        for seq in list(self._scheduler.waiting):
            if seq.prefix is not None and (error := self._residency.error(seq.prefix)) is not None:
                self._fail(seq, PrefixUnavailable.code, error)
