"""Statistics of the step loop, and the heartbeats that carry them."""

from __future__ import annotations

import time
from collections.abc import Callable

from server.engine.ipc import messages as m
from server.engine.memory.residency import Residency
from server.engine.scheduler.batch import Batch
from server.engine.scheduler.scheduler import Scheduler

HEARTBEAT_S = 1.0


class StatsReporter:
    """Counts steps, and sends the statistics with a heartbeat about once a second.

    Only the step loop's thread may call it: a heartbeat is the proof that the loop is running.
    """

    def __init__(
        self, scheduler: Scheduler, residency: Residency, send: Callable[[m.Event], None]
    ) -> None:
        self._scheduler = scheduler
        self._residency = residency
        self._send = send
        self._stats = m.EngineStats()
        self._next_heartbeat_s = 0.0

    def count(self, batch: Batch) -> None:
        """Count a committed batch."""
        num_tokens = sum(chunk.num_tokens for chunk in batch.chunks)
        num_decode = sum(chunk.num_tokens == 1 for chunk in batch.chunks)
        self._stats.num_steps += 1
        self._stats.num_decode_tokens += num_decode
        self._stats.num_prefill_tokens += num_tokens - num_decode
        self._stats.last_batch_size = len(batch.chunks)

    def add_step_time(self, seconds: float) -> None:
        self._stats.step_time_s += seconds

    def send_if_due(self) -> None:
        """Send a heartbeat if the last one is older than `HEARTBEAT_S`."""
        now_s = time.monotonic()
        if now_s < self._next_heartbeat_s:
            return
        self._next_heartbeat_s = now_s + HEARTBEAT_S
        self._residency.start_loads()  # a head-of-line period ends without an event
        self._update()
        self._send(m.Heartbeat(self._stats))

    def send_before(self, event: m.Event) -> None:
        """Send a heartbeat and then `event`, so that the client's statistics agree with it."""
        self._next_heartbeat_s = 0.0
        self.send_if_due()
        self._send(event)

    def _update(self) -> None:
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
