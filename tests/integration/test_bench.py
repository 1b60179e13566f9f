"""The load generator on a real server: it counts what it asked for, and refuses to flatter."""

from __future__ import annotations

import pytest

from foreword_bench.load import LoadError, Target, run
from foreword_bench.prefixes import upload_random
from foreword_bench.workload import Workload
from tests.running_server import RunningServer

pytestmark = [pytest.mark.smollm2, pytest.mark.timeout(300)]


async def test_a_closed_loop_over_random_tasks_is_measured(server: RunningServer) -> None:
    tasks = upload_random(server.url, num_tasks=2, num_tokens=8)
    workload = Workload(concurrency=2, num_requests=4, num_prompt_tokens=5, num_new_tokens=3)

    measured = await run(Target(server.url, tasks), workload)

    assert tasks == ["bench-0", "bench-1"]
    assert measured["out_tok_s"] > 0
    assert 0 < measured["ttft_p50_ms"] <= measured["ttft_p99_ms"]


async def test_text_prefixes_go_before_the_prompt(server: RunningServer) -> None:
    [name] = upload_random(server.url, num_tasks=1, num_tokens=8)
    target = Target(server.url, [name], num_text_prefixes=2, num_prefix_tokens=6)

    assert target.prefix(0) == target.prefix(2) != target.prefix(1)
    assert len(target.prefix(0)) == 6
    assert (await run(target, Workload(2, 2, 5, 3)))["requests"] == 2


async def test_an_unknown_model_is_no_measurement(server: RunningServer) -> None:
    with pytest.raises(LoadError, match="404"):
        await run(Target(server.url, ["nobody"]), Workload(1, 1, 5, 3))
