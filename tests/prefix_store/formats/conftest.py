from __future__ import annotations

import pytest

from tests.prefix_store.tiny_llama import EMBEDDINGS, KEYS_AND_VALUES, Trained, train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    kinds = KEYS_AND_VALUES | EMBEDDINGS
    return {kind: train(kinds[kind](), tmp_path_factory.mktemp(kind)) for kind in kinds}
