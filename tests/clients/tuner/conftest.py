from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.tuner.tiny_base import save_base


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("tuner") / "llama")
