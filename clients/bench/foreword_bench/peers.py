"""The servers of a comparison, started when a row first needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from foreword_bench import servers
from foreword_bench.errors import BenchError
from foreword_bench.servers import Server


@dataclass(slots=True)
class Peers:
    """All of them end with `stack`."""

    model: Path
    folder: Path
    """For logs and prefix stores."""
    stack: ExitStack
    foreword_url: str | None = None
    peer_url: str | None = None
    vllm_venv: Path | None = None
    serve_flags: Sequence[str] = ()
    vllm_flags: Sequence[str] = ()
    running: dict[str, Server] = field(default_factory=dict)

    def foreword(self) -> Server:
        if self.foreword_url:
            return Server("foreword", self.foreword_url)
        return self._start(
            "foreword",
            lambda: servers.foreword(
                self.model, self.folder / "store", self.folder / "foreword.log", self.serve_flags
            ),
        )

    def peer(self) -> Server:
        if self.peer_url:
            return Server("peer", self.peer_url)
        if self.vllm_venv is None:
            raise BenchError("there is no peer: name one with --vllm or --peer-url")
        venv = self.vllm_venv
        log = self.folder / "vllm.log"
        return self._start("vllm", lambda: servers.vllm(venv, self.model, log, self.vllm_flags))

    @property
    def has_peer(self) -> bool:
        return self.peer_url is not None or self.vllm_venv is not None

    @contextmanager
    def with_budget(self, num_bytes: int) -> Iterator[Server]:
        """A further Foreword server whose device holds only so much of prefixes."""
        name = "foreword-budget"
        flags = [*self.serve_flags, "--device-prefix-bytes", str(num_bytes)]
        with servers.foreword(
            self.model, self.folder / name, self.folder / f"{name}.log", flags, name=name
        ) as server:
            self.running[name] = server
            yield server
            del self.running[name]

    def others_cpu_s(self, server: Server | None) -> float:
        """Processor time so far of the servers that should be idle."""
        return sum(other.cpu_s() for other in self.running.values() if other is not server)

    def _start(self, name: str, start: Callable[[], AbstractContextManager[Server]]) -> Server:
        if name not in self.running:
            self.running[name] = self.stack.enter_context(start())
        return self.running[name]
