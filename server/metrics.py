"""Every metric of the server. All names start with `foreword_`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.completion import Completion
from server.engine.messages import EngineStats

OTHER = "other"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """A registry of its own, so that two apps in one process do not meet.

    The base model's task label is empty. At most `max_task_labels` tasks get a label of their own.
    """

    def __init__(self, *, max_task_labels: int) -> None:
        self._max_task_labels = max_task_labels
        self._tasks: set[str] = set()
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "foreword_requests",
            "Requests by how they ended: stop, length, cancelled, or an error's code.",
            ["task", "outcome"],
            registry=self.registry,
        )
        self._prompt_tokens = self._tokens("prompt", "Prompt tokens without the prefix.")
        self._completion_tokens = self._tokens("completion", "Tokens generated.")
        self._queue = self._seconds("queue", "From a request's arrival to its submission.")
        self._first_token = self._seconds("time_to_first_token", "From arrival to the first token.")
        self._duration = self._seconds("request_duration", "From arrival to the last token.")
        self._uploads = Counter(
            "foreword_uploads",
            "Uploads by outcome: created, or an error's code.",
            ["outcome"],
            registry=self.registry,
        )
        self._denied = Counter(
            "foreword_access_denied",
            "Requests refused for their key or the lack of one, by the error's code.",
            ["code"],
            registry=self.registry,
        )

    def completed(self, completion: Completion) -> None:
        """Count a request that was admitted and has ended."""
        task = self._label(completion.target.task)
        self._requests.labels(task, completion.outcome).inc()
        self._prompt_tokens.labels(task).inc(completion.num_prompt_tokens)
        self._completion_tokens.labels(task).inc(completion.num_completion_tokens)
        self._queue.observe(completion.queue_s)
        self._duration.observe(completion.total_s)
        if completion.time_to_first_token_s is not None:
            self._first_token.observe(completion.time_to_first_token_s)

    def refused(self, code: str) -> None:
        """Count a request that was not admitted; its task need not exist, so it has no label."""
        self._requests.labels("", code).inc()

    def uploaded(self, outcome: str) -> None:
        """Count an upload."""
        self._uploads.labels(outcome).inc()

    def denied(self, code: str) -> None:
        """Count a request that was refused for its key."""
        self._denied.labels(code).inc()

    def watch_engine(
        self, stats: Callable[[], EngineStats], num_restarts: Callable[[], int]
    ) -> None:
        """Read the engine's own figures whenever the metrics are asked for."""
        self.registry.register(_EngineCollector(stats, num_restarts))

    def watch_quarantine(self, count: Callable[[], int]) -> None:
        """Count the blobs in quarantine whenever the metrics are asked for."""
        gauge = Gauge(
            "foreword_quarantined_blobs",
            "Blobs whose bytes have changed on disk; their versions are not served.",
            registry=self.registry,
        )
        gauge.set_function(count)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    def _label(self, task: str | None) -> str:
        if not task or task in self._tasks:
            return task or ""
        if len(self._tasks) >= self._max_task_labels:
            return OTHER
        self._tasks.add(task)
        return task

    def _tokens(self, kind: str, text: str) -> Counter:
        return Counter(f"foreword_{kind}_tokens", text, ["task"], registry=self.registry)

    def _seconds(self, name: str, text: str) -> Histogram:
        name = f"foreword_{name}_seconds"
        return Histogram(name, text, buckets=_SECONDS, registry=self.registry)


class _EngineCollector(Collector):
    def __init__(self, stats: Callable[[], EngineStats], num_restarts: Callable[[], int]) -> None:
        self._stats = stats
        self._num_restarts = num_restarts

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, text, value in (
            ("waiting_requests", "Requests that wait in the engine.", stats.num_waiting),
            ("running_requests", "Sequences in the batch.", stats.num_running),
            ("prefixes_loading", "Prefixes on their way from disk.", stats.num_loading),
            ("batch_size", "Sequences in the last step.", stats.last_batch_size),
            ("kv_pages_used", "Pages of the KV pool in use.", stats.kv_pages_used),
            ("kv_pages_kept", "Free pages that hold prompts.", stats.kv_pages_kept),
            ("kv_pages", "Pages of the KV pool.", stats.kv_pages_total),
            ("prefix_device_bytes", "Prefixes on the device.", stats.prefix_device_bytes),
            ("prefix_host_bytes", "Prefixes in host memory.", stats.prefix_host_bytes),
            ("prefixes_on_device", "Prefixes on the device.", len(stats.prefixes_on_device)),
            ("prefixes_on_host", "Prefixes in host memory.", len(stats.prefixes_on_host)),
        ):
            yield GaugeMetricFamily(f"foreword_engine_{name}", text, value=value)
        for name, text, total in (
            ("steps", "Steps.", stats.num_steps),
            ("step_seconds", "Time spent in steps.", stats.step_time_s),
            ("prefill_tokens", "Prompt tokens computed.", stats.num_prefill_tokens),
            ("reused_tokens", "Prompt tokens found computed.", stats.num_reused_tokens),
            ("decode_tokens", "Tokens generated.", stats.num_decode_tokens),
            ("preemptions", "Sequences sent back to wait.", stats.num_preemptions),
            ("prefix_loads", "Prefixes brought to the device.", stats.prefix_loads),
            ("prefix_evictions", "Prefixes taken off the device.", stats.prefix_evictions),
            ("restarts", "Engine processes replaced.", self._num_restarts()),
        ):
            yield CounterMetricFamily(f"foreword_engine_{name}", text, value=total)
