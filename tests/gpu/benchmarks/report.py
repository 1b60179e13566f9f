"""The report file, which is valid JSON at any time, and the processes that produce it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

ROOT = Path(__file__).parents[3]
CUT = "cut short"


class Report:
    """Results by part. A part has an `error` until it is complete."""

    def __init__(self, path: Path, machine: dict[str, Any]) -> None:
        self._path = path
        self._parts: dict[str, dict[str, Any]] = {"machine": machine}
        self._write()

    @property
    def has_error(self) -> bool:
        return any("error" in part for part in self._parts.values())

    def begin(self, name: str) -> None:
        self._parts[name] = {"error": CUT}
        self._write()

    def add(self, name: str, results: dict[str, Any]) -> None:
        """Add results to a part, and write the file."""
        self._parts[name] |= results
        self._write()

    def end(self, name: str, error: str | None, results: dict[str, Any]) -> None:
        del self._parts[name]["error"]
        self.add(name, results if error is None else results | {"error": error})

    def _write(self) -> None:
        """Write to a temporary file, then rename it: a kill leaves the previous file."""
        new = self._path.with_name(f"{self._path.name}.new")
        new.write_text(json.dumps(self._parts, indent=1) + "\n")
        new.replace(self._path)


@dataclass(frozen=True, slots=True)
class Ended:
    """The result of a process that has ended."""

    exit_code: int
    log: str
    """Standard error."""
    seconds: float


def call(command: list[str], on_line: Callable[[str], None], *, timeout_s: float) -> Ended:
    """Run a command; pass each line of its output to `on_line` and to standard error.

    The command is killed after `timeout_s`, or if this process ends.
    """
    say(f"$ {' '.join(command)}")
    began_s = time.monotonic()
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, process_group=0,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        ) as process,
    ):  # fmt: skip
        timer = Timer(timeout_s, _kill, [process])
        timer.start()
        try:
            assert process.stdout is not None
            for line in map(str.rstrip, process.stdout):
                on_line(line)
                say(line)
            process.wait()
        finally:
            timer.cancel()
            _kill(process)
        seconds = round(time.monotonic() - began_s, 1)
        log.seek(0)
        log_text = log.read()
    if process.returncode < 0:
        log_text += f"ended by signal {-process.returncode} after {seconds} s\n"
    return Ended(process.returncode, log_text, seconds)


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def end_on_sigterm() -> None:
    """Let SIGTERM raise SystemExit, so that started processes are ended, as on Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a process and its children. Idempotent."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
