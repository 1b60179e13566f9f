"""The app around a fake engine and a tokenizer made on the spot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from prefix_store.registry.audit import AuditLog
from prefix_store.registry.keys import KeyStore
from prefix_store.registry.registry import Registry
from prefix_store.store import PrefixStore
from server.api.http.deps import Services
from server.app import create_app
from server.settings import Settings
from server.text.tokenizer import Tokenizer
from tests.server.fakes import FakeEngine, make_transformers_tokenizer
from tests.server.live import LiveServer, serve
from tests.server.stores import Stored, compile_into, open_store


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
def stored(tmp_path: Path) -> Iterator[Stored]:
    with open_store(tmp_path) as stored:
        yield stored


@pytest.fixture
def store(stored: Stored) -> PrefixStore:
    return stored.store


@pytest.fixture
def registry(store: PrefixStore) -> Registry:
    return store.registry


@pytest.fixture
def keys(stored: Stored) -> KeyStore:
    return stored.keys


@pytest.fixture
def audit(stored: Stored) -> AuditLog:
    return stored.audit


@pytest.fixture
def engine(store: PrefixStore, tmp_path: Path) -> FakeEngine:
    return FakeEngine(compile_to=compile_into(store, tmp_path))


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
