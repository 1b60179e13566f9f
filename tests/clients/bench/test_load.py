"""Load on a real socket: it is what was asked for, and what fails is counted."""

from __future__ import annotations

import itertools
import json
import socket
import threading
from pathlib import Path

import pytest

from foreword_bench import load, statistics, target
from foreword_bench.__main__ import main
from foreword_bench.errors import BenchError
from foreword_bench.load import Run
from foreword_bench.rows import ROWS, Row
from foreword_bench.stream import Answer
from foreword_bench.workload import Workload
from tests.clients.bench.small_server import BASE, GAP_S, SmallServer


def test_percentiles_lie_between_neighbours() -> None:
    found = statistics.percentiles_ms([i / 1000 for i in range(1, 102)])

    assert found == {"p50": 51.0, "p90": 91.0, "p99": 100.0}
    assert statistics.percentiles_ms([]) == {"p50": None, "p90": None, "p99": None}


def test_throughput_counts_whole_answers_from_the_first_request_to_the_last_token() -> None:
    good = [
        Answer("m", due_s=1.0, sent_s=1.0, token_s=(2.0, 4.0), num_tokens=3),
        Answer("m", due_s=2.0, sent_s=2.5, token_s=(3.0, 5.0), num_tokens=5),
    ]
    failed = Answer("m", due_s=0.0, sent_s=0.0, token_s=(9.0,), num_tokens=100, error="HTTP 500")

    figures = statistics.summary(Run([*good, failed], client_cpu_s=0.008))

    assert figures["out_tok_s"] == 2.0  # 8 tokens in 4 s
    assert figures["errors"] == {"HTTP 500": 1}
    assert figures["requests"] == 3
    assert figures["ttft_ms"]["p50"] == 1000.0
    assert figures["tpot_ms"]["p50"] == 750.0  # of 1000 and 500
    assert figures["client_cpu_us_per_token"] == 1000.0


def test_arrivals_are_poisson_at_the_rate_asked_for() -> None:
    workload = Workload(num_requests=20_000, rate=50.0)

    arrivals = workload.arrivals_s()

    gaps = [b - a for a, b in itertools.pairwise([0.0, *arrivals])]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.03)
    assert variance**0.5 == pytest.approx(mean, rel=0.05)  # as only exponential gaps have
    assert arrivals == Workload(num_requests=20_000, rate=50.0).arrivals_s()


def test_prompts_differ_and_have_the_lengths_asked_for() -> None:
    workload = Workload(num_requests=300, prompt_lengths=(16, 64, 256))

    prompts = [workload.prompt(i) for i in range(300)]

    assert {len(prompt) for prompt in prompts} == {16, 64, 256}
    assert len({tuple(prompt[:16]) for prompt in prompts}) == 300
    assert prompts[0] != Workload(num_requests=1, prompt_lengths=(16, 64, 256), seed=1).prompt(0)


def test_rows_are_whole_waves_and_named_apart() -> None:
    assert len({row.title for row in ROWS}) == len(ROWS)
    with pytest.raises(AssertionError):
        Row(8, 0, 0, requests=20, goal=1.0)


@pytest.mark.parametrize("api", ["openai", "native"])
async def test_a_closed_loop_keeps_its_concurrency_over_all_tasks(
    small: SmallServer, api: target.Api
) -> None:
    where = target.find(small.url, num_tasks=3, num_prefix_tokens=4, api=api)
    workload = Workload(num_requests=12, concurrency=4, prompt_lengths=(5,), num_new_tokens=6)

    run = await load.run(where, workload)

    assert [answer.error for answer in run.answers] == [None] * 12
    assert [answer.model for answer in run.answers] == [f"bench-4-{i % 3}" for i in range(12)]
    assert all(answer.version == 1 and len(answer.token_s) == 6 for answer in run.answers)
    assert most_at_once(run.answers) == 4
    measured = small.bodies[-12:]
    assert len({tuple(body["prompt"]) for body in small.bodies}) == len(small.bodies)
    assert {len(body["prompt"]) for body in measured} == {5}
    assert all(body["ignore_eos"] and body["temperature"] == 0 for body in measured)
    assert all(answer.total_s >= 6 * GAP_S for answer in run.answers)


