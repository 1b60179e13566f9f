"""The wall clock jumps by a day while the server runs: nothing is lost, refused or repeated."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from prefix_store import artifact
from prefix_store.registry import rows
from prefix_store.registry.audit import AuditLog
from prefix_store.registry.keys import Grant, KeyStore
from prefix_store.store import PrefixStore
from tests.server.fakes import ARTIFACT, make_prefix, push

DAY_S = 24 * 3600.0
Jump = Callable[[float], None]


@pytest.fixture
def jump(store: PrefixStore, monkeypatch: pytest.MonkeyPatch) -> Jump:
    """Set the wall clock by that much, from what it really is."""
    real = time.time

    def set_by(seconds: float) -> None:
        now = lambda: datetime.now(UTC) + timedelta(seconds=seconds)  # noqa: E731
        monkeypatch.setattr(time, "time", lambda: real() + seconds)
        monkeypatch.setattr(store._clock, "_wall", time.time)
        monkeypatch.setattr(rows, "now", now)

    return set_by


@pytest.mark.parametrize("by_s", [DAY_S + 60, -DAY_S - 60])
async def test_a_jump_changes_nothing(
    http: httpx.AsyncClient, store: PrefixStore, audit: AuditLog, jump: Jump, by_s: float
) -> None:
    await push(http, "x", seed=1)
    upload = {
        "content": artifact.dump(make_prefix(2)),
        "headers": ARTIFACT | {"Idempotency-Key": "once"},
    }
    first = await http.put("/tasks/x/prefix", **upload)
    fresh = store.put_bytes(b"of an upload of another server")

    for seconds in (by_s, 0.0):
        jump(seconds)
        store.collect_garbage(DAY_S)
        again = await http.put("/tasks/x/prefix", **upload)
        served = await http.post("/generate?task=x", json={"prompt": "hi"})
        swapped = await http.post("/tasks/x/activate", json={"version": 1})
        back = await http.post("/tasks/x/rollback")
        ready = await http.get("/readyz")

        assert again.json() == first.json()
        answers = (served, swapped, back, ready)
        assert [answer.status_code for answer in answers] == [200] * 4
        assert ready.json()["status"] == "ok"
        assert store.open(fresh)

    versions = (await http.get("/tasks/x/versions")).json()
    assert [version["version"] for version in versions["versions"]] == [1, 2]
    assert versions["active_version"] == 2
    assert audit.verify() is None


async def test_a_key_expires_by_the_clock_on_the_wall_and_not_for_good(
    http: httpx.AsyncClient, keys: KeyStore, jump: Jump
) -> None:
    expires_at = datetime.now(UTC) + timedelta(hours=1)
    _, text = keys.create(Grant(name="x", scopes=("generate",), expires_at=expires_at))
    headers = {"Authorization": f"Bearer {text}"}

    async def status() -> int:
        body = {"prompt": "hi", "max_tokens": 1}
        return (await http.post("/generate", json=body, headers=headers)).status_code

    statuses = [await status()]
    for seconds in (DAY_S, -DAY_S, 0.0):
        jump(seconds)
        statuses.append(await status())

    assert statuses == [200, 401, 200, 200]
