"""Servers side by side: taking turns, counted honestly, started and gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foreword_bench import compare, servers
from foreword_bench.__main__ import main
from foreword_bench.errors import BenchError
from foreword_bench.peers import Choice, peers_of
from foreword_bench.rows import Row
from tests.clients.bench.small_server import SmallServer

ROW = Row(2, 2, 4, requests=4, goal=0.01, prompt_tokens=5, new_tokens=4)
FAKE_VLLM = """#!/usr/bin/env python3
import http.server, os, subprocess, sys
wanted = os.environ["VLLM_CPU_KVCACHE_SPACE"] == "4" and "BOTH_CORES" in os.environ
if not wanted or "--block-size" not in sys.argv:
    sys.exit("started as it should not be")
child = subprocess.Popen(["sleep", "600"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
print("child", child.pid, flush=True)
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def run(small: SmallServer, rows: list[Row], num_rounds: int, **choice: Any) -> dict[str, Any]:
    chosen = Choice(model=Path(), foreword_url=small.url, roofline=False, **choice)
    with peers_of(chosen) as peers:
        *_, result = compare.run(peers, rows, num_rounds=num_rounds)
    return result


def test_the_two_sides_take_turns_and_every_prompt_is_new(small: SmallServer) -> None:
    result = run(small, [ROW], 3, peer_url=small.url)

    [row] = result["rows"]
    assert len(row["ratios"]) == 3
    assert row["ratio"] == sorted(row["ratios"])[1]
    assert row["is_met"]
    assert row["median"]["ours"]["errors"] == 0
    # Both sides are one server here, and get the same prompts. None comes back in another round.
    measured = [tuple(b["prompt"]) for b in small.bodies if len(b["prompt"]) == 5]
    rounds = [{*measured[i : i + 12]} for i in range(0, 36, 12)]
    assert len(measured) == 36  # 3 rounds of 2 sides, each 2 requests to warm up and 4 that count
    assert [len(prompts) for prompts in rounds] == [6, 6, 6]
    assert len(set.union(*rounds)) == 18


def test_a_row_with_errors_meets_no_goal(small: SmallServer) -> None:
    small.refuse_every = 6  # the last of the four measured ones, after two to warm up

    [row] = run(small, [ROW], 1, peer_url=small.url)["rows"]

    assert row["median"]["ours"]["errors"] == 1
    assert row["ratio"] > ROW.goal
    assert not row["is_met"]


def test_rows_without_a_peer_are_left_out_and_named(small: SmallServer) -> None:
    many = Row(2, 4, 4, requests=4, goal=0.01, against="one task", prompt_tokens=5, new_tokens=4)
    budget = Row(2, 4, 4, 4, 0.7, "one task", resident=0.25)

    result = run(small, [ROW, many, budget], 1)

    assert [row["title"] for row in result["rows"]] == ["2, 4x4 / one task"]
    assert [left["title"] for left in result["left_out"]] == [ROW.title, budget.title]
    assert "--vllm" in result["left_out"][0]["reason"]
    assert {body["model"] for body in small.bodies} == {f"bench-4-{i}" for i in range(4)}


@pytest.fixture
def fake_vllm(tmp_path: Path) -> Path:
    program = tmp_path / "venv" / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    program.write_text(FAKE_VLLM)
    program.chmod(0o755)
    return program.parents[1]


def is_gone(pid: int) -> bool:
    """Whether it has ended. A zombie has, too."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def wait_until(what: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_a_server_is_gone_with_all_its_processes(fake_vllm: Path, tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"

    flags, env = ["--block-size", "32"], {"BOTH_CORES": "1"}
    with servers.vllm(fake_vllm, tmp_path, log, flags, env) as server:
        assert server.cpu_s() >= 0.01
        child = int(log.read_text().split()[1])
        assert not is_gone(child)

    wait_until(lambda: is_gone(child))


def test_an_ended_comparison_leaves_no_server_running(
    small: SmallServer, fake_vllm: Path, tmp_path: Path
) -> None:
    log = tmp_path / "vllm.log"
    command = [sys.executable, "-m", "foreword_bench", "compare", "--no-roofline"]
    command += ["--model", str(tmp_path), "--foreword-url", small.url, "--folder", str(tmp_path)]
    command += ["--vllm", str(fake_vllm), "--vllm-flags", "--block-size 32", "--row", "1, none"]
    command += ["--vllm-env", "BOTH_CORES=1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: log.exists() and "child" in log.read_text())
    process.terminate()

    assert process.wait(20) != 0
    wait_until(lambda: is_gone(int(log.read_text().split()[1])))


def test_a_server_that_does_not_start_says_why(fake_vllm: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(BenchError, match="started as it should not be"),
        servers.vllm(fake_vllm, tmp_path, tmp_path / "log"),
    ):
        pass
    with (
        pytest.raises(BenchError, match="does not exist"),
        servers.vllm(tmp_path, tmp_path, tmp_path / "log"),
    ):
        pass


def test_results_are_plotted(
    small: SmallServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foreword_bench.cli.compare.ROWS", (ROW,))
    options = ["--model", str(tmp_path), "--no-roofline", "--foreword-url", small.url]
    options += ["--peer-url", small.url]
    sweep = ["--waves", "1", "--new-tokens", "4", "--prefix-tokens", "4"]
    results = [tmp_path / f"{name}.json" for name in ("compare", "concurrency", "tasks")]

    for command in (
        ["compare", *options, "--rounds", "1", "--output", str(results[0])],
        ["sweep", "concurrency", "--values", "1,2", *sweep, *options, "--output", str(results[1])],
        ["sweep", "tasks", "--values", "1,3", *sweep, *options, "--output", str(results[2])],
        ["plot", *map(str, results), "-o", str(tmp_path / "plots")],
    ):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0

    points = json.loads(results[1].read_text())["points"]
    assert [(p["server"], p["concurrency"]) for p in points] == [
        (server, value) for value in (1, 2) for server in ("foreword", "peer")
    ]
    plots = {path.stem: path.read_bytes() for path in (tmp_path / "plots").glob("*.png")}
    assert plots.keys() == {
        "compare",
        "latency_over_concurrency",
        "step_time",
        "throughput_over_concurrency",
        "throughput_over_tasks",
    }
    assert all(png.startswith(b"\x89PNG") and len(png) > 10_000 for png in plots.values())


def test_a_load_has_no_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "load.json"
    path.write_text('{"kind": "load"}')

    with pytest.raises(SystemExit):
        main(["plot", str(path), "-o", str(tmp_path)])
    assert "nothing to plot" in capsys.readouterr().err
