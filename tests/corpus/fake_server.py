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
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from prefix_store import artifact
from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.digest import Digest
from prefix_store.registry.audit import AuditLog
from prefix_store.registry.keys import KeyStore
from prefix_store.registry.registry import Registry
from prefix_store.store import PrefixStore
from server import logs
from server.api.http.http_server import DeadlineProtocol, HttpServer
from server.app import create_app
from server.engine.ipc.messages import PrefixCompiled
from server.settings import Settings
from server.text.tokenizer import Tokenizer
from tests.running_server import free_port
from tests.server.fakes import INFO, FakeEngine, make_prefix, make_transformers_tokenizer


@dataclass(frozen=True)
class FakeServer:
    port: int
    process: subprocess.Popen[bytes]
    log: Path

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
    folder: Path, *, head_timeout_s: float = 10.0, max_connections: int = 2048
) -> Iterator[FakeServer]:
    """Ready to serve when the block begins; must still live when it ends."""
    port = free_port()
    flags = [f"--port={port}", f"--head-timeout-s={head_timeout_s}"]
    flags += [f"--max-connections={max_connections}", f"--store={folder}"]
    log = folder / "server.log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "tests.corpus.fake_server", *flags]
        process = subprocess.Popen(command, stdout=out, stderr=out)
    server = FakeServer(port, process, log)
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


async def _serve(settings: Settings) -> None:
    registry = Registry(f"sqlite:///{settings.store / 'registry.db'}")
    blobs = FileBlobStore(settings.store / "blobs")
    store = PrefixStore(blobs, registry)

    def compile_to(
        token_ids: list[int] | None, embeddings: Digest | None, origin: dict[str, str]
    ) -> PrefixCompiled:
        num_tokens = len(token_ids) if token_ids is not None else 2
        prefix = make_prefix(num_tokens, num_tokens=num_tokens, fingerprint=INFO.fingerprint)
        made = replace(prefix, origin=origin)
        is_new = not blobs.exists(Digest.of(artifact.dump(made)))
        digest, num_bytes = store.put(made)
        return PrefixCompiled(0, str(digest), num_tokens, num_bytes, is_new)

    engine = FakeEngine(compile_to=compile_to, delay_s=0.002)
    tokenizer = Tokenizer(make_transformers_tokenizer())
    keys, audit = KeyStore(registry.database, b"pepper" * 8), AuditLog(registry.database)
    app = create_app(settings, store, keys, audit, engine, tokenizer, "tiny")  # type: ignore[arg-type]
    with socket.create_server((settings.host, settings.port)) as listener:
        async with app.router.lifespan_context(app):
            await HttpServer(app, drain_timeout_s=settings.drain_timeout_s).serve([listener])


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--head-timeout-s", type=float)
    parser.add_argument("--max-connections", type=int)
    given = parser.parse_args()
    DeadlineProtocol.HEAD_TIMEOUT_S = given.head_timeout_s
    settings = Settings(
        _cli_parse_args=False,
        store=given.store,
        port=given.port,
        max_connections=given.max_connections,
        max_upload_bytes=1 << 20,
        max_body_bytes=64 << 10,
        body_timeout_s=2.0,
        drain_timeout_s=1.0,
    )
    logs.configure("info")
    asyncio.run(_serve(settings))


if __name__ == "__main__":
    _main()
