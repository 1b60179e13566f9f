"""Uploads with `dry_run`."""

from __future__ import annotations

from pathlib import Path

import httpx
import torch
from safetensors.torch import save

from prefix_store import artifact
from prefix_store.blobs.blobs import FileBlobStore
from server.engine.ipc.messages import EvictionPreview
from tests.server.api.uploads import checks_of
from tests.server.fakes import (
    ARTIFACT,
    BASE,
    FakeEngine,
    make_prefix,
    push,
)


async def test_a_dry_run_says_what_would_happen_and_changes_nothing(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await push(http, "x", seed=1)
    before = (await http.get("/tasks/x/versions")).json()
    engine.room = EvictionPreview(0, True, ["sha256:" + "e" * 64])
    body = artifact.dump(make_prefix(2))

    there = await http.put("/tasks/x/prefix?dry_run=true", content=body, headers=ARTIFACT)
    kept = await http.post("/tasks/x/versions?dry_run=true", content=body, headers=ARTIFACT)
    new = await http.put("/tasks/y/prefix?dry_run=true", content=body, headers=ARTIFACT)

    assert [answer.status_code for answer in (there, kept, new)] == [200, 200, 200]
    assert (there.json()["version"], there.json()["active"]) == (2, True)
    assert (kept.json()["version"], kept.json()["active"]) == (2, False)
    assert (new.json()["task"], new.json()["version"]) == ("y", 1)
    assert there.json()["device_bytes"] == 3 * BASE.num_bytes_per_token
    assert there.json()["evicted"] == ["sha256:" + "e" * 64]
    assert there.json()["fits"] is True
    assert checks_of(there)["forward"] is True
    assert engine.unloaded
    assert (await http.get("/tasks/x/versions")).json() == before
    assert [task["name"] for task in (await http.get("/tasks")).json()["tasks"]] == ["x"]


async def test_a_dry_run_is_refused_as_the_upload_would_be(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = artifact.dump(make_prefix())
    unknown = await http.post("/tasks/x/versions?dry_run=true", content=body, headers=ARTIFACT)
    engine.effect = 0.0
    idle = await http.put("/tasks/x/prefix?dry_run=true", content=body, headers=ARTIFACT)

    assert unknown.json()["code"] == "unknown_task"
    assert idle.json()["code"] == "unusable_prefix"


async def test_what_is_refused_or_rehearsed_leaves_no_bytes(
    http: httpx.AsyncClient, engine: FakeEngine, tmp_path: Path
) -> None:
    """Else rehearsals fill the disk beyond every quota, until garbage is collected."""
    await push(http, "x", seed=1)
    blobs = FileBlobStore(tmp_path / "blobs")
    kept = {*blobs}
    bodies: list[tuple[bytes, dict[str, str]]] = [
        (artifact.dump(make_prefix(2)), ARTIFACT),
        (b'{"text": "other"}', {"Content-Type": "application/json"}),
        (save({"prompt_embeddings": torch.randn(2, 16)}), ARTIFACT),
    ]

    for body, kind in bodies:
        rehearsed = await http.put("/tasks/x/prefix?dry_run=true", content=body, headers=kind)
        engine.effect = 0.0
        unusable = await http.put("/tasks/x/prefix", content=body, headers=kind)
        engine.effect = 1.0
        assert (rehearsed.status_code, unusable.status_code) == (200, 422)
        assert {*blobs} == kept
    for body, kind in bodies:
        assert (await http.put("/tasks/x/prefix", content=body, headers=kind)).is_success
    assert len({*blobs}) == len(kept) + len(bodies)
