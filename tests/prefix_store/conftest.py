from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.prefix import BaseModelSpec, Prefix
from prefix_store.registry.registry import Registry
from prefix_store.store import PrefixStore
from tests.postgres import Postgres, running_postgres
from tests.sqlite import new_sqlite


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty registry, SQLite and PostgreSQL in turn."""
    if request.param == "sqlite":
        return new_sqlite(tmp_path)
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def registry(database_url: str) -> Iterator[Registry]:
    registry = Registry(database_url)
    yield registry
    registry.close()


@pytest.fixture
def base() -> BaseModelSpec:
    return BaseModelSpec(
        name="tiny",
        fingerprint="sha256:" + "ab" * 32,
        num_layers=2,
        num_kv_heads=2,
        head_dim=4,
        hidden_size=24,
        dtype="float32",
    )


@pytest.fixture
def prefix(base: BaseModelSpec) -> Prefix:
    generator = torch.Generator().manual_seed(0)
    kv = torch.randn((2, base.num_layers, base.num_kv_heads, 3, base.head_dim), generator=generator)
    return Prefix(
        keys=tuple(kv[0]),
        values=tuple(kv[1]),
        position_offset=3,
        fingerprint=base.fingerprint,
        origin={"source_format": "text", "tool": "foreword"},
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def blobs(root: Path) -> FileBlobStore:
    return FileBlobStore(root)


@pytest.fixture
def store(root: Path, blobs: FileBlobStore) -> Iterator[PrefixStore]:
    registry = Registry(new_sqlite(root))
    yield PrefixStore(blobs, registry)
    registry.close()
