from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.default_model import ensure_default_model
from server.settings import Settings
from tests.running_server import RunningServer, running_server
from tests.small_model import save_small_model


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real default model, fetched once."""
    return ensure_default_model(Settings(_cli_parse_args=False).cache)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For what does not depend on what the model says."""
    return save_small_model(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="module")
def small_server(
    small_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    store = tmp_path_factory.mktemp("integration") / "store"
    flags = ("--dtype", "float32", "--num-threads", "1", "--kv-cache-bytes", str(256 << 20))
    with running_server(small_model, store, *flags) as running:
        yield running


@pytest.fixture(scope="module")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """SmolLM2 in float32, in which greedy tokens do not depend on the batch."""
    store = tmp_path_factory.mktemp("integration") / "store"
    with running_server(smollm2, store, "--dtype", "float32", "--num-threads", "1") as running:
        yield running
