from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.default_model import ensure_default_model
from server.settings import Settings
from tests.running_server import RunningServer, running_server


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real default model, fetched once."""
    return ensure_default_model(Settings(_cli_parse_args=False).cache)


@pytest.fixture(scope="module")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """SmolLM2 in float32, in which greedy tokens do not depend on the batch."""
    store = tmp_path_factory.mktemp("integration") / "store"
    with running_server(smollm2, store, "--dtype", "float32", "--num-threads", "1") as running:
        yield running
