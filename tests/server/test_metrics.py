"""Which series there are, when they begin and end, and how many there can be."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from prefix_store.digest import Digest
from server import maintenance
from server.api.http.deps import Services
from server.engine.ipc.messages import EngineStats
from server.errors import StepFailed
from server.generation.completion import Target
from server.metrics import Metrics
from server.telemetry.labels import IDLE_S
from tests.server.fakes import FakeEngine, push

COUNTERS = ("requests", "failures", "refusals", "completion_tokens")
HISTOGRAMS = ("time_to_first_token", "time_per_output_token", "request_duration")
OF_VERSIONS = {
    *(f"foreword_version_{name}_total" for name in COUNTERS),
    *(f"foreword_version_{name}_seconds_count" for name in HISTOGRAMS),
}


def samples(metrics: Metrics, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """The values of a series by its labels; by all of them if none are named."""
    return {
        tuple(sample.labels[label] for label in labels or sorted(sample.labels)): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if sample.name == name
    }


def of_version(metrics: Metrics, task: str, version: int) -> dict[str, float]:
    labels = (task, str(version))
    found = {name: samples(metrics, name, "task", "version") for name in OF_VERSIONS}
    return {name: values[labels] for name, values in found.items() if labels in values}


async def ask(http: httpx.AsyncClient, version: int, **body: Any) -> httpx.Response:
    path = f"/generate?task=x&version={version}"
    return await http.post(path, json={"prompt": "a", "max_tokens": 5} | body)


async def test_every_version_has_figures_of_its_own(
    http: httpx.AsyncClient, services: Services, engine: FakeEngine
) -> None:
    for seed in (1, 2):
        await push(http, "x", seed)
    for version in (1, 1, 2):
        await ask(http, version)
    engine.fail_after = (2, StepFailed("no"))
    await ask(http, 2)

    first, second = (of_version(services.metrics, "x", version) for version in (1, 2))
    assert first == {
        "foreword_version_requests_total": 2,
        "foreword_version_failures_total": 0,
        "foreword_version_refusals_total": 0,
        "foreword_version_completion_tokens_total": 10,
        "foreword_version_time_to_first_token_seconds_count": 2,
        "foreword_version_time_per_output_token_seconds_count": 2,
        "foreword_version_request_duration_seconds_count": 2,
    }
    assert second["foreword_version_requests_total"] == 2
    assert second["foreword_version_failures_total"] == 1
    assert second["foreword_version_request_duration_seconds_count"] == 2


async def test_series_of_a_version_with_traffic_begin_at_zero(
    http: httpx.AsyncClient, services: Services
) -> None:
    for seed in (1, 2, 3):
        await push(http, "x", seed)
    await maintenance.update_series(services)
    assert of_version(services.metrics, "x", 3) == dict.fromkeys(OF_VERSIONS, 0)
    assert of_version(services.metrics, "x", 1) == {}

    split = await http.put("/tasks/x/traffic", json={"weights": {"3": 9, "1": 1}})
    assert split.status_code == 200
    await maintenance.update_series(services)
    assert of_version(services.metrics, "x", 1) == dict.fromkeys(OF_VERSIONS, 0)
    assert samples(services.metrics, "foreword_requests_total", "task", "outcome")["x", "stop"] == 0


def test_counters_that_alerts_watch_begin_at_zero() -> None:
    metrics = Metrics(max_task_labels=1)

    assert samples(metrics, "foreword_access_denied_total")["too_many_attempts",] == 0
    assert samples(metrics, "foreword_requests_total", "task", "outcome")["", "overloaded"] == 0


async def test_series_of_what_was_deleted_end(http: httpx.AsyncClient, services: Services) -> None:
    for task in ("x", "y"):
        for seed in (1, 2):
            await push(http, task, seed)
            await http.post(f"/generate?task={task}", json={"prompt": "a"})
    for path in ("/tasks/x/versions/1", "/tasks/y"):
        assert (await http.delete(path)).status_code == 204
    await maintenance.update_series(services)

    assert of_version(services.metrics, "x", 1) == {}
    assert of_version(services.metrics, "x", 2)["foreword_version_requests_total"] == 1
    text = services.metrics.render().decode()
    assert 'task="x"' in text
    assert 'task="y"' not in text


async def test_a_refused_request_is_counted_for_its_task_and_version(
    http: httpx.AsyncClient, services: Services
) -> None:
    await push(http, "x")
    await ask(http, 1, prompt="a" * 300)  # longer than the context
    await ask(http, 9)

    requests = samples(services.metrics, "foreword_requests_total", "task", "outcome")
    assert requests["x", "prompt_too_long"] == 1
    assert requests["x", "unknown_version"] == 1
    assert of_version(services.metrics, "x", 1)["foreword_version_refusals_total"] == 1
    assert of_version(services.metrics, "x", 1)["foreword_version_requests_total"] == 0


async def test_a_name_that_may_not_exist_makes_no_label(
    http: httpx.AsyncClient, services: Services
) -> None:
    await push(http, "x")
    await ask(http, 1)
    services.router._admission.count_not_submitted(10_000)
    for task in ("x", "nope"):
        answer = await http.post(f"/generate?task={task}", json={"prompt": "a"})
        assert answer.json()["code"] == "overloaded"

    requests = samples(services.metrics, "foreword_requests_total", "task", "outcome")
    assert (requests["x", "overloaded"], requests["", "overloaded"]) == (1, 1)
    assert not [labels for labels in requests if labels[0] == "nope"]


# --- how many ---


@dataclass
class Ended:
    """A request that has ended."""

    target: Target
    error: Exception | None = None
    outcome: str = "stop"
    num_prompt_tokens: int = 2
    num_completion_tokens: int = 3
    queue_s: float = 0.0
    first_token_s: float = 0.1
    ended_s: float = 0.3
    time_to_first_token_s: float = 0.1
    total_s: float = 0.3


def ended(task: str, version: int = 1, **fields: Any) -> Any:
    return Ended(Target(task, version, Digest("sha256:" + "a" * 64), 3), **fields)


@dataclass
class Clock:
    now_s: float = field(default=0.0)

    def __call__(self) -> float:
        return self.now_s


def requests_of(metrics: Metrics) -> dict[tuple[str, ...], float]:
    return samples(metrics, "foreword_version_requests_total", "task", "version")


def test_many_tasks_make_few_series() -> None:
    metrics = Metrics(max_task_labels=3)
    for number in range(10_000):
        metrics.completed(ended(f"task-{number}"))
        metrics.expect(f"idle-{number}", [1])

    assert len(metrics.render().splitlines()) < 700
    found = requests_of(metrics)
    assert len(found) == 4
    assert found["other", "other"] + sum(found[f"task-{i}", "1"] for i in (0, 1)) == 10_000
    by_task = samples(metrics, "foreword_prompt_tokens_total")
    assert by_task["other",] + by_task["task-0",] + by_task["task-1",] == 20_000


def test_an_idle_version_makes_room_and_a_busy_one_does_not() -> None:
    clock = Clock()
    metrics = Metrics(max_task_labels=2, clock=clock)
    for version in (1, 2):
        metrics.completed(ended("x", version))
    clock.now_s += IDLE_S
    metrics.completed(ended("x", 2))
    metrics.completed(ended("x", 3))
    metrics.completed(ended("x", 4))

    assert requests_of(metrics) == {("x", "2"): 2, ("x", "3"): 1, ("other", "other"): 1}


def test_a_canary_gets_series_even_if_every_version_is_busy() -> None:
    metrics = Metrics(max_task_labels=2)
    for version in (1, 2):
        metrics.completed(ended("x", version))
    metrics.expect("x", [3])
    assert ("x", "3") not in requests_of(metrics)

    metrics.expect("x", [2, 3], urgent=True)
    metrics.completed(ended("x", 3))
    assert requests_of(metrics) == {("x", "2"): 1, ("x", "3"): 1}


def test_without_labels_everything_is_other() -> None:
    metrics = Metrics(max_task_labels=0)
    metrics.completed(ended("x"))
    metrics.expect("x", [1], urgent=True)

    assert requests_of(metrics) == {("other", "other"): 1}
    assert ("x",) not in samples(metrics, "foreword_prompt_tokens_total")


# --- what runs here ---


async def test_the_build_the_processes_and_the_pool_are_described(
    http: httpx.AsyncClient, services: Services, engine: FakeEngine
) -> None:
    engine.stats = EngineStats(kv_pages_used=3, kv_pages_total=12)
    metrics = services.metrics

    [build] = samples(
        metrics, "foreword_build_info", "version", "python", "torch", "model", "fingerprint"
    )
    assert build[0] == services.version
    assert build[3:] == (services.model_name, engine.info.fingerprint)
    assert all(build)
    assert samples(metrics, "foreword_engine_kv_usage_ratio") == {(): 0.25}
    engine.info_or_none = None
    [starting] = samples(metrics, "foreword_build_info", "fingerprint")
    assert starting == ("",)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux")
async def test_both_processes_are_measured(services: Services, engine: FakeEngine) -> None:
    metrics = services.metrics
    assert samples(metrics, "process_resident_memory_bytes")[()] > 1 << 20
    assert samples(metrics, "foreword_engine_process_resident_memory_bytes") == {}

    engine.pid = os.getpid()
    assert samples(metrics, "foreword_engine_process_cpu_seconds_total")[()] > 0
    assert samples(metrics, "foreword_engine_process_resident_memory_bytes")[()] > 1 << 20


def test_the_time_per_output_token_is_that_between_tokens() -> None:
    metrics = Metrics(max_task_labels=1)
    metrics.completed(ended("x", first_token_s=1.0, ended_s=1.5, num_completion_tokens=6))
    metrics.completed(ended("x", num_completion_tokens=1))

    for name in ("foreword_time_per_output_token", "foreword_version_time_per_output_token"):
        [total] = samples(metrics, f"{name}_seconds_sum").values()
        [count] = samples(metrics, f"{name}_seconds_count").values()
        assert (total, count) == (pytest.approx(0.1), 1)
