"""Damaged blobs, and a database that is locked, lost or replaced: the rest keeps serving."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path

import httpx
import pytest

from prefix_store import artifact
from prefix_store.digest import Digest
from prefix_store.errors import StorageFailure
from prefix_store.registry.registry import Registry
from server import app as server_app
from server.settings import Settings
from tests.server.fakes import ARTIFACT, make_prefix, push


def damage(store: Path, digest: object) -> None:
    found = Digest(str(digest))
    path = store / "blobs" / "sha256" / found.hex[:2] / found.hex[2:]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


async def test_a_damaged_blob_is_told_and_healed_by_the_same_upload(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    first = await push(http, "x", seed=1)
    await push(http, "x", seed=2)
    await push(http, "y", seed=3)
    damage(tmp_path, first["digest"])

    found = await http.get("/tasks/x/versions/1/prefix")
    listed = (await http.get("/tasks/x/versions")).json()
    swap = await http.post("/tasks/x/activate", json={"version": 1})
    back = await http.post("/tasks/x/rollback")
    shared = await http.post("/tasks/x/versions", json={"prefix_of": 1})
    ready = await http.get("/readyz")
    metrics = (await http.get("/metrics")).text
    beside = await http.post("/generate?task=y", json={"prompt": "hi"})

    assert (found.status_code, found.json()["code"]) == (500, "digest_mismatch")
    assert (listed["quarantined"], listed["active_version"]) == ([1], 2)
    assert (swap.status_code, swap.json()["code"]) == (409, "version_quarantined")
    assert (back.status_code, back.json()["code"]) == (409, "version_quarantined")
    assert (shared.status_code, shared.json()["code"]) == (409, "version_quarantined")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert "1 corrupt" in ready.json()["reasons"][0]
    assert "foreword_quarantined_blobs 1.0\n" in metrics
    assert beside.status_code == 200

    again = await http.post(
        "/tasks/y/versions", content=artifact.dump(make_prefix(1)), headers=ARTIFACT
    )
    assert again.json()["digest"] == first["digest"]
    assert (await http.get("/readyz")).json()["status"] == "ok"
    assert (await http.get("/tasks/x/versions")).json()["quarantined"] == []
    assert (await http.post("/tasks/x/activate", json={"version": 1})).status_code == 200


async def test_a_locked_database_refuses_writes_and_nothing_else(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    await push(http, "x", seed=1)
    blocker = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    began_s = time.monotonic()
    writes = [asyncio.create_task(http.put(f"/tasks/t{i}", json={})) for i in range(8)]
    await asyncio.sleep(0.1)

    for _ in range(20):
        served = await http.post("/generate?task=x", json={"prompt": "hi"})
        assert served.status_code == 200
    assert not any(write.done() for write in writes)
    first = await asyncio.wait(writes, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    waited_s = time.monotonic() - began_s
    blocker.execute("ROLLBACK")
    blocker.close()
    statuses = sorted([(await write).status_code for write in writes])

    assert first[0]
    assert waited_s > 4
    assert 503 in statuses
    assert set(statuses) <= {201, 503}
    assert (await http.put("/tasks/t9", json={})).status_code == 201


async def test_a_lost_database_serves_on_and_takes_no_changes(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    await push(http, "x", seed=1)
    path = tmp_path / "registry.db"
    path.rename(tmp_path / "lost.db")

    write = await http.put("/tasks/y", json={})
    upload = await http.put("/tasks/y/prefix", content=artifact.dump(make_prefix(2)))
    served = await http.post("/generate?task=x", json={"prompt": "hi"})
    ready = await http.get("/readyz")

    assert [r.status_code for r in (write, upload, served, ready)] == [503, 503, 200, 200]
    assert write.json()["code"] == upload.json()["code"] == "storage_failure"
    assert ready.json()["status"] == "degraded"
    assert not path.exists()
    (tmp_path / "lost.db").rename(path)
    assert (await http.put("/tasks/y", json={})).status_code == 201
    assert (await http.get("/readyz")).json()["status"] == "ok"


async def test_a_server_does_not_start_empty_over_blobs(
    http: httpx.AsyncClient, settings: Settings, tmp_path: Path
) -> None:
    await push(http, "x", seed=1)
    for path in tmp_path.glob("registry.db*"):
        path.unlink()

    with pytest.raises(StorageFailure, match="missing or empty"):
        server_app.build(settings, "no model is looked at")
    Registry(f"sqlite:///{tmp_path / 'other.db'}").close()


async def test_a_deleted_log_loses_nothing_and_takes_no_changes(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    await push(http, "x", seed=1)
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"registry.db{suffix}").unlink()

    write = await http.put("/tasks/y", json={})
    upload = await http.put("/tasks/y/prefix", content=artifact.dump(make_prefix(2)))
    served = await http.post("/generate?task=x", json={"prompt": "hi"})
    ready = await http.get("/readyz")

    assert [r.status_code for r in (write, upload, served, ready)] == [503, 503, 200, 200]
    assert write.json()["code"] == upload.json()["code"] == "storage_failure"
    assert ready.json()["status"] == "degraded"
    assert "saved in registry.db: restart the server" in ready.json()["reasons"][0]
    restarted = Registry(f"sqlite:///{tmp_path / 'registry.db'}", may_create=False)
    assert [task.name for task in restarted.list_tasks()] == ["x"]
    restarted.close()
