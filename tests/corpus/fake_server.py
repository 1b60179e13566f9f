"""The server around a fake engine in a process of its own: `python -m tests.corpus.fake_server`.

Everything above the engine is real, so a crash is a crash, and a log is a log.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec

from server import logs
from server.api.http.http_server import DeadlineProtocol, HttpServer
from server.app import create_app
from server.cli.start import freeze_garbage
from server.engine.ipc.messages import EngineInfo
from server.generation import grammar_process
from server.settings import Settings
from server.text.tokenizer import Tokenizer
from tests.corpus.probe import Probe
from tests.running_server import free_port
from tests.server.fakes import INFO, FakeEngine, make_transformers_tokenizer
from tests.server.stores import compile_into, open_store


@dataclass(frozen=True)
class FakeServer:
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    probe_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def tracebacks(self) -> list[str]:
        """Log lines of what nobody expected: a bug, even if the client saw a 4xx."""
        lines = self.log.read_text().splitlines()
        return [line for line in lines if "Traceback" in line or '"level": "error"' in line]


@contextlib.contextmanager
def fake_server(
    folder: Path,
    *,
    head_timeout_s: float = 10.0,
    max_connections: int = 2048,
    is_large: bool = False,
) -> Iterator[FakeServer]:
    """Ready to serve when the block begins; must still live when it ends.

    `is_large`: with the default limits of bodies and a context of 8192 tokens.
    """
    port, probe_port = free_port(), free_port()
    flags = [f"--port={port}", f"--probe-port={probe_port}", f"--head-timeout-s={head_timeout_s}"]
    flags += ["--large"] if is_large else []
    flags += [f"--max-connections={max_connections}", f"--store={folder}"]
    log = folder / "server.log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "tests.corpus.fake_server", *flags]
        process = subprocess.Popen(command, stdout=out, stderr=out)
    server = FakeServer(port, process, log, probe_port)
    try:
        _wait_ready(server)
        yield server
        assert process.poll() is None, f"the server ended: {log.read_text()[-2000:]}"
    finally:
        process.terminate()
        process.wait(20)


def _wait_ready(server: FakeServer) -> None:
    for _ in range(600):
        assert server.process.poll() is None, server.log.read_text()
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/readyz").status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError("the server was not ready in time")


async def _serve(settings: Settings, info: EngineInfo, probe_port: int) -> None:
    tokenizer = Tokenizer(make_transformers_tokenizer())
    with (
        open_store(settings.store) as stored,
        socket.create_server((settings.host, settings.port)) as listener,
    ):
        compile_to = compile_into(stored.store, settings.store)
        engine = FakeEngine(info, compile_to=compile_to, delay_s=0.002)
        app = create_app(settings, *stored, engine, tokenizer, "tiny")
        probe = Probe(lambda: engine.num_in_flight)
        probe.install(probe_port)
        app.add_middleware(probe.around)
        ticking = asyncio.create_task(probe.tick())
        async with app.router.lifespan_context(app):
            freeze_garbage()
            await HttpServer(app, drain_timeout_s=settings.drain_timeout_s).serve([listener])
        ticking.cancel()


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--head-timeout-s", type=float)
    parser.add_argument("--max-connections", type=int)
    parser.add_argument("--probe-port", type=int)
    parser.add_argument("--large", action="store_true")
    given = parser.parse_args()
    DeadlineProtocol.HEAD_TIMEOUT_S = given.head_timeout_s
    grammar_process.MAX_COMPILE_S = 0.5
    small = {"max_upload_bytes": 1 << 20, "max_body_bytes": 64 << 10}
    settings = Settings(
        _cli_parse_args=False,
        store=given.store,
        port=given.port,
        max_connections=given.max_connections,
        body_timeout_s=2.0,
        drain_timeout_s=1.0,
        **({} if given.large else small),
    )
    logs.configure("info")
    info = msgspec.structs.replace(INFO, max_model_len=8192) if given.large else INFO
    asyncio.run(_serve(settings, info, given.probe_port))


if __name__ == "__main__":
    _main()