def most_at_once(answers: list[Answer]) -> int:
    return max(
        sum(other.sent_s <= answer.sent_s < other.token_s[-1] for other in answers)
        for answer in answers
    )


async def test_an_open_loop_sends_what_is_due_however_many_run(small: SmallServer) -> None:
    workload = Workload(num_requests=30, rate=300.0, num_new_tokens=40)

    run = await load.run(target.find(small.url), workload)

    due = [answer.due_s for answer in run.answers]
    assert [b - a for a, b in itertools.pairwise(due)] == pytest.approx(
        [b - a for a, b in itertools.pairwise(workload.arrivals_s())], abs=1e-6
    )
    assert most_at_once(run.answers) > 5
    assert all(answer.sent_s >= answer.due_s for answer in run.answers)


async def test_another_server_gets_its_prefixes_as_text(small: SmallServer) -> None:
    small.is_foreword = False
    where = target.find(small.url, num_tasks=2, num_prefix_tokens=7)

    await load.run(where, Workload(num_requests=4, prompt_lengths=(5,), num_new_tokens=2))

    assert small.swaps == {}
    prompts = [body["prompt"] for body in small.bodies[-4:]]
    assert [len(prompt) for prompt in prompts] == [12] * 4
    assert prompts[0][:7] == prompts[2][:7] != prompts[1][:7]


async def test_failures_are_counted_by_what_was_said(small: SmallServer) -> None:
    where = target.find(small.url)
    workload = Workload(num_requests=12, concurrency=1, num_new_tokens=3)
    await load.run(where, workload)  # nothing fails yet
    small.bodies.clear()
    small.refuse_every, small.cut_short_every = 5, 7

    figures = statistics.summary(await load.run(where, workload))

    assert figures["errors"] == {"HTTP 429: overloaded": 2, "2 tokens instead of 3": 1}
    assert figures["requests"] == 12
    assert figures["completion_tokens"] == 27


async def test_a_server_that_stops_is_an_error_not_a_crash() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        where = target.Target(url=url, base=BASE, models=(BASE,))
        hang_up = threading.Thread(target=lambda: listener.accept()[0].close())
        hang_up.start()

        with pytest.raises(BenchError, match=f"warming up {BASE}: the connection was lost"):
            await load.run(where, Workload(num_requests=1))
        hang_up.join(5)


def test_an_unreachable_address_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["load", "http://127.0.0.1:9"])

    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: http://127.0.0.1:9: ")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["load", "--hlep"], "error: No such option: --hlep; did you mean --help?\n"),
        (["load", "x", "--prompt-tokens", "0"], "error: '0' is not a list of numbers such as"),
        (["load", "x", "--model", "a", "--tasks", "2"], "error: give --model or --tasks, not both"),
    ],
)
def test_a_mistake_in_the_command_line_is_one_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)

    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(said)
    assert error.count("\n") == 1


def test_the_command_writes_json_and_ends_with_one_if_anything_failed(
    small: SmallServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--concurrency", "2", "--requests", "6", "--new-tokens", "4"]
    out = tmp_path / "result.json"
    with pytest.raises(SystemExit) as ended:
        main(["load", small.url, *options, "--output", str(out)])
    assert ended.value.code == 0
    result = json.loads(out.read_text())
    assert result["result"]["completion_tokens"] == 24
    assert "time to first token" in capsys.readouterr().out

    small.bodies.clear()
    small.refuse_every = 6
    with pytest.raises(SystemExit) as ended:
        main(["load", small.url, *options, "--json"])
    assert ended.value.code == 1
    assert json.loads(capsys.readouterr().out)["result"]["errors"] == {"HTTP 429: overloaded": 1}
