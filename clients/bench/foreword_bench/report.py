"""Results with their context, and their output."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

_WIDE = 200
"""Columns of output to a pipe: no table is folded."""


def result(kind: str, figures: dict[str, Any], **context: Any) -> dict[str, Any]:
    """Combine figures with what they were measured on."""
    return {"kind": kind, "machine": machine()} | context | {"result": figures}


def emit(
    result: dict[str, Any],
    show: Callable[[dict[str, Any]], None],
    *,
    as_json: bool,
    output: Path | None,
) -> None:
    """Print a result as a table, or as JSON alone, and write it to `output` if there is one."""
    keep(result, output)
    if as_json:
        sys.stdout.write(_json(result))
    else:
        show(result)


def keep(result: dict[str, Any], output: Path | None) -> None:
    """Write a result, or the part measured so far, to `output` if there is one."""
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(_json(result), "utf-8")


def _json(result: dict[str, Any]) -> str:
    return json.dumps(result, indent=1) + "\n"


def note(text: str) -> None:
    """Print a remark on standard error."""
    Console(stderr=True, highlight=False).print(text, style="dim", soft_wrap=True, markup=False)


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False)


def machine() -> dict[str, Any]:
    """Describe this machine, and the time."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
