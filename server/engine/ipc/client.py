"""Client of the engine process: sends requests, delivers tokens, restarts a failed engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from itertools import count

from prefix_store.digest import Digest
from server.engine.ipc import messages as m
from server.engine.ipc.child import EngineProcess
from server.engine.ipc.pending import PendingRequests
from server.engine.ipc.state import EngineState
from server.engine.ipc.stream import TokenStream
from server.engine.params import DEFAULT_SCHEDULING, SamplingParams, SchedulingParams
from server.errors import EngineUnavailable

logger = logging.getLogger(__name__)

_RESTART_DELAYS_S = (0.0, 0.5, 2.0, 10.0)
_STOPPED = "the engine stopped while it ran this request; try again"


class EngineClient:
    """Owner of the engine process: starts it, watches its heartbeat, restarts it on failure.

    All methods must be called from one event loop. When the engine dies, requests in flight raise
    `EngineUnavailable`, and so do new requests until the next process is ready.
    """

    def __init__(
        self, config: m.EngineConfig, *, start_timeout_s: float, hang_timeout_s: float
    ) -> None:
        self._config = config
        self._start_timeout_s = start_timeout_s
        self._hang_timeout_s = hang_timeout_s
        self._ids = count(1)
        self._pending = PendingRequests()
        self._info: m.EngineInfo | None = None
        self._process: EngineProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._state = EngineState.STARTING
        self._loaded = asyncio.Event()
        """Set once the first process has loaded the model."""
        self._start_error: str | None = None
        self._last_event_s = 0.0
        self.stats = m.EngineStats()
        self.num_restarts = 0
        self._pinning: Counter[Digest] = Counter()
        """Number of running calls of `pin`."""
        self.pinned: set[Digest] = set()
        """Prefixes that every new engine process pins when it starts."""

    @property
    def info(self) -> m.EngineInfo:
        """The loaded model and its limits; stays available during a restart.

        Raises `EngineUnavailable` before the first start has finished.
        """
        if self._info is None:
            raise EngineUnavailable("the engine is loading the model")
        return self._info

    @property
    def is_ready(self) -> bool:
        return self._state in (EngineState.READY, EngineState.DRAINING)

    @property
    def heartbeat_age_s(self) -> float | None:
        """Seconds since the last event from the engine; None if no engine is ready."""
        return time.monotonic() - self._last_event_s if self.is_ready else None

    @property
    def num_in_flight(self) -> int:
        return self._pending.num_streams

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start the engine and wait until its model is loaded. Raises `EngineUnavailable`."""
        self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")
        loaded = asyncio.create_task(self._loaded.wait())
        await asyncio.wait({loaded, self._supervisor}, return_when=asyncio.FIRST_COMPLETED)
        if not loaded.done():
            loaded.cancel()
            raise EngineUnavailable(self._start_error or "the engine process did not start")

    async def stop(self, drain_timeout_s: float) -> None:
        """Let running requests finish for at most `drain_timeout_s`, then kill the process."""
        self._state = EngineState.DRAINING if self.is_ready else EngineState.STOPPED
        if self._process is not None and self.is_ready:
            self._send(m.Drain())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), drain_timeout_s)
        if self._process is not None:
            await self._process.kill()
        if self._supervisor is not None:
            await self._supervisor

    def submit(
        self,
        prefix: Digest | None,
        token_ids: list[int],
        sampling: SamplingParams,
        scheduling: SchedulingParams = DEFAULT_SCHEDULING,
    ) -> TokenStream:
        """Start generating after a prefix, or without one. Raises `EngineUnavailable`."""
        request_id = next(self._ids)
        digest = str(prefix) if prefix else None
        self._send(m.Submit(request_id, digest, token_ids, sampling, scheduling))
        stream = TokenStream(cancel=lambda: self._cancel(request_id))
        self._pending.add_stream(request_id, stream)
        return stream

    async def load(self, prefix: Digest) -> None:
        """Make a prefix resident. Raises `PrefixUnavailable`, `EngineUnavailable`."""
        request_id = next(self._ids)
        await self._call(request_id, m.Load(request_id, str(prefix)))

    def unload(self, prefix: Digest) -> None:
        """Evict a prefix, unless it is in use or pinned. A no-op while no engine is ready."""
        with contextlib.suppress(EngineUnavailable):
            self._send(m.Unload(next(self._ids), str(prefix)))

    async def evict(self, prefix: Digest) -> bool:
        """Evict a prefix. Returns False, and keeps it, if it is in use or pinned."""
        request_id = next(self._ids)
        reply = await self._call(request_id, m.Unload(request_id, str(prefix)))
        assert isinstance(reply, m.Unloaded)
        return reply.was_evicted

    async def pin(self, prefix: Digest) -> None:
        """Make a prefix resident and keep it resident, across restarts of the engine too.

        Raises `PrefixUnavailable`, `PinRefused`.
        """
        request_id = next(self._ids)
        self._pinning[prefix] += 1
        try:
            await self._call(request_id, m.Pin(request_id, str(prefix)))
            self.pinned.add(prefix)
        except asyncio.CancelledError:
            if self._pinning[prefix] == 1 and prefix not in self.pinned:
                self.unpin(prefix)  # the reply may be on its way
            raise
        finally:
            self._pinning[prefix] -= 1
            self._pinning += Counter()  # drops the zeros

    def unpin(self, prefix: Digest) -> None:
        """Allow a pinned prefix to be evicted again."""
        self.pinned.discard(prefix)
        with contextlib.suppress(EngineUnavailable):
            self._send(m.Unpin(str(prefix)))

    async def preview_eviction(self, num_bytes: int) -> m.EvictionPreview:
        """Return which prefixes would be evicted to make room for one of `num_bytes`."""
        request_id = next(self._ids)
        reply = await self._call(request_id, m.PreviewEviction(request_id, num_bytes))
        assert isinstance(reply, m.EvictionPreview)
        return reply

    async def verify(self, prefix: Digest, token_ids: list[int]) -> float:
        """Run a prompt without and with a prefix; return the relative change of the logits.

        Raises `StepFailed` if the prompt cannot be run or its logits are not finite, and
        `PrefixUnavailable`.
        """
        request_id = next(self._ids)
        reply = await self._call(request_id, m.Verify(request_id, str(prefix), token_ids))
        assert isinstance(reply, m.Verified)
        return reply.effect

    async def compile(
        self,
        *,
        token_ids: list[int] | None = None,
        embeddings: Digest | None = None,
        origin: dict[str, str],
    ) -> m.PrefixCompiled:
        """Compute a prefix and write its artifact to the blob store.

        The source is either `token_ids`, or `embeddings`, the digest of a blob of input embeddings.
        Raises `CompileFailed`, and `Unavailable` if the blob store cannot be reached. If it is
        cancelled too late, it returns all the same, as the artifact is in the blob store.
        """
        request_id = next(self._ids)
        source = str(embeddings) if embeddings else None
        self._send(m.CompilePrefix(request_id, token_ids, source, origin))
        reply = await self._pending.last_reply(request_id, lambda: self._cancel(request_id))
        assert isinstance(reply, m.PrefixCompiled)
        return reply

    # --- starting and restarting the process ---

    async def _supervise(self) -> None:
        attempt = 0
        while self._state is EngineState.STARTING:
            was_ready = await self._run_one_process()
            if self._info is None:
                return  # the very first start failed: start() raises the error
            if self._state is EngineState.STARTING:
                self.num_restarts += 1
                attempt = 0 if was_ready else attempt + 1
                await asyncio.sleep(_RESTART_DELAYS_S[min(attempt, len(_RESTART_DELAYS_S) - 1)])

    async def _run_one_process(self) -> bool:
        """Run one process until it ends, then fail its requests; return whether it was ready."""
        try:
            self._process = process = await EngineProcess.spawn(self._config)
        except OSError as exc:
            self._report(f"no engine process can be started ({exc.strerror})", was_ready=False)
            return False
        was_ready = False
        try:
            if self._state is EngineState.STARTING:  # otherwise `stop` was called during the spawn
                was_ready = await self._wait_ready(process)
            if was_ready:
                watchdog = asyncio.create_task(self._watch(process))
                await self._receive(process)
                watchdog.cancel()
            return was_ready
        finally:
            is_replaced = self._state in (EngineState.STARTING, EngineState.READY)
            self._state = EngineState.STARTING if is_replaced else EngineState.STOPPED
            self.stats = m.EngineStats()  # a dead engine runs nothing and holds nothing
            self._pending.fail_all(EngineUnavailable, _STOPPED)
            if not is_replaced:
                await process.kill()
            else:
                await process.end()
                self._report(process.how_it_ended, was_ready=was_ready)

    def _report(self, how_it_ended: str, *, was_ready: bool) -> None:
        if self._info is not None:
            logger.error("%s; starting another one", how_it_ended)
        elif not was_ready:
            self._start_error = self._start_error or how_it_ended

    async def _wait_ready(self, process: EngineProcess) -> bool:
        try:
            event = await asyncio.wait_for(process.read(), self._start_timeout_s)
        except TimeoutError:
            event = None
            self._start_error = f"the engine did not load within {self._start_timeout_s:.0f} s"
        match event:
            case m.Ready(info=info) if self._state is EngineState.STARTING:
                self._info = info
                self._last_event_s = time.monotonic()
                self._state = EngineState.READY
                self._loaded.set()
                for prefix in self.pinned:
                    self._send(m.Pin(next(self._ids), str(prefix)))
            case m.Failed(message=message):
                self._start_error = message
                if self._info is not None:  # else start() raises it
                    logger.error("the engine failed to start: %s", message)
        return self.is_ready

    async def _receive(self, process: EngineProcess) -> None:
        while (event := await process.read()) is not None:
            self._last_event_s = time.monotonic()
            self._dispatch(event)

    def _dispatch(self, event: m.Event) -> None:
        match event:
            case m.Ready():
                pass  # handled by `_wait_ready`
            case m.Heartbeat(stats=stats):
                self.stats = stats
            case _:
                self._pending.dispatch(event)

    async def _call(self, request_id: int, message: m.Request) -> m.Event:
        """Send a request and wait for its reply. If that is cancelled, so is the request."""
        self._send(message)
        return await self._pending.reply(request_id, lambda: self._cancel(request_id))

    def _cancel(self, request_id: int) -> None:
        self._pending.remove_stream(request_id)
        with contextlib.suppress(EngineUnavailable):
            self._send(m.Cancel(request_id))

    def _send(self, message: m.Request) -> None:
        if not self.is_ready or self._process is None:
            raise EngineUnavailable("the engine is starting")
        self._process.send(message)

    async def _watch(self, process: EngineProcess) -> None:
        """Kill the process once its step loop has hung for `hang_timeout_s`."""
        while (age_s := self.heartbeat_age_s) is not None and age_s < self._hang_timeout_s:
            await asyncio.sleep(self._hang_timeout_s / 10)
        logger.error("no heartbeat for %.0f s: killing the engine process", self._hang_timeout_s)
        await process.kill()
