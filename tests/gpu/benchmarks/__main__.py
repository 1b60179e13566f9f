"""Run all checks and benchmarks that need a CUDA device, and write one JSON file.

    make bench-gpu                          checks and benchmarks, into bench-gpu.json
    make bench-gpu ARGS="decode sharing"    these benchmarks, no checks

Each runs in a process of its own, so that none inherits memory or a failed device from another. The
file is rewritten after each result: an interrupted run keeps its results.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.gpu.benchmarks.report import ROOT, Report, call, end_on_sigterm

BENCHMARKS = ("decode", "sharing", "launching", "loading", "sampling", "attention")
CHECKS = (
    "tests/gpu",
    "tests/server/engine/attention/test_attention.py",
    "tests/server/engine/attention/test_triton_attention.py",
    "tests/server/engine/model/test_fuse.py",
)
"""Tests to run. Those of the kernels interpret them without CUDA, and compile them here."""
TIMEOUT_S = 600
_OUTCOME = re.compile(r"(\S*::.+) (PASSED|SKIPPED|XFAIL|XPASS|FAILED|ERROR)\b.*\[ *\d+%\]$")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-gpu")
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "bench-gpu.json")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("bench-gpu needs a CUDA device, and torch finds none.\n")
        return 2
    if args.alone:
        for name, result in import_module(f"tests.gpu.benchmarks.{args.names[0]}").run():
            sys.stdout.write(json.dumps({name: result}) + "\n")
            sys.stdout.flush()
        return 0
    end_on_sigterm()
    report = Report(args.out, machine())
    if not args.names:
        check(report)
    for name in args.names or BENCHMARKS:
        measure(name, [sys.executable, "-m", "tests.gpu.benchmarks", name, "--alone"], report)
    return int(report.has_error)


def machine() -> dict[str, Any]:
    device = torch.cuda.get_device_properties(0)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": device.name,
        "device_bytes": device.total_memory,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
    }


def commit() -> str | None:
    """Return the commit of this checkout; None outside of one, or without git."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def check(report: Report) -> None:
    """Run the tests, without the fixtures and plugins that the rest of the suite needs."""
    command = [
        sys.executable, "-m", "pytest", "-v", "--noconftest", "-p", "no:cacheprovider",
        "-c", "tests/gpu/pytest.ini", "--rootdir", ".", *CHECKS,
    ]  # fmt: skip
    lines: list[str] = []
    counts: Counter[str] = Counter()
    failed: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        if (outcome := _OUTCOME.match(line)) is not None:
            counts[outcome[2].lower()] += 1
            if outcome[2] in ("FAILED", "ERROR"):
                failed.append(outcome[1])
            report.add("checks", {"counts": counts, "failed": failed})

    report.begin("checks")
    ended = call(command, on_line, timeout_s=TIMEOUT_S)
    error = None if ended.exit_code == 0 else "\n".join([*lines[-60:], ended.log[-2000:]])
    summary = lines[-1] if lines else ""
    report.end("checks", error, {"summary": summary, "seconds": ended.seconds})


def measure(name: str, command: list[str], report: Report) -> None:
    """Run a benchmark, which writes one JSON object per line."""
    report.begin(name)
    ended = call(command, lambda line: report.add(name, _results(line)), timeout_s=TIMEOUT_S)
    log = ended.log[-4000:]
    error = log if ended.exit_code else None
    report.end(name, error, {"seconds": ended.seconds, "log": log[-2000:]})


def _results(line: str) -> dict[str, Any]:
    """Parse a line of results; other output, such as that of libraries, has none."""
    try:
        results = json.loads(line)
    except ValueError:
        return {}
    return results if isinstance(results, dict) else {}


if __name__ == "__main__":
    sys.exit(main())
