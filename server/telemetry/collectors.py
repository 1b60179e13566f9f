"""Metrics that are read at each scrape: of the engine, and of what runs here."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from importlib import metadata

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.engine.ipc.messages import EngineStats


class EngineCollector(Collector):
    """The engine's statistics."""

    def __init__(self, stats: Callable[[], EngineStats], num_restarts: Callable[[], int]) -> None:
        self._stats = stats
        self._num_restarts = num_restarts

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, text, value in (
            ("waiting_requests", "Requests waiting in the engine.", stats.num_waiting),
            ("running_requests", "Sequences in the batch.", stats.num_running),
            ("prefixes_loading", "Prefixes being loaded from disk.", stats.num_loading),
            ("batch_size", "Sequences in the last step.", stats.last_batch_size),
            ("kv_pages_used", "Pages of the KV pool in use.", stats.kv_pages_used),
            ("kv_pages_kept", "Free pages that cache prompts.", stats.kv_pages_cached),
            ("kv_pages", "Pages of the KV pool.", stats.kv_pages_total),
            ("kv_usage_ratio", "Part of the KV pool in use, 0 to 1.", _kv_usage(stats)),
            ("prefix_device_bytes", "Bytes of prefixes on the device.", stats.prefix_device_bytes),
            ("prefix_host_bytes", "Bytes of prefixes in host memory.", stats.prefix_host_bytes),
            ("prefixes_on_device", "Prefixes on the device.", len(stats.prefixes_on_device)),
            ("prefixes_on_host", "Prefixes in host memory.", len(stats.prefixes_on_host)),
        ):
            yield GaugeMetricFamily(f"foreword_engine_{name}", text, value=value)
        for name, text, total in (
            ("steps", "Steps.", stats.num_steps),
            ("step_seconds", "Seconds spent in steps.", stats.step_time_s),
            ("prefill_tokens", "Prompt tokens computed.", stats.num_prefill_tokens),
            (
                "reused_tokens",
                "Prompt tokens served from the prompt cache.",
                stats.num_cached_tokens,
            ),
            ("decode_tokens", "Tokens generated.", stats.num_decode_tokens),
            ("preemptions", "Sequences preempted.", stats.num_preemptions),
            ("prefix_loads", "Prefixes loaded to the device.", stats.prefix_loads),
            ("prefix_evictions", "Prefixes evicted from the device.", stats.prefix_evictions),
            ("restarts", "Engine processes replaced.", self._num_restarts()),
        ):
            yield CounterMetricFamily(f"foreword_engine_{name}", text, value=total)


def _kv_usage(stats: EngineStats) -> float:
    return stats.kv_pages_used / stats.kv_pages_total if stats.kv_pages_total else 0.0


class BuildCollector(Collector):
    """One series with the value 1, whose labels say what runs here."""

    def __init__(self, version: str, model: str, fingerprint: Callable[[], str]) -> None:
        """`fingerprint` returns "" until the model is loaded."""
        self._labels = {
            "version": version,
            "python": platform.python_version(),
            "torch": metadata.version("torch"),
            "model": model,
        }
        self._fingerprint = fingerprint

    def collect(self) -> Iterator[Metric]:
        labels = self._labels | {"fingerprint": self._fingerprint()}
        text = "1, labelled with the versions and the base model of this server."
        family = GaugeMetricFamily("foreword_build_info", text, labels=list(labels))
        family.add_metric(list(labels.values()), 1)
        yield family
