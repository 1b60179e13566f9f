"""The load generator on a real server: it counts what it asked for, and refuses to flatter."""

from __future__ import annotations

import pytest

from foreword_bench import load, statistics, target
from foreword_bench.errors import BenchError
from foreword_bench.workload import Workload
from tests.running_server import RunningServer

pytestmark = pytest.mark.smollm2


@pytest.mark.parametrize("api", ["openai", "native"])
async def test_a_closed_loop_over_random_tasks_is_measured(
    demo_server: RunningServer, api: target.Api
) -> None:
    where = target.find(demo_server.url, num_tasks=2, num_prefix_tokens=8, api=api)
    workload = Workload(concurrency=2, num_requests=4, prompt_lengths=(5,), num_new_tokens=3)

    run = await load.run(where, workload)

    assert where.models == ("bench-8-0", "bench-8-1")
    assert [answer.version for answer in run.answers] == [1] * 4
    measured = statistics.summary(run)
    assert measured["errors"] == {}
    assert measured["completion_tokens"] == 12
    assert measured["prompt_tokens"] == 20
    assert 0 < measured["ttft_ms"]["p50"] <= measured["ttft_ms"]["p99"]


async def test_an_unknown_model_is_no_measurement(demo_server: RunningServer) -> None:
    where = target.find(demo_server.url, models=["nobody"])

    with pytest.raises(BenchError, match="404"):
        await load.run(where, Workload(num_requests=1))
