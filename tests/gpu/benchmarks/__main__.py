"""Every check that needs a CUDA device, then every benchmark: one JSON file.

    make bench-gpu                          checks and benchmarks, into bench-gpu.json
    make bench-gpu ARGS="decode sharing"    these benchmarks, no checks

Each runs in a process of its own, so that none inherits memory, or a device that has failed, from
the one before. The file is written anew after each.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).parents[3]
BENCHMARKS = ("decode", "sharing", "launching", "loading", "sampling", "attention")
CHECKS = (
    "tests/gpu",
    "tests/server/engine/test_attention.py",
    "tests/server/engine/test_triton_attention.py",
    "tests/server/engine/model/test_fuse.py",
)
"""The kernels' own tests interpret them where there is no CUDA; here they are compiled."""
TIMEOUT_S = 600


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-gpu")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "bench-gpu.json")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("bench-gpu needs a CUDA device, and torch finds none here.\n")
        return 2
    if args.alone:
        sys.stdout.write(json.dumps(import_module(f"tests.gpu.benchmarks.{args.names[0]}").run()))
        return 0
    report: dict[str, Any] = {"machine": machine()}
    if not args.names:
        report["checks"] = check()
        write(report, args.out)
    for name in args.names or BENCHMARKS:
        report[name] = measure(name)
        write(report, args.out)
    return int(any("error" in part for part in report.values()))


def machine() -> dict[str, Any]:
    device = torch.cuda.get_device_properties(0)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "device": device.name,
        "device_bytes": device.total_memory,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
    }


def check() -> dict[str, Any]:
    """The tests, without the fixtures and plugins that the rest of the suite needs."""
    command = [
        sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider",
        "-c", "tests/gpu/pytest.ini", "--rootdir", ".", *CHECKS,
    ]  # fmt: skip
    done = call(command)
    lines = done["output"].splitlines()
    summary = lines[-1] if lines else ""
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    result = {"summary": summary, "failed": failed, "seconds": done["seconds"]}
    return result if done["exit_code"] == 0 else result | {"error": "\n".join(lines[-60:])}


def measure(name: str) -> dict[str, Any]:
    done = call([sys.executable, "-m", "tests.gpu.benchmarks", name, "--alone"])
    try:
        result: dict[str, Any] = json.loads(done["output"].splitlines()[-1])
    except (IndexError, ValueError):
        return {"error": (done["output"] + done["log"])[-4000:], "seconds": done["seconds"]}
    return result | {"seconds": done["seconds"], "log": done["log"][-2000:]}


def call(command: list[str]) -> dict[str, Any]:
    sys.stderr.write(f"$ {' '.join(command)}\n")
    began_s = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        code, output, log = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        code, output, log = 1, "", f"it took more than {TIMEOUT_S} s"
    seconds = round(time.monotonic() - began_s, 1)
    return {"exit_code": code, "output": output, "log": log, "seconds": seconds}


def write(report: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(report, indent=1) + "\n")
    sys.stderr.write(json.dumps(list(report.items())[-1], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
