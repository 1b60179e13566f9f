"""The servers of a comparison, started when one is first needed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from foreword_bench import servers
from foreword_bench.errors import BenchError
from foreword_bench.servers import Server


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The user's choice of servers."""

    model: Path | None = None
    """None for the server's default model."""
    folder: Path | None = None
    """Folder for logs and prefix stores. None for a temporary one."""
    foreword_url: str | None = None
    """A running server. None to start one."""
    peer_url: str | None = None
    vllm: Path | None = None
    """vLLM's virtual environment."""
    serve_flags: Sequence[str] = ()
    vllm_flags: Sequence[str] = ()
    vllm_env: Mapping[str, str] = field(default_factory=dict)
    roofline: bool = True
    """Whether to measure the machine's limits first."""

    @property
    def has_peer(self) -> bool:
        return self.peer_url is not None or self.vllm is not None


@dataclass(slots=True)
class Peers:
    """The running servers, which end with `stack`."""

    choice: Choice
    model: Path
    folder: Path
    stack: ExitStack
    running: dict[str, Server] = field(default_factory=dict)

    def foreword(self) -> Server:
        if self.choice.foreword_url:
            return Server("foreword", self.choice.foreword_url)
        return self._start("foreword", lambda: self._foreword("foreword", ()))

    def peer(self) -> Server:
        """Start or return the peer. Raises `BenchError` if none was chosen."""
        choice = self.choice
        if choice.peer_url is not None:
            return Server("peer", choice.peer_url)
        if choice.vllm is None:
            raise BenchError("there is no peer: pass one with --vllm or --peer-url")
        log, venv = self.folder / "vllm.log", choice.vllm
        flags, env = choice.vllm_flags, choice.vllm_env
        return self._start("vllm", lambda: servers.vllm(venv, self.model, log, flags, env))

    @contextmanager
    def with_budget(self, num_bytes: int) -> Iterator[Server]:
        """Start another Foreword server whose device cache holds `num_bytes` of prefixes."""
        name = "foreword-budget"
        with self._foreword(name, ("--device-prefix-bytes", str(num_bytes))) as server:
            self.running[name] = server
            yield server
            del self.running[name]

    @contextmanager
    def peer_stopped(self, server: Server | None) -> Iterator[None]:
        """Pause vLLM while another server is measured: idle, it uses up to a fifth of a core.

        Foreword is not paused: idle, it uses almost none, and it would take a long pause for a hung
        engine.
        """
        peer = self.running.get("vllm")
        if peer is None or peer is server:
            yield
            return
        peer.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            peer.signal(signal.SIGCONT)

    def others_cpu_s(self, server: Server | None) -> float:
        """Return the CPU time so far of the servers that should be idle, in seconds."""
        return sum(other.cpu_s() for other in self.running.values() if other is not server)

    def _foreword(self, name: str, flags: Sequence[str]) -> AbstractContextManager[Server]:
        flags = [*self.choice.serve_flags, *flags]
        store, log = self.folder / f"{name}-store", self.folder / f"{name}.log"
        return servers.foreword(self.model, store, log, flags, name=name)

    def _start(self, name: str, start: Callable[[], AbstractContextManager[Server]]) -> Server:
        if name not in self.running:
            self.running[name] = self.stack.enter_context(start())
        return self.running[name]


@contextmanager
def peers_of(choice: Choice) -> Iterator[Peers]:
    """Servers that are gone when the block ends, by a signal too."""
    model = (choice.model or _default_model()).resolve()
    with ExitStack() as stack:
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        stack.callback(signal.signal, signal.SIGTERM, before)
        folder = choice.folder
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="foreword-bench-")))
        yield Peers(choice, model, folder, stack)


def _default_model() -> Path:
    command = [sys.executable, "-m", "server.default_model"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchError("Foreword's server is not installed here; pass a model with --model DIR")
    return Path(done.stdout.strip())
