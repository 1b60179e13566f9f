"""Keys with chosen scopes, and tasks that only some of them may see."""

from __future__ import annotations

import httpx
import pytest

from prefix_store import artifact
from prefix_store.registry.keys import Grant, KeyStore
from tests.server.api.http.keyed import SCOPES, Make
from tests.server.fakes import ARTIFACT, make_prefix


@pytest.fixture
def make(keys: KeyStore) -> Make:
    """Makes a key and returns its header."""

    def make(*scopes: str, **grant: object) -> dict[str, str]:
        _, text = keys.create(Grant(name="test", scopes=scopes or SCOPES, **grant))
        return {"Authorization": f"Bearer {text}"}

    return make


@pytest.fixture
def everything(make: Make) -> dict[str, str]:
    """The header of a key that may do everything. From here on the server is closed."""
    return make()


@pytest.fixture
async def tasks(http: httpx.AsyncClient, everything: dict[str, str]) -> None:
    """Tasks `a-one` and `b-secret`, two versions each."""
    for task in ("a-one", "b-secret"):
        for seed in (1, 2):
            response = await http.put(
                f"/tasks/{task}/prefix",
                content=artifact.dump(make_prefix(seed)),
                headers=ARTIFACT | everything,
            )
            assert response.status_code in (200, 201)
