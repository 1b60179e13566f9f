from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.tuner.tiny_base import save_base
from tests.running_server import RunningServer, running_server


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("tuner") / "llama")


@pytest.fixture(scope="package")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("served") / "base", bos=True)


@pytest.fixture(scope="package")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    store = tmp_path_factory.mktemp("store") / "store"
    flags = ("--dtype", "float32", "--num-threads", "1")
    with running_server(base, store, *flags) as running:
        yield running
