"""Memory, threads and files of a process, as the kernel counts them."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class Usage:
    """Memory in bytes."""

    resident: int
    peak: int
    """The most resident memory since `forget_peak`."""
    num_threads: int
    num_files: int


def usage(pid: int) -> Usage:
    status = Path(f"/proc/{pid}/status").read_text()

    def number(name: str) -> int:
        found = re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)
        assert found is not None
        return int(found[1])

    num_files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Usage(number("VmRSS") << 10, number("VmHWM") << 10, number("Threads"), num_files)


def forget_peak(pid: int) -> None:
    """Let the peak begin again at what is resident now, where the kernel allows it."""
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")
