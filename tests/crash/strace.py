"""One operation of the product under strace: killed, or refused something, at its N-th call."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HOME = Path(__file__).parents[2]


@dataclass(frozen=True)
class Call:
    """The n-th system call of a name. strace counts each name for itself."""

    name: str
    number: int

    def inject(self, what: str, *, and_after: bool = False) -> list[str]:
        """strace's options for this to happen there."""
        when = f"{self.number}{'+' * and_after}"
        trace = f"trace={self.name}"
        return ["-o", "/dev/null", "-e", trace, "-e", f"inject={self.name}:{what}:when={when}"]


def calls_of(log: Path) -> list[Call]:
    """The system calls in strace's log."""
    numbers: Counter[str] = Counter()
    calls = []
    for name in re.findall(r"^(\w+)\(", log.read_text(), re.M):
        numbers[name] += 1
        calls.append(Call(name, numbers[name]))
    return calls


@dataclass(frozen=True)
class Outcome:
    exit_status: int
    words: list[str]
    """What was written down: `done` for each step, `refused <code>`, `leaked <error>`."""

    @property
    def num_done(self) -> int:
        return self.words.count("done")


class Actor:
    """The process of `actor.py`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def act(self, operation: str, folder: Path, *strace: str, mutant: str | None = None) -> Outcome:
        """Do an operation in a folder, with these options of strace."""
        acks = folder.with_suffix(".acks")
        request = {"operation": operation, "folder": str(folder), "acks": str(acks)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request | {"mutant": mutant}) + "\n")
        self._process.stdin.flush()
        pid = self._read()
        command = ["strace", "-p", str(pid), *strace]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr is not None
            said = tracer.stderr.readline()
            assert said.endswith("attached\n"), said
            os.kill(pid, signal.SIGCONT)
            exit_status = self._read()
            tracer.communicate(timeout=30)
        return Outcome(exit_status, acks.read_text().splitlines())

    def _read(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@contextmanager
def an_actor() -> Iterator[Actor]:
    command = [sys.executable, "-m", "tests.crash.actor"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=HOME, text=True, **pipes) as process:
        yield Actor(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0
