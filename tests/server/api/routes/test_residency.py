"""Warm, pin and evict, and what GET says of it."""

from __future__ import annotations

import httpx
import pytest

from prefix_store import artifact
from prefix_store.digest import Digest
from prefix_store.registry.audit import AuditLog
from prefix_store.registry.keys import KeyStore
from prefix_store.registry.registry import Registry
from prefix_store.store import PrefixStore
from server.app import create_app
from server.errors import PinRefused, PrefixUnavailable
from server.settings import Settings
from server.text.tokenizer import Tokenizer
from tests.server.fakes import ARTIFACT, FakeEngine, make_prefix, push


async def test_a_version_is_warmed_pinned_and_evicted(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    digest = Digest(str((await push(http, "x"))["digest"]))
    engine.loaded.clear()
    version = "/tasks/x/versions/1"

    warm = await http.post(f"{version}/warm")
    assert (warm.status_code, engine.loaded) == (200, [digest])
    pinned = await http.post(f"{version}/pin")
    assert (pinned.json()["pinned"], engine.pinned) == (True, {digest})
    engine.stats.prefixes_on_device = [str(digest)]
    described = (await http.get(version)).json()
    [listed] = (await http.get("/tasks/x/versions")).json()["versions"]
    assert (described["residency"], described["pinned"]) == ("device", True)
    assert described == listed

    refused = await http.post(f"{version}/evict")
    assert (refused.status_code, refused.json()["code"]) == (409, "prefix_in_use")
    unpinned = await http.post(f"{version}/unpin")
    assert (unpinned.json()["pinned"], engine.pinned) == (False, set())
    engine.stats.prefixes_on_device = []
    evicted = await http.post(f"{version}/evict")
    assert (evicted.status_code, evicted.json()["residency"]) == (200, "disk")
    assert engine.unloaded == [digest]


@pytest.mark.parametrize("what", ["warm", "pin", "unpin", "evict"])
async def test_what_is_not_there_is_unknown(http: httpx.AsyncClient, what: str) -> None:
    await push(http, "x")

    assert (await http.post(f"/tasks/y/versions/1/{what}")).json()["code"] == "unknown_task"
    assert (await http.post(f"/tasks/x/versions/2/{what}")).json()["code"] == "unknown_version"


@pytest.mark.parametrize(
    ("error", "status"), [(PinRefused("too much"), 409), (PrefixUnavailable("gone"), 503)]
)
async def test_a_pin_that_fails_is_not_written_down(
    http: httpx.AsyncClient, engine: FakeEngine, error: Exception, status: int
) -> None:
    await push(http, "x")
    engine.load_error = error  # type: ignore[assignment]

    assert (await http.post("/tasks/x/versions/1/pin")).status_code == status
    assert (await http.get("/tasks/x/versions/1")).json()["pinned"] is False


async def test_bytes_that_two_versions_share_stay_while_one_is_pinned(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    for task in ("x", "y", "y"):
        await push(http, task)
    for path in ("/tasks/x/versions/1/pin", "/tasks/y/versions/1/pin"):
        await http.post(path)

    await http.post("/tasks/x/versions/1/unpin")
    assert len(engine.pinned) == 1
    await http.delete("/tasks/y/versions/1")
    assert engine.pinned == set()


async def test_a_server_that_starts_again_pins_what_was_pinned(
    http: httpx.AsyncClient,
    settings: Settings,
    store: PrefixStore,
    keys: KeyStore,
    audit: AuditLog,
    tokenizer: Tokenizer,
) -> None:
    digest = (await push(http, "x"))["digest"]
    await http.post("/tasks/x/versions/1/pin")
    other = FakeEngine()
    again = create_app(settings, store, keys, audit, other, tokenizer, "tiny")

    async with again.router.lifespan_context(again):
        assert {str(d) for d in other.pinned} == {digest}


async def test_quotas_have_statuses(http: httpx.AsyncClient, registry: Registry) -> None:
    """The registry's own tests cover the rest of the quotas."""
    await push(http, "x")
    body = artifact.dump(make_prefix(9))
    quotas = {"max_tasks": 1, "max_versions_per_task": 1, "max_store_bytes": 1}
    for name, status, path in (
        ("max_tasks", 403, "/tasks/y/prefix"),
        ("max_versions_per_task", 403, "/tasks/x/prefix"),
        ("max_store_bytes", 507, "/tasks/x/prefix"),
    ):
        registry._quotas = type(registry._quotas)(**{name: quotas[name]})
        answer = await http.put(path, content=body, headers=ARTIFACT)
        assert (answer.status_code, answer.json()["code"]) == (status, "quota_exceeded"), name
