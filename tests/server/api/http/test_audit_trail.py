"""What is audited, counted and logged about keys and changes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from prefix_store import artifact
from prefix_store.registry.audit import AuditLog
from prefix_store.registry.keys import KeyStore
from tests.server.api.http.keyed import GENERATE, Make
from tests.server.fakes import ARTIFACT, FakeEngine, make_prefix


async def test_every_change_is_audited_with_who_and_what(
    http: httpx.AsyncClient,
    audit: AuditLog,
    keys: KeyStore,
    everything: dict[str, str],
    tasks: None,
) -> None:
    num_before = len(audit.entries())
    headers = everything | {"X-Request-Id": "req-7"}
    json_headers = headers | {"Content-Type": "application/json"}
    upload = artifact.dump(make_prefix(5))
    changes: list[tuple[str, str, object, str]] = [
        ("PUT", "/tasks/new", {}, "create_task"),
        ("PUT", "/tasks/new", {}, "set_profile"),
        ("PATCH", "/tasks/new", {"description": "secret words"}, "set_profile"),
        ("POST", "/tasks/a-one/versions", upload, "push"),
        ("POST", "/tasks/a-one/versions?activate=true", upload, "push_and_activate"),
        ("PUT", "/tasks/a-two/prefix", upload, "push_and_activate"),
        ("POST", "/tasks/a-one/activate", {"version": 3}, "activate"),
        ("POST", "/tasks/a-one/rollback", None, "rollback"),
        ("DELETE", "/tasks/a-one/versions/1", None, "delete_version"),
        ("DELETE", "/tasks/new", None, "delete_task"),
        ("POST", "/keys", {"name": "x", "scopes": ["read"]}, "create_key"),
        ("DELETE", "/keys/{}", None, "revoke_key"),
    ]
    for method, path, body, _ in changes:
        is_upload = isinstance(body, bytes)
        content = body if is_upload or body is None else json.dumps(body).encode()
        response = await http.request(
            method, path.replace("{}", keys.list()[-1].id), content=content,  # type: ignore[arg-type]
            headers=headers | ARTIFACT if is_upload else json_headers,
        )  # fmt: skip
        assert response.is_success, (method, path, response.text)
    # What reads, generates or is refused leaves no row.
    await http.post("/generate?task=a-one", json=GENERATE, headers=headers)
    await http.delete("/tasks/nope", headers=headers)
    await http.put("/tasks/x", json={})

    page = (await http.get("/audit?limit=1000", headers=headers)).json()
    rows = page["entries"][num_before:]
    assert [row["action"] for row in rows] == [action for *_, action in changes]
    admin = keys.list()[0].id
    assert {(row["by"], row["peer"], row["request_id"]) for row in rows} == {
        (admin, "127.0.0.1", "req-7")
    }
    assert audit.verify() is None
    assert "secret words" not in json.dumps(rows)
    first = (await http.get("/audit?limit=2", headers=headers)).json()
    assert ([row["seq"] for row in first["entries"]], first["next_after"]) == ([1, 2], 2)
    history = (await http.get("/tasks/a-one/versions", headers=headers)).json()
    assert {line["by"] for line in history["history"]} == {admin}
    assert {manifest["created_by"] for manifest in history["versions"]} == {admin}


async def test_a_key_is_written_nowhere(
    http: httpx.AsyncClient, make: Make, tmp_path: Path, everything: dict[str, str],
    caplog: pytest.LogCaptureFixture, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(engine, "unload", lambda digest: 1 / 0)  # a bug, with its traceback
    key, upload = everything["Authorization"].removeprefix("Bearer "), artifact.dump(make_prefix(1))
    answers = [
        await http.get("/tasks", headers=everything),
        await http.get("/tasks", params={"api_key": key}),
        await http.get(f"/tasks/{key}", headers=everything),
        await http.get("/tasks", headers={"Authorization": f"Bearer {key}x"}),
        await http.post("/generate", json={"prompt": 3, "api_key": key}, headers=everything),
        await http.get("/keys", headers=everything),
        await http.get("/audit", headers=everything),
        await http.put("/tasks/x/prefix", content=upload, headers=ARTIFACT | everything),
        await http.delete("/tasks/x", headers=everything),
        await http.get("/metrics", headers=everything),
    ]  # fmt: skip
    assert [a.status_code for a in answers] == [200, 401, 404, 401, 422, 200, 200, 201, 500, 200]

    secret = key.split("_", 2)[2][:43]
    said = "".join(answer.text for answer in answers) + str([a.headers for a in answers])
    ours = [record for record in caplog.records if record.name != "httpx"]
    logged = "".join(caplog.handler.format(record) + str(record.__dict__) for record in ours)
    dump = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert "ZeroDivisionError" in logged
    assert key.split("_")[1] in logged  # the id says who it was
    assert secret not in said + logged
    assert secret.encode() not in dump
    assert 'foreword_access_denied_total{code="unauthenticated"} 2.0' in answers[-1].text


async def test_denied_writes_are_counted_and_not_chained(
    http: httpx.AsyncClient, make: Make, audit: AuditLog, everything: dict[str, str]
) -> None:
    num_rows = len(audit.entries())
    reader = make("read")
    for _ in range(3):
        await http.put("/tasks/x", json={}, headers=reader)
    upload = artifact.dump(make_prefix(1))  # refused by the route itself
    await http.put("/tasks/x/prefix", content=upload, headers=ARTIFACT | make("write"))

    metrics = (await http.get("/metrics", headers=reader)).text
    assert 'foreword_access_denied_total{code="insufficient_scope"} 4.0' in metrics
    assert len(audit.entries()) == num_rows + 2  # the two keys


async def test_the_end_of_the_audit_is_logged_at_the_end(
    app: FastAPI, audit: AuditLog, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.maintenance")
    async with app.router.lifespan_context(app):
        make("read")

    (line,) = [record for record in caplog.records if record.msg == "audit head"]
    head = audit.head()
    assert (line.__dict__["seq"], line.__dict__["hash"]) == (head.seq, head.hash) != (0, "0" * 64)
