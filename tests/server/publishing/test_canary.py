"""Splits that end by their own rule: when, when not, and what is seen of it afterwards."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from prefix_store.registry.registry import Registry
from server import maintenance
from server.api.http.deps import Services
from server.errors import StepFailed
from server.publishing.canary import GOLDEN_EVERY_S, SplitGuard
from server.telemetry.recent import RecentRequests
from tests.server.fakes import FakeEngine, push
from tests.server.test_metrics import ended

RULE = {"error_rate_above": 0.1, "min_requests": 10}


@dataclass
class Split:
    """Task x: version 2 is active and shares its traffic with version 1, the canary."""

    http: httpx.AsyncClient
    services: Services
    now_s: float = 1000.0
    guards: list[SplitGuard] = field(default_factory=list)

    def start_server(self) -> SplitGuard:
        """A guard as a server has after its start: it has seen nothing yet."""
        recent = RecentRequests(clock=lambda: self.now_s)
        self.services.metrics.recent = recent
        services = self.services
        parts = (services.store, services.uploads, services.rechecks, services.metrics)
        self.guards.append(SplitGuard(*parts, clock=lambda: self.now_s))
        return self.guards[-1]

    async def put(self, rule: dict[str, Any] | None, status: int = 200) -> httpx.Response:
        body = {"weights": {"2": 90, "1": 10}, "rollback_if": rule}
        answer = await self.http.put("/tasks/x/traffic", json=body)
        assert answer.status_code == status, answer.text
        return answer

    def serve(self, version: int, count: int = 20, *, num_failed: int = 0, **took: float) -> None:
        self.now_s += 15
        for number in range(count):
            error = StepFailed("no") if number < num_failed else None
            self.services.metrics.completed(ended("x", version, error=error, **took))

    async def check(self, after_s: float = 60.0) -> dict[str, Any]:
        """Let time pass and judge; what GET answers then."""
        self.now_s += after_s
        await self.guards[-1].check()
        return await self.report()

    async def report(self) -> dict[str, Any]:
        return dict((await self.http.get("/tasks/x/traffic")).json())


@pytest.fixture
async def split(http: httpx.AsyncClient, services: Services) -> Split:
    for seed in (1, 2):
        await push(http, "x", seed)
    made = Split(http, services)
    made.start_server()
    return made


async def test_a_canary_that_fails_loses_its_traffic(
    split: Split, caplog: pytest.LogCaptureFixture
) -> None:
    put = (await split.put(RULE)).json()
    assert put["rollback_if"]["error_rate_above"] == 0.1
    assert (await split.check())["rollback_if"] == put["rollback_if"]
    split.serve(1, num_failed=5)
    with caplog.at_level(logging.WARNING):
        report = await split.check()

    reason = "v1: 5 of 20 requests failed, 25 %, more than 10 %"
    assert (report["weights"], report["rollback_if"]) == (None, None)
    assert (report["active_version"], report["rollback_reason"]) == (2, reason)
    newest, before = (await split.http.get("/tasks/x/versions")).json()["history"][:2]
    assert (newest["action"], newest["version"], newest["reason"]) == ("rollback", 2, reason)
    assert (newest["by"], newest["weights"]) == (None, None)
    assert before["rollback_if"] == put["rollback_if"]
    entry = (await split.services.store.audit_entries(0, 100))[-1]
    assert (entry.action, entry.task, entry.version) == ("rollback_error_rate", "x", 2)
    [record] = [record for record in caplog.records if getattr(record, "reason", "") == reason]
    assert record.levelno == logging.WARNING
    text = split.services.metrics.render().decode()
    assert 'foreword_automatic_rollbacks_total{condition="error_rate"} 1.0' in text
    answers = [await split.http.post("/generate?task=x", json={"prompt": "a"}) for _ in range(20)]
    assert {answer.json()["version"] for answer in answers} == {2}


@pytest.mark.parametrize(
    ("rule", "took", "condition", "said"),
    [
        ({"total_p95_ms_above": 2000}, {"total_s": 3.0}, "total_p95", "last token"),
        (
            {"first_token_p95_ms_above": 500},
            {"time_to_first_token_s": 0.7},
            "first_token_p95",
            "first token",
        ),
    ],
)
async def test_a_canary_that_is_slow_loses_its_traffic(
    split: Split, rule: dict[str, Any], took: dict[str, float], condition: str, said: str
) -> None:
    await split.put(rule)
    await split.check()
    split.serve(1, 60)
    assert (await split.check())["weights"] is not None
    split.serve(1, 60, **took)
    report = await split.check()

    assert report["weights"] is None
    assert said in report["rollback_reason"]
    entry = (await split.services.store.audit_entries(0, 100))[-1]
    assert entry.action == f"rollback_{condition}"


async def test_golden_prompts_are_run_again(split: Split, engine: FakeEngine) -> None:
    golden = [{"prompt": "hi", "expect": [7]}]
    engine.script = lambda prefix, prompt: [7]
    await split.http.patch("/tasks/x", json={"golden": golden})
    await split.put({"golden_fails": True})
    assert (await split.check())["weights"] is not None

    engine.script = lambda prefix, prompt: [8]
    assert (await split.check(60))["weights"] is not None  # it is not time yet
    engine.is_dead = True
    assert (await split.check(GOLDEN_EVERY_S))["weights"] is not None  # no answer, no evidence
    engine.is_dead = False
    report = await split.check(GOLDEN_EVERY_S)
    assert report["weights"] is None
    assert "v1: prompt 1 of the profile" in report["rollback_reason"]


@pytest.mark.parametrize(
    ("rule", "version", "count", "num_failed"),
    [
        (None, 1, 20, 20),  # no rule
        (RULE, 2, 20, 20),  # the active version fails, not the canary
        (RULE, 1, 9, 9),  # too few requests
        (RULE, 1, 20, 2),  # not above the limit
        ({"total_p95_ms_above": 2000}, 1, 60, 60),  # another condition
    ],
)
async def test_a_split_goes_on_without_a_reason(
    split: Split, rule: dict[str, Any] | None, version: int, count: int, num_failed: int
) -> None:
    await split.put(rule)
    await split.check()
    split.serve(version, count, num_failed=num_failed)

    report = await split.check()
    assert (report["weights"], report["rollback_reason"]) == ({"1": 10, "2": 90}, None)


async def test_failures_before_the_split_do_not_count(split: Split) -> None:
    split.serve(1, num_failed=20)
    await split.put(RULE)
    assert (await split.check(15))["weights"] is not None
    assert (await split.check())["weights"] is not None

    split.serve(1, num_failed=20)
    assert (await split.check())["weights"] is None


async def test_a_rule_survives_a_restart(split: Split, registry: Registry) -> None:
    await split.put(RULE)
    [stored] = registry.guarded_splits()
    assert (stored.task, stored.activation.weights) == ("x", {1: 10, 2: 90})
    split.start_server()
    await split.check()
    split.serve(1, num_failed=20)

    assert (await split.check())["weights"] is None
    assert registry.guarded_splits() == []


async def test_of_two_servers_the_first_ends_the_split(split: Split) -> None:
    await split.put(RULE)
    first, second = split.guards[0], split.start_server()
    split.guards[0] = first
    for guard in (first, second):
        await guard.check()
    [guarded] = await split.services.store.guarded_splits()
    split.now_s += 60
    split.serve(1, num_failed=20)
    split.now_s += 60
    breaches = [await guard._judge(guarded) for guard in (first, second)]
    for guard, breach in zip((first, second), breaches, strict=True):
        assert breach is not None
        await guard._end(guarded, breach)

    history = (await split.http.get("/tasks/x/versions")).json()["history"]
    assert [made["action"] for made in history] == ["rollback", "traffic", "activate", "activate"]
    text = split.services.metrics.render().decode()
    assert 'foreword_automatic_rollbacks_total{condition="error_rate"} 1.0' in text


@pytest.mark.parametrize("rule", [None, RULE])
async def test_a_new_split_is_judged_by_its_own_rule(
    split: Split, rule: dict[str, Any] | None
) -> None:
    await split.put(RULE)
    await split.check()
    split.serve(1, num_failed=20)
    await split.put(rule)

    assert (await split.check())["weights"] is not None


async def test_splits_are_judged_while_the_server_runs(
    split: Split, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await split.put(RULE)
    monkeypatch.setattr(maintenance, "_INTERVALS_S", {maintenance._check_splits: 0.01})
    services.split_guard._clock = split.guards[0]._clock
    running = maintenance.start(services)
    try:
        async with asyncio.timeout(20):
            while (await split.report())["weights"] is not None:
                split.serve(1, num_failed=20)
                await asyncio.sleep(0.02)
    finally:
        for job in running:
            job.cancel()

    assert (await split.report())["rollback_reason"] is not None
