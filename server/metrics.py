"""Prometheus metrics. All names but those of processes start with `foreword_`."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from prefix_store.rollback import Condition
from server.engine.ipc.messages import EngineStats
from server.errors import AccessDenied
from server.telemetry.collectors import BuildCollector, EngineCollector
from server.telemetry.labels import OTHER, LabelSet
from server.telemetry.recent import RecentRequests
from server.telemetry.records import RequestRecord, ServedBy, time_per_output_token_s
from server.telemetry.versions import SECONDS, TOKEN_SECONDS, VersionSeries

_OUTCOMES = ("stop", "length", "cancelled")


class Metrics:
    """All metrics, in a Prometheus registry per app, and the recent requests of each version.

    The base model's task label is empty. At most `max_task_labels` tasks get their own label, and
    as many versions; see `LabelSet`. All methods but `render` are called from one event loop.
    """

    def __init__(
        self, *, max_task_labels: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.registry = CollectorRegistry()
        self.tasks = LabelSet[str](max_task_labels, self._end_task, clock=clock)
        self.versions = VersionSeries(self.registry, max_task_labels, clock=clock)
        self.recent = RecentRequests(clock=clock)
        self.last_activation = 0
        """Sequence number of the last activation whose versions are expected."""
        self._watchers: list[Callable[[RequestRecord], None]] = []
        self._requests = self._counter(
            "requests",
            "Requests by how they ended: stop, length, cancelled, or an error's code.",
            "task",
            "outcome",
        )
        self._prompt_tokens = self._counter(
            "prompt_tokens", "Prompt tokens without the prefix.", "task"
        )
        self._completion_tokens = self._counter("completion_tokens", "Tokens generated.", "task")
        self._queue = self._seconds("queue", "Seconds from a request's arrival to its submission.")
        self._first_token = self._seconds(
            "time_to_first_token", "Seconds from arrival to the first token."
        )
        self._per_token = self._seconds(
            "time_per_output_token",
            "Seconds from token to token, the mean of each request.",
            TOKEN_SECONDS,
        )
        self._duration = self._seconds(
            "request_duration", "Seconds from arrival to the last token."
        )
        self._uploads = self._counter(
            "uploads", "Uploads by outcome: created, or an error's code.", "outcome"
        )
        self._denied = self._counter(
            "access_denied",
            "Requests refused because of their key or a missing key, by the error's code.",
            "code",
        )
        self._rollbacks = self._counter(
            "automatic_rollbacks",
            "Splits that ended by their own rule, by the condition that was met.",
            "condition",
        )
        self._start_at_zero()

    def completed(self, record: RequestRecord) -> None:
        """Count a request that was admitted and has ended."""
        task = self._label(record.target.task)
        self._requests.labels(task, record.outcome).inc()
        self._prompt_tokens.labels(task).inc(record.num_prompt_tokens)
        self._completion_tokens.labels(task).inc(record.num_completion_tokens)
        self._queue.observe(record.queue_s)
        self._duration.observe(record.total_s)
        if record.time_to_first_token_s is not None:
            self._first_token.observe(record.time_to_first_token_s)
        if (per_token_s := time_per_output_token_s(record)) is not None:
            self._per_token.observe(per_token_s)
        self.versions.completed(record)
        self.recent.completed(record)
        for watch in self._watchers:
            watch(record)

    def watch_completions(self, watch: Callable[[RequestRecord], None]) -> None:
        """Also call `watch` with the record of every request that has ended."""
        self._watchers.append(watch)

    def refused(self, code: str, task: str | None = None, target: ServedBy | None = None) -> None:
        """Count a request that was not admitted.

        `target`: the version that had been chosen for it. Without one the task may not exist, and
        only a task that has a label already is counted under its name.
        """
        if target is None or target.task is None:
            known = task if task is not None and task in self.tasks else ""
            self._requests.labels(known, code).inc()
            return
        self._requests.labels(self._label(target.task), code).inc()
        self.versions.refused(target.task, target.version)
        self.recent.refused(target)

    def expect(self, task: str, versions: Iterable[int], *, urgent: bool = False) -> None:
        """Start the series of versions that get traffic from now on, at 0.

        `urgent`: other versions' series may end for them.
        """
        if task not in self.tasks:
            self._label(task, urgent=urgent)
        for version in versions:
            self.versions.expect(task, version, urgent=urgent)

    def end(self, tasks: Iterable[str], versions: Iterable[tuple[str, str]]) -> None:
        """End the series of deleted tasks and versions."""
        for task in tasks:
            self.tasks.end(task)
        for labels in versions:
            self.versions.labels.end(labels)

    def uploaded(self, outcome: str) -> None:
        """Count an upload."""
        self._uploads.labels(outcome).inc()

    def denied(self, code: str) -> None:
        """Count a request that was refused because of its key."""
        self._denied.labels(code).inc()

    def rolled_back(self, condition: Condition) -> None:
        """Count a split that ended by its own rule."""
        self._rollbacks.labels(condition).inc()

    def watch_engine(
        self, stats: Callable[[], EngineStats], num_restarts: Callable[[], int]
    ) -> None:
        """Export the engine's statistics, read at each scrape."""
        self.registry.register(EngineCollector(stats, num_restarts))

    def watch_build(self, version: str, model: str, fingerprint: Callable[[], str]) -> None:
        """Export the versions of the server, Python and torch, and the base model."""
        self.registry.register(BuildCollector(version, model, fingerprint))

    def watch_processes(self, engine_pid: Callable[[], int | None]) -> None:
        """Export memory, CPU time and open files of this process, and of the engine's."""
        ProcessCollector(registry=self.registry)
        ProcessCollector(
            namespace="foreword_engine",
            pid=lambda: engine_pid() or "none",  # no such folder: nothing is exported
            registry=self.registry,
        )

    def watch_quarantine(self, count: Callable[[], int]) -> None:
        """Export the number of blobs in quarantine, read at each scrape."""
        gauge = Gauge(
            "foreword_quarantined_blobs",
            "Blobs whose stored bytes are corrupt; their versions are not served.",
            registry=self.registry,
        )
        gauge.set_function(count)

    def watch_storage(
        self, outages: Callable[[], Collection[str]], age_s: Callable[[], float]
    ) -> None:
        """Export outages of the store and the registry's age, read at each scrape."""
        away = Gauge(
            "foreword_storage_away",
            "1 while the registry, or the blobs, are unreachable.",
            ["part"],
            registry=self.registry,
        )
        for part in ("registry", "blobs"):
            away.labels(part).set_function(partial(_is_in, part, outages))
        age = Gauge(
            "foreword_registry_age_seconds",
            "Seconds since a shared registry was last read; 0 if it is read for every request.",
            registry=self.registry,
        )
        age.set_function(age_s)

    def render(self) -> bytes:
        """Render all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _start_at_zero(self) -> None:
        """Start counters whose labels are known at 0: one that appears with 1 has no rate."""
        self._start_task("")
        for code in ("overloaded", "draining"):
            self._requests.labels("", code)
        self._uploads.labels("created")
        for denied in AccessDenied.__subclasses__():
            self._denied.labels(denied.code)
        for condition in get_args(Condition):
            self._rollbacks.labels(condition)

    def _start_task(self, task: str) -> None:
        for outcome in _OUTCOMES:
            self._requests.labels(task, outcome)
        self._prompt_tokens.labels(task)
        self._completion_tokens.labels(task)

    def _end_task(self, task: str) -> None:
        for counter in (self._requests, self._prompt_tokens, self._completion_tokens):
            counter.remove_by_labels({"task": task})

    def _label(self, task: str | None, *, urgent: bool = False) -> str:
        """Return a task's label, whose series exist then."""
        if not task:
            return ""
        is_new = task not in self.tasks
        if not self.tasks.use(task, urgent=urgent):
            return OTHER
        if is_new:
            self._start_task(task)
        return task

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"foreword_{name}", text, labels, registry=self.registry)

    def _seconds(self, name: str, text: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        return Histogram(f"foreword_{name}_seconds", text, buckets=buckets, registry=self.registry)


def _is_in(name: str, names: Callable[[], Collection[str]]) -> float:
    return name in names()
