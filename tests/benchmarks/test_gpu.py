"""The logic of the GPU benchmarks, with a tiny model on a CPU: their times mean nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from server.engine.attention.ref import RefBackend
from tests.gpu.benchmarks import __main__ as benchmarks
from tests.gpu.benchmarks import sharing
from tests.gpu.benchmarks.__main__ import BENCHMARKS
from tests.gpu.benchmarks.report import Report
from tests.gpu.benchmarks.scale import TINY
from tests.running_server import wait_gone

ROOT = Path(__file__).parents[2]
LACKING = (
    "msgspec",
    "pydantic",
    "fastapi",
    "structlog",
    "sqlalchemy",
    "uvicorn",
    "prometheus_client",
)
"""Packages that a machine for GPU work need not have."""


@pytest.mark.parametrize("name", sorted({*BENCHMARKS} - {"attention"}))
def test_a_benchmark_returns_numbers(name: str) -> None:
    result = dict(import_module(f"tests.gpu.benchmarks.{name}").run(TINY))

    assert result
    assert json.loads(json.dumps(result)) == result


def test_a_step_reads_prefixes_once_per_task_or_once_per_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The two variants differ in the shared segments of a step."""
    num_shared = []
    plan = RefBackend.plan
    monkeypatch.setattr(
        RefBackend,
        "plan",
        lambda self, step: (num_shared.append(len(step.segments_beside_own())), plan(self, step)),
    )
    dict(sharing.run(TINY))

    assert {TINY.num_tasks, max(TINY.batch_sizes)} <= set(num_shared)


def test_benchmarks_import_only_what_a_bare_machine_has() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(sys.argv[1].split()))\n"
        "from importlib import import_module\n"
        "for name in sys.argv[2].split(): import_module(name)\n"
    )
    names = [
        f"tests.gpu.benchmarks.{name}" for name in ("__main__", *BENCHMARKS) if name != "attention"
    ]
    names += ["tests.tiny_models"]
    command = [sys.executable, "-c", code, " ".join(LACKING), " ".join(names)]

    subprocess.run(command, cwd=ROOT, check=True, timeout=100)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_a_missing_device_is_reported_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.benchmarks"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


# --- the report: results are written as they arrive, however the run ends ---

FAKE = """
import json, sys, time
print(json.dumps({"first": {"step_ms": 1.5}}), flush=True)
print("a library has something to say")
print("and something to warn of", file=sys.stderr)
time.sleep(float(sys.argv[1]))
print(json.dumps({"second": 2}))
sys.exit(int(sys.argv[2]))
"""
RUN = """
import os, sys
from pathlib import Path
from tests.gpu.benchmarks.__main__ import measure
from tests.gpu.benchmarks.report import Report, end_on_sigterm
end_on_sigterm()
report = Report(Path(sys.argv[1]), {})
measure("decode", [sys.executable, "-c", *sys.argv[2:]], report)
"""


def fake(takes_s: float = 0.0, exit_code: int = 0) -> list[str]:
    return [sys.executable, "-c", FAKE, str(takes_s), str(exit_code)]


def parts_of(path: Path) -> dict[str, Any]:
    parts: dict[str, Any] = json.loads(path.read_text())
    return parts


def test_results_are_reported_and_shown_as_they_arrive(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = Report(tmp_path / "out.json", {"device": "none"})

    benchmarks.measure("decode", fake(takes_s=0.2), report)

    parts = parts_of(tmp_path / "out.json")
    assert parts["machine"] == {"device": "none"}
    assert parts["decode"].pop("seconds") > 0
    assert parts["decode"] == {
        "first": {"step_ms": 1.5}, "second": 2, "log": "and something to warn of\n",
    }  # fmt: skip
    assert not report.has_error
    assert '{"first": {"step_ms": 1.5}}' in capfd.readouterr().err


def test_a_failing_benchmark_keeps_its_results(tmp_path: Path) -> None:
    report = Report(tmp_path / "out.json", {})

    benchmarks.measure("decode", fake(exit_code=3), report)

    part = parts_of(tmp_path / "out.json")["decode"]
    assert part["first"] == {"step_ms": 1.5}
    assert "warn of" in part["error"]
    assert report.has_error


def test_a_benchmark_that_times_out_keeps_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks, "TIMEOUT_S", 3.0)
    report = Report(tmp_path / "out.json", {})

    benchmarks.measure("decode", fake(takes_s=60), report)

    part = parts_of(tmp_path / "out.json")["decode"]
    assert part["first"] == {"step_ms": 1.5}
    assert "ended by signal 9" in part["error"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_keeps_its_results(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, "-c", RUN, str(out), f"import os; print(os.getpid())\n{FAKE}"]
    with subprocess.Popen([*command, "20", "0"], cwd=ROOT, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"$ ")
        pid = next(int(line) for line in process.stderr if line.strip().isdigit())
        assert any(b"first" in line for line in process.stderr)
        process.stderr.close()

        process.send_signal(number)

        process.wait(60)
    wait_gone(pid, timeout_s=30)  # at once, except after SIGKILL
    assert parts_of(out)["decode"] == {"error": "cut short", "first": {"step_ms": 1.5}}


def test_checks_are_counted_as_they_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_some.py").write_text(
        "def test_right(): pass\ndef test_wrong(): assert 1 == 2, 'sorry'\n"
    )
    monkeypatch.setattr(benchmarks, "CHECKS", (str(tmp_path / "test_some.py"),))
    report = Report(tmp_path / "out.json", {})

    benchmarks.check(report)

    part = parts_of(tmp_path / "out.json")["checks"]
    assert part["counts"] == {"passed": 1, "failed": 1}
    assert [name.rpartition("::")[2] for name in part["failed"]] == ["test_wrong"]
    assert "1 failed, 1 passed" in part["summary"]
    assert "sorry" in part["error"]


def test_neither_git_nor_a_checkout_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks, "ROOT", tmp_path)
    assert benchmarks.commit() is None

    monkeypatch.setenv("PATH", str(tmp_path))
    assert benchmarks.commit() is None
