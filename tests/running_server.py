"""A real server in a process of its own, as `foreword serve` starts it, on a port of its own."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass(frozen=True)
class RunningServer:
    url: str
    process: subprocess.Popen[bytes]
    store: Path

    def engine_pid(self) -> int:
        """The engine is the server's only child process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        [pid] = [int(pid) for pid in children.split() if _is_engine(int(pid))]
        return pid

    def wait_ready(self, timeout_s: float = 300.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            assert self.process.poll() is None, "the server ended"
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            time.sleep(0.1)
        raise AssertionError("the server was not ready in time")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)


@contextlib.contextmanager
def running_server(model: Path | str, store: Path, *flags: str) -> Iterator[RunningServer]:
    """Ready to serve when the block begins, gone when it ends."""
    with starting_server(model, store, *flags) as server:
        server.wait_ready()
        yield server


@contextlib.contextmanager
def starting_server(
    model: Path | str,
    store: Path,
    *flags: str,
    env: Mapping[str, str] | None = None,
    port: int | None = None,
) -> Iterator[RunningServer]:
    """Started when the block begins, gone when it ends. `env`: beside the test's own."""
    port = port or free_port()
    log = (store.parent / f"{store.name}.log").open("ab")
    command = [sys.executable, "-m", "server", "--model", str(model), "--store", str(store)]
    process = subprocess.Popen(
        [*command, "--port", str(port), *flags],
        stdout=log,
        stderr=log,
        env=_environment() | dict(env or {}),
    )
    server = RunningServer(f"http://127.0.0.1:{port}", process, store)
    try:
        yield server
    finally:
        server.stop()
        log.close()


class SharedServers:
    """Lends one real server to the tests of several files, and starts another when others are
    asked for or it has ended. One at a time runs, for the memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running = contextlib.ExitStack()
        self._server: RunningServer | None = None
        self._command: tuple[str, ...] = ()
        self._num_started = 0

    def get(self, model: Path | str, *flags: str) -> RunningServer:
        """Return a server with this model and these flags, until the next call."""
        command = (str(model), *flags)
        ended = self._server is None or self._server.process.poll() is not None
        if ended or self._command != command:
            self.close()
            self._num_started += 1
            store = self._folder / f"store-{self._num_started}"
            self._server = self._running.enter_context(running_server(model, store, *flags))
            self._command = command
        assert self._server is not None
        return self._server

    def close(self) -> None:
        self._running.close()
        self._server = None


def wait_gone(*pids: int, timeout_s: float = 20.0) -> None:
    """Until these processes, children or not, have ended. Those that do not are killed."""
    deadline_s = time.monotonic() + timeout_s
    while (left := [pid for pid in pids if _runs(pid)]) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, f"{left} still ran after {timeout_s:.0f} s"


def _runs(pid: int) -> bool:
    """Not if only its parent has yet to ask how it ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _environment() -> dict[str, str]:
    """Without the thread settings of the tests: the server chooses its own."""
    return {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}


def free_port() -> int:
    """A port that nobody listens on. Not one of those that the system lends to clients: a
    connection made elsewhere meanwhile could take it before the server does."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


def _is_engine(pid: int) -> bool:
    return b"\0server.engine\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
