from __future__ import annotations

import httpx
import pytest

from server.api.http.deps import Services
from server.engine.ipc.messages import EngineStats
from tests.server.fakes import FakeEngine, push


async def test_liveness_asks_the_engines_loop(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    alive = await http.get("/livez")
    engine.heartbeat_age_s = 61.0
    hung = await http.get("/livez")

    assert (alive.status_code, alive.json()["status"]) == (200, "ok")
    assert (hung.status_code, hung.json()["status"]) == (503, "unavailable")


@pytest.mark.parametrize("path", ["/readyz", "/health"])
async def test_readiness_says_why_not(
    http: httpx.AsyncClient, engine: FakeEngine, services: Services, path: str
) -> None:
    ready = await http.get(path)
    engine.is_dead = True
    starting = await http.get(path)
    services.router.drain()
    draining = await http.get(path)

    assert ready.status_code == 200
    assert (starting.status_code, len(starting.json()["reasons"])) == (503, 1)
    assert (draining.status_code, len(draining.json()["reasons"])) == (503, 2)


async def test_a_full_queue_does_not_touch_health(
    http: httpx.AsyncClient, engine: FakeEngine, services: Services
) -> None:
    services.router._admission.count_not_submitted(10_000)

    assert (await http.get("/livez")).status_code == 200
    assert (await http.get("/readyz")).status_code == 200
    assert (await http.post("/generate", json={"prompt": "hi"})).status_code == 429


async def test_info_says_what_a_prefix_must_fit(http: httpx.AsyncClient) -> None:
    info = (await http.get("/info")).json()

    assert (info["model"], info["num_layers"], info["head_dim"]) == ("tiny", 2, 4)
    assert info["fingerprint"] == "sha256:" + "f" * 64
    assert info["limits"]["max_model_len"] == 256
    assert info["limits"]["max_upload_bytes"] == 1 << 20


async def test_metrics_count_requests_tokens_and_the_engine(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await push(http, "x")
    await http.post("/generate?task=x", json={"prompt": "hi", "max_tokens": 5})
    await http.post("/generate?task=nope", json={"prompt": "hi"})
    engine.stats = EngineStats(num_steps=7, kv_pages_used=2)

    text = (await http.get("/metrics")).text

    for line in (
        'foreword_requests_total{outcome="length",task="x"} 1.0',
        'foreword_requests_total{outcome="unknown_task",task=""} 1.0',
        'foreword_prompt_tokens_total{task="x"} 2.0',
        'foreword_completion_tokens_total{task="x"} 5.0',
        "foreword_time_to_first_token_seconds_count 1.0",
        "foreword_request_duration_seconds_count 1.0",
        'foreword_uploads_total{outcome="created"} 1.0',
        "foreword_engine_steps_total 7.0",
        "foreword_engine_kv_pages_used 2.0",
        "foreword_engine_restarts_total 0.0",
    ):
        assert f"{line}\n" in text


async def test_every_name_of_a_metric_is_ours_or_of_processes(http: httpx.AsyncClient) -> None:
    text = (await http.get("/metrics")).text

    assert all(line.startswith(("#", "foreword_", "process_")) for line in text.splitlines())


async def test_tasks_beyond_the_limit_share_a_label(
    http: httpx.AsyncClient, services: Services
) -> None:
    services.metrics.tasks.capacity = 1
    for name in ("a", "b", "c"):
        await push(http, name)
        await http.post(f"/generate?task={name}", json={"prompt": "hi"})

    text = (await http.get("/metrics")).text

    assert 'foreword_requests_total{outcome="length",task="a"} 1.0' in text
    assert 'foreword_requests_total{outcome="length",task="other"} 2.0' in text


async def test_the_documentation_describes_every_route(http: httpx.AsyncClient) -> None:
    schema = (await http.get("/openapi.json")).json()

    assert (await http.get("/docs")).status_code == 200
    upload = schema["paths"]["/tasks/{task}/prefix"]["put"]["requestBody"]["content"]
    assert {"application/vnd.safetensors", "application/x-tar", "application/json"} <= set(upload)
    answers = schema["paths"]["/generate"]["post"]["responses"]["200"]["content"]
    assert {"application/json", "text/event-stream"} <= set(answers)
    for path in schema["paths"].values():
        assert all(operation["description"] for operation in path.values())
