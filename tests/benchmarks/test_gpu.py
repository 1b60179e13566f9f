"""The GPU benchmarks' own logic, on a CPU and a tiny model: what they measure means nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from server.engine.attention.ref import RefBackend
from tests.gpu.benchmarks import sharing
from tests.gpu.benchmarks.__main__ import BENCHMARKS
from tests.gpu.benchmarks.scale import TINY

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
"""What a machine for GPU work need not have."""


@pytest.mark.parametrize("name", sorted({*BENCHMARKS} - {"attention"}))
def test_a_benchmark_runs_and_gives_numbers(name: str) -> None:
    result = import_module(f"tests.gpu.benchmarks.{name}").run(TINY)

    assert result
    assert json.loads(json.dumps(result)) == result


def test_a_step_reads_the_prefix_once_a_task_or_once_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is compared is really different: groups of a step."""
    num_groups = []
    plan = RefBackend.plan
    monkeypatch.setattr(
        RefBackend,
        "plan",
        lambda self, step: (num_groups.append(len(step.groups)), plan(self, step)),
    )
    sharing.run(TINY)

    assert {TINY.num_tasks, max(TINY.batch_sizes)} <= set(num_groups)


def test_everything_that_it_imports_is_on_a_bare_machine() -> None:
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
def test_without_a_device_it_says_so_in_one_line() -> None:
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
