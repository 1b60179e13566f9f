"""A client that leaves ends its request on every route, wherever that waits, or its change is
made as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from fastapi.routing import APIRoute
from safetensors.torch import save

from prefix_store import artifact
from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.registry.keys import Grant, KeyStore
from server.api.http.deps import Services
from server.app import ROUTERS
from tests.server.api.http.keyed import Make
from tests.server.api.http.leaving import Call, Gate, Outcome, leave
from tests.server.fakes import ARTIFACT, INFO, FakeEngine, make_prefix

BODY = artifact.dump(make_prefix(3, fingerprint=INFO.fingerprint))
SOFT_PROMPT = save({"prompt_embeddings": torch.zeros(2, 16)})
GOLDEN = [{"prompt": "hi", "expect": [65]}]
KEY = {"Idempotency-Key": "once"}

READS = [
    Call("GET", "/tasks"),
    Call("GET", "/tasks/{task}"),
    Call("GET", "/tasks/{task}/versions"),
    Call("GET", "/tasks/{task}/versions/1"),
    Call("GET", "/tasks/{task}/versions/1/prefix"),
    Call("GET", "/tasks/{task}/versions/1/prefix?format=tar"),
    Call("GET", "/tasks/{task}/versions/1/prefix?format=peft"),
    Call("GET", "/tasks/{task}/traffic"),
    Call("POST", "/tasks/{task}/versions/1/verify"),
    Call("POST", "/tasks/{task}/versions/1/warm"),
    Call("POST", "/tasks/{task}/versions/1/evict"),
    Call("PUT", "/tasks/{task}/prefix?dry_run=true", BODY, ARTIFACT),
    Call("POST", "/tasks/{task}/versions?dry_run=true", {"text": "Hello", "golden": GOLDEN}),
    Call("POST", "/generate?task={task}", {"prompt": "hi"}),
    Call("POST", "/generate?task={task}", {"prompt": "hi", "stream": True}),
    Call("POST", "/generate", {"prompt": "hi", "rank": {"texts": ["a", "b"]}, "logprobs": 1}),
    Call("POST", "/v1/completions", {"model": "{task}", "prompt": ["a", "b"], "max_tokens": 3}),
    Call("POST", "/v1/completions", {"model": "{task}", "prompt": ["a", "b"], "stream": True}),
    Call("POST", "/v1/chat/completions",
         {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}),
    Call("GET", "/v1/models"),
    Call("GET", "/v1/models/{task}"),
    Call("GET", "/keys"),
    Call("GET", "/audit"),
    Call("GET", "/livez"),
    Call("GET", "/readyz"),
    Call("GET", "/health"),
    Call("GET", "/metrics"),
    Call("GET", "/info"),
    Call("GET", "/"),
    Call("GET", "/console"),
    Call("GET", "/console/"),
    Call("GET", "/console/main.js"),
]  # fmt: skip
CHANGES = [
    Call("PUT", "/tasks/new-{task}", {"description": "new"}),
    Call("PUT", "/tasks/{task}", {"description": "a", "template": "{prompt}.", "golden": GOLDEN}),
    Call("PATCH", "/tasks/{task}", {"template": "{prompt}!"}),
    Call("DELETE", "/tasks/{task}"),
    Call("DELETE", "/tasks/{task}", headers=KEY),
    Call("POST", "/tasks/{task}/activate", {"version": 1}),
    Call("POST", "/tasks/{task}/rollback"),
    Call("PUT", "/tasks/{task}/prefix", BODY, ARTIFACT | KEY),
    Call("PUT", "/tasks/new-{task}/prefix", SOFT_PROMPT, ARTIFACT),
    Call("POST", "/tasks/{task}/versions", {"text": "Hello", "golden": GOLDEN}),
    Call("POST", "/tasks/{task}/versions?activate=true",
         {"prefix_of": 1, "definition": {"template": "{prompt}?"}}),
    Call("DELETE", "/tasks/{task}/versions/1"),
    Call("PUT", "/tasks/{task}/traffic", {"weights": {"1": 1, "2": 1}}),
    Call("DELETE", "/tasks/{task}/traffic"),
    Call("POST", "/tasks/{task}/versions/1/pin"),
    Call("POST", "/tasks/{task}/versions/1/unpin"),
    Call("POST", "/keys", {"name": "more", "scopes": ["read"]}),
    Call("DELETE", "/keys/{key}"),
]  # fmt: skip
MAX_WAITS = 40


class Server:
    """The app, and everything that a request can leave behind."""

    def __init__(
        self, app: FastAPI, engine: FakeEngine, keys: KeyStore, header: dict[str, str], folder: Path
    ) -> None:
        self.app, self.engine, self.keys, self._header = app, engine, keys, header
        self.gate = Gate(engine)
        self._blobs = FileBlobStore(folder / "blobs")
        self._num_made = 0
        self._services: Services = app.state.services

    async def prepare(self, *, is_split: bool = False) -> dict[str, str]:
        """Make a key, and a task with two versions, of which the second is active."""
        self._num_made += 1
        task = f"x{self._num_made}"
        for seed in (1, 2):
            await self._answer(Call("PUT", f"/tasks/{task}/prefix", _body(seed), ARTIFACT))
        if is_split:
            weights = {"weights": {"1": 1, "2": 1}}
            await self._answer(Call("PUT", f"/tasks/{task}/traffic", weights))
        await self._answer(Call("PATCH", f"/tasks/{task}", {"golden": GOLDEN}))
        key, _ = self.keys.create(Grant(name="old", scopes=("read",)))
        return {"task": task, "key": key.id}

    def filled(self, call: Call, names: dict[str, str]) -> Call:
        """Return a request of the table with its names and a key."""
        path, body = call.path.format(**names), call.body
        if isinstance(body, dict) and body.get("model") == "{task}":
            body = body | {"model": names["task"]}
        return Call(call.method, path, body, call.headers | self._header)

    async def _answer(self, call: Call) -> None:
        outcome = await leave(self.app, self.gate, self.filled(call, {}), -1)
        assert (outcome.status or 500) < 300, (call, outcome)

    async def leave(self, call: Call, stop_at: int) -> Outcome:
        return await leave(self.app, self.gate, call, stop_at)

    def state(self) -> dict[str, Any]:
        """Everything that lasts, for the tasks that were made last."""
        registry = self._services.store.blocking.registry
        tasks = registry.list_tasks(None, 1000, (f"*x{self._num_made}",))
        return {
            "blobs": {*self._blobs},
            "tasks": [task.model_dump() for task in tasks],
            "versions": [
                v.model_dump() for task in tasks for v in registry.list_versions(task.name)
            ],
            "traffic": [registry.traffic(task.name) for task in tasks],
            "pinned": registry.pinned(),
            "keys": [key.model_dump(exclude={"last_used_at"}) for key in self.keys.list()],
            "pinned by the engine": set(self.engine.pinned),
        }

    def check_idle(self) -> None:
        """Assert that nothing runs and nothing is held."""
        services = self._services
        assert self.engine.num_in_flight == 0
        assert services.in_progress == set()
        admission = services.router._admission
        assert (admission.num_sequences, admission._num_tokens) == (0, 0)
        assert not admission._sequences_of
        assert services.store.blocking._leases._ref_counts == {}
        assert services.spool._budget._held == {}
        turns = services.uploads._reader._turns
        assert turns._free == turns._max_bytes


def _body(seed: int) -> bytes:
    return artifact.dump(make_prefix(seed, fingerprint=INFO.fingerprint))


@pytest.fixture
async def server(
    app: FastAPI,
    http: httpx.AsyncClient,
    engine: FakeEngine,
    keys: KeyStore,
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Server:
    for module in ("prefix_store.registry.keys", "server.api.http.access"):
        monkeypatch.setattr(f"{module}.CACHE_S", 1e9)  # keys are looked up before the route
    engine.script = lambda _, token_ids: [65, 66, 67]
    return Server(app, engine, keys, make(), tmp_path)


def test_every_route_is_in_the_table() -> None:
    listed = {
        (call.method, route.path)
        for call in (*READS, *CHANGES)
        for route in _routes()
        if call.method in route.methods and route.path_regex.fullmatch(call.path.partition("?")[0])
    }

    assert listed >= {(next(iter(route.methods)), route.path) for route in _routes()}


def _routes() -> list[APIRoute]:
    return [r for router in ROUTERS for r in router.routes if isinstance(r, APIRoute)]


async def test_a_request_that_changes_nothing_ends_wherever_it_waits(server: Server) -> None:
    names = await server.prepare()
    before, num_waits = server.state(), 0

    for call in (server.filled(call, names) for call in READS):
        for stop_at in range(MAX_WAITS):
            outcome = await server.leave(call, stop_at)
            server.check_idle()
            assert not outcome.was_held or "dry_run" in call.path, (call, stop_at)
            assert server.state() == before, (call, stop_at)
            if not outcome.has_stopped:
                break
            num_waits += 1
        assert not outcome.has_stopped, "more waits than the table expects"
        assert (outcome.status or 500) < 400, (call, outcome)

    assert num_waits > 50


async def test_a_change_is_made_as_a_whole_or_not_at_all(server: Server) -> None:
    for call in CHANGES:
        filled = server.filled(call, await server.prepare(is_split="traffic" in call.path))
        before, num_held = server.state(), 0
        for stop_at in range(MAX_WAITS):
            outcome = await server.leave(filled, stop_at)
            server.check_idle()
            num_held += outcome.was_held
            if not outcome.has_stopped:
                break
            if outcome.was_held and server.state() != before:
                names = await server.prepare(is_split="traffic" in call.path)
                filled, before = server.filled(call, names), server.state()
            assert server.state() == before, (call, stop_at)
        assert not outcome.has_stopped, "more waits than the table expects"
        assert num_held >= 1, call
        assert (outcome.status or 500) < 400, (call, outcome)
