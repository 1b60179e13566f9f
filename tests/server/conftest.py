"""The app around a fake engine and a tokenizer made on the spot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from prefix_store import artifact
from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.digest import Digest
from prefix_store.registry.audit import AuditLog
from prefix_store.registry.keys import KeyStore
from prefix_store.registry.registry import Registry
from prefix_store.store import PrefixStore
from server.api.http.deps import Services
from server.app import create_app
from server.engine.ipc.messages import PrefixCompiled
from server.settings import Settings
from server.text.tokenizer import Tokenizer
from tests.server.fakes import INFO, FakeEngine, make_prefix, make_transformers_tokenizer
from tests.server.live import LiveServer, serve
from tests.sqlite import new_sqlite


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(make_transformers_tokenizer())


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        _cli_parse_args=False,
        store=tmp_path,
        allowed_hosts="test",
        max_num_seqs=4,
        max_waiting=4,
        max_upload_bytes=1 << 20,
        max_body_bytes=64 << 10,
        body_timeout_s=0.3,
        write_timeout_s=0.8,
        drain_timeout_s=1.0,
    )


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(new_sqlite(tmp_path))
    yield registry
    registry.close()


@pytest.fixture
def store(tmp_path: Path, registry: Registry) -> PrefixStore:
    return PrefixStore(FileBlobStore(tmp_path / "blobs"), registry)


@pytest.fixture
def keys(registry: Registry) -> KeyStore:
    return KeyStore(registry.database, b"pepper" * 8)


@pytest.fixture
def audit(registry: Registry) -> AuditLog:
    return AuditLog(registry.database)


@pytest.fixture
def engine(store: PrefixStore, tmp_path: Path) -> FakeEngine:
    blobs = FileBlobStore(tmp_path / "blobs")

    def compile_to(
        token_ids: list[int] | None, embeddings: Digest | None, origin: dict[str, str]
    ) -> PrefixCompiled:
        num_tokens = len(token_ids) if token_ids is not None else 2
        prefix = make_prefix(num_tokens, num_tokens=num_tokens, fingerprint=INFO.fingerprint)
        made = replace(prefix, origin=origin)
        is_new = not blobs.exists(Digest.of(artifact.dump(made)))
        digest, num_bytes = store.put(made)
        return PrefixCompiled(0, str(digest), num_tokens, num_bytes, is_new)

    return FakeEngine(compile_to=compile_to)


@pytest.fixture
def app(
    settings: Settings,
    store: PrefixStore,
    keys: KeyStore,
    audit: AuditLog,
    engine: FakeEngine,
    tokenizer: Tokenizer,
) -> FastAPI:
    return create_app(settings, store, keys, audit, engine, tokenizer, "tiny")


@pytest.fixture
async def services(app: FastAPI) -> AsyncIterator[Services]:
    async with app.router.lifespan_context(app):
        yield app.state.services


@pytest.fixture
async def http(app: FastAPI, services: Services) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app without a network; whole answers only."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
def live(app: FastAPI) -> Iterator[LiveServer]:
    with serve(app) as running:
        yield running
