"""Start, readiness and stop of the servers of a comparison, each on a free port."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from foreword_bench.errors import BenchError

_START_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. Without a process group it was not started here."""

    name: str
    url: str
    group: int | None = None

    def signal(self, number: int) -> None:
        """Send a signal to all its processes, if it was started here."""
        if self.group is not None:
            os.killpg(self.group, number)

    def cpu_s(self) -> float:
        """Return the CPU time of all its processes so far, in seconds."""
        if self.group is None:
            return 0.0
        ticks = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # ended meanwhile
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[2]) == self.group:
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def foreword(
    model: Path, store: Path, log: Path, flags: Sequence[str] = (), *, name: str = "foreword"
) -> Iterator[Server]:
    """Run `foreword serve` of this environment."""
    command = [sys.executable, "-m", "server", "--model", str(model), "--store", str(store)]
    command += ["--log-level", "warning", *flags]
    with _started(name, command, {}, log) as server:
        yield server


@contextlib.contextmanager
def vllm(
    venv: Path,
    model: Path,
    log: Path,
    flags: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run `vllm serve` of another environment, with the settings recommended for its CPU build. Its
    prefix cache is on by default; 4 GiB hold every prefix of the table several times."""
    program = venv / "bin" / "vllm"
    if not program.exists():
        raise BenchError(f"{program} does not exist: --vllm takes vLLM's virtual environment")
    command = [str(program), "serve", str(model)]
    command += ["--max-model-len", "4096", "--dtype", "bfloat16", *flags]
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_NO_USAGE_STATS": "1",
        "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    with _started("vllm", command, environment | dict(env or {}), log) as server:
        yield server


@contextlib.contextmanager
def _started(
    name: str, command: list[str], environment: Mapping[str, str], log: Path
) -> Iterator[Server]:
    port = _free_port()
    # A server chooses its own number of threads, not our environment.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=output,
            stderr=output,
            env=inherited | dict(environment),
            start_new_session=True,
        )
    server = Server(name, f"http://127.0.0.1:{port}", process.pid)
    try:
        _wait_ready(server, process, log)
        yield server
    finally:
        _stop(process)


def _wait_ready(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing"]
            raise BenchError(f"{server.name} exited before it was ready; {log}: {last[0]}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.2)
    raise BenchError(f"{server.name} was not ready in {_START_TIMEOUT_S:g} s; see {log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM, wait, and then kill what is left of its process group."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
