"""A tiny model on disk, and clients whose engine processes load it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from transformers import PreTrainedModel

from prefix_store.blobs.blobs import FileBlobStore
from server.engine.ipc.client import EngineClient
from server.engine.ipc.messages import EngineConfig
from tests.tiny_models import build_model


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    made = build_model("llama", "eager")
    made.config.max_position_embeddings = 20_000  # room for requests that run for many seconds
    return made


@pytest.fixture(scope="module")
def model_dir(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def blobs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blobs")


@pytest.fixture(scope="module")
def blobs(blobs_dir: Path) -> FileBlobStore:
    return FileBlobStore(blobs_dir)


@pytest.fixture(scope="module")
def make_client(model_dir: Path, blobs_dir: Path) -> Callable[..., EngineClient]:
    def make(hang_timeout_s: float = 60.0, **config: object) -> EngineClient:
        defaults: dict[str, object] = {
            "model": str(model_dir), "blobs": str(blobs_dir), "dtype": "float32", "num_threads": 1,
            "max_num_seqs": 8, "kv_cache_bytes": 128 << 20,
        }  # fmt: skip
        settings = EngineConfig(**(defaults | config))
        return EngineClient(settings, start_timeout_s=180, hang_timeout_s=hang_timeout_s)

    return make


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(
    make_client: Callable[..., EngineClient], blobs: FileBlobStore
) -> AsyncIterator[EngineClient]:
    made = make_client()
    await made.start()
    yield made
    await made.stop(drain_timeout_s=1)
