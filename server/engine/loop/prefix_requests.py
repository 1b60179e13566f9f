"""Requests about the residency of prefixes: load, unload, pin, unpin, preview of evictions."""

from __future__ import annotations

from collections.abc import Callable

from prefix_store.digest import Digest
from server.engine.ipc import messages as m
from server.engine.loop.stats import StatsReporter
from server.engine.memory.residency import Residency
from server.errors import PinRefused, PrefixUnavailable

PrefixRequest = m.Load | m.Unload | m.Pin | m.Unpin | m.PreviewEviction


class PrefixRequests:
    """Answers requests about prefixes. Loads and pins are answered once the prefix is resident."""

    def __init__(
        self, residency: Residency, stats: StatsReporter, send: Callable[[m.Event], None]
    ) -> None:
        self._residency = residency
        self._stats = stats
        self._send = send
        self._loads: list[m.Load | m.Pin] = []

    def handle(self, request: PrefixRequest) -> None:
        match request:
            case m.Load(_, prefix) | m.Pin(_, prefix):
                self._residency.acquire(Digest(prefix))
                self._loads.append(request)
            case m.Unload(request_id, prefix):
                was_evicted = self._residency.evict(Digest(prefix))
                self._stats.send_before(m.Unloaded(request_id, was_evicted))
            case m.Unpin(prefix):
                self._residency.unpin(Digest(prefix))
            case m.PreviewEviction(request_id, num_bytes):
                candidates = self._residency.eviction_candidates(num_bytes)
                evicted = [str(digest) for digest in candidates or ()]
                self._send(m.EvictionPreview(request_id, candidates is not None, evicted))

    def cancel(self, request_id: int) -> None:
        """Drop a load or a pin. What is being read from disk is read to its end."""
        for load in [each for each in self._loads if each.request_id == request_id]:
            self._loads.remove(load)
            self._residency.release(Digest(load.prefix))

    def answer_loads(self) -> None:
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
                self._stats.send_before(m.Loaded(load.request_id))
            self._loads.remove(load)
            self._residency.release(digest)
