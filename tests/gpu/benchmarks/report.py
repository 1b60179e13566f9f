"""What is known so far, in a file that is whole at any time, and the processes it comes from."""

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
    """Parts by name. A part has an `error` until it is complete."""

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
        """What came of a part since; it is written at once."""
        self._parts[name] |= results
        self._write()

    def end(self, name: str, error: str | None, results: dict[str, Any]) -> None:
        del self._parts[name]["error"]
        self.add(name, results if error is None else results | {"error": error})

    def _write(self) -> None:
        """Under another name first: who is killed here leaves the file as it was."""
        new = self._path.with_name(f"{self._path.name}.new")
        new.write_text(json.dumps(self._parts, indent=1) + "\n")
        new.replace(self._path)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process did."""

    exit_code: int
    log: str
    """Its standard error."""
    seconds: float


def call(command: list[str], took: Callable[[str], None], *, timeout_s: float) -> Ended:
    """Run a command: `took` is given every line of its output as it comes, and so is whoever
    watches. It ends with this process, and after `timeout_s`."""
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
                took(line)
                say(line)
            process.wait()
        finally:
            timer.cancel()
            _kill(process)
        seconds = round(time.monotonic() - began_s, 1)
        log.seek(0)
        said = log.read()
    if process.returncode < 0:
        said += f"ended by signal {-process.returncode} after {seconds} s\n"
    return Ended(process.returncode, said, seconds)


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def end_on_sigterm() -> None:
    """Not at once, but as on Ctrl-C: what was started is ended first."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _kill(process: subprocess.Popen[str]) -> None:
    """It, and what it has started. Idempotent."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
