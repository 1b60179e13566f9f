"""The server around a fake engine in a process of its own: `python -m tests.corpus.fake_server`.

Everything above the engine is real, so a crash is a crash, and a log is a log.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from dataclasses import replace
from pathlib import Path

from prefix_store.blobs import FileBlobStore
from prefix_store.digest import Digest
from prefix_store.registry import Registry
from prefix_store.store import PrefixStore
from server import logs
from server.app import create_app
from server.engine.messages import Compiled
from server.http_server import HttpServer
from server.settings import Settings
from server.tokenizer import Tokenizer
from tests.server.fakes import INFO, FakeEngine, make_prefix, make_transformers_tokenizer


async def serve(settings: Settings) -> None:
    blobs, registry = settings.store / "blobs", settings.store / "registry.db"
    store = PrefixStore(FileBlobStore(blobs), Registry(f"sqlite:///{registry}"))

    def compile_to(
        token_ids: list[int] | None, embeddings: Digest | None, origin: dict[str, str]
    ) -> Compiled:
        num_tokens = len(token_ids) if token_ids is not None else 2
        prefix = make_prefix(num_tokens, num_tokens=num_tokens, fingerprint=INFO.fingerprint)
        digest, num_bytes = store.put(replace(prefix, origin=origin))
        return Compiled(0, str(digest), num_tokens, num_bytes)

    engine = FakeEngine(compile_to=compile_to, delay_s=0.002)
    tokenizer = Tokenizer(make_transformers_tokenizer())
    app = create_app(settings, store, engine, tokenizer, "tiny")  # type: ignore[arg-type]
    with socket.create_server((settings.host, settings.port)) as listener:
        async with app.router.lifespan_context(app):
            await HttpServer(app, drain_timeout_s=settings.drain_timeout_s).serve([listener])


if __name__ == "__main__":
    store, port = sys.argv[1:]
    settings = Settings(
        _cli_parse_args=False,
        store=Path(store),
        port=int(port),
        max_upload_bytes=1 << 20,
        max_body_bytes=256 << 10,
        body_timeout_s=1.0,
        drain_timeout_s=1.0,
    )
    logs.configure("info")
    asyncio.run(serve(settings))
