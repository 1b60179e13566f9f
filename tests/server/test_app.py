from __future__ import annotations

import json
import logging

import httpx
import msgspec
import pytest
from fastapi import FastAPI

from prefix_store.registry.audit import AuditLog
from prefix_store.registry.keys import KeyStore
from prefix_store.store import PrefixStore
from server import logs
from server.api.http.deps import Services
from server.app import create_app, public_name
from server.demo.tasks import DEMO_TASKS
from server.errors import EngineUnavailable
from server.settings import Settings
from server.text.tokenizer import Tokenizer
from tests.server.fakes import FakeEngine


@pytest.fixture
def demo_app(
    settings: Settings,
    store: PrefixStore,
    keys: KeyStore,
    audit: AuditLog,
    engine: FakeEngine,
    tokenizer: Tokenizer,
) -> FastAPI:
    engine.info_or_none = msgspec.structs.replace(engine.info, max_model_len=4096)
    with_demo = settings.model_copy(update={"demo": True})
    return create_app(with_demo, store, keys, audit, engine, tokenizer, "tiny")


async def test_demo_tasks_are_made_once(demo_app: FastAPI, engine: FakeEngine) -> None:
    services: Services = demo_app.state.services

    async with demo_app.router.lifespan_context(demo_app):
        tasks = await services.store.list_tasks()

    # Those that were tuned are for another model than this one.
    of_text = {demo.name: demo.profile for demo in DEMO_TASKS if demo.folder is None}
    assert {task.name: task.profile for task in tasks} == of_text
    assert all(task.active_version == 1 for task in tasks)
    assert len(engine.compiled) == len(of_text)


async def test_a_demo_task_that_exists_is_left_alone(
    demo_app: FastAPI, store: PrefixStore, engine: FakeEngine
) -> None:
    mine = DEMO_TASKS[0]
    store.registry.create_task(mine.name, mine.profile.model_copy(update={"description": "mine"}))

    async with demo_app.router.lifespan_context(demo_app):
        pass

    assert store.registry.get_task(mine.name).profile.description == "mine"


async def test_the_engine_lives_as_long_as_the_app(app: FastAPI, engine: FakeEngine) -> None:
    engine.is_dead = True

    async with app.router.lifespan_context(app):
        assert engine.is_ready

    assert engine.is_dead
    assert app.state.services.router.is_draining


async def test_an_engine_that_does_not_start_is_the_apps_failure(
    app: FastAPI, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start() -> None:
        raise EngineUnavailable("no such model")

    monkeypatch.setattr(engine, "start", start)

    with pytest.raises(EngineUnavailable):
        async with app.router.lifespan_context(app):
            pass


@pytest.mark.parametrize(
    ("model", "name"),
    [("default", "SmolLM2-135M-Instruct"), ("org/model", "org/model"), ("tests/", "tests")],
)
def test_a_base_model_is_called_by_its_name_and_never_by_its_path(model: str, name: str) -> None:
    assert public_name(model) == name


async def test_a_request_is_one_log_line_that_nobody_can_break(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.access")

    await http.post("/generate", json={"prompt": "secret", "max_tokens": 2})
    await http.get("/nope%0a%1b[31m")
    await http.get("/livez")

    first, second = (record.__dict__ for record in caplog.records)
    assert (first["route"], first["status"], first["outcome"]) == ("/generate", 200, "length")
    assert (first["prompt_tokens"], first["completion_tokens"]) == (6, 2)
    assert (second["route"], second["status"]) == ("-", 404)
    assert "secret" not in str(first)


def test_a_log_line_is_json_with_control_characters_escaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.raiseExceptions)
    try:
        logs.configure("info")
        logging.getLogger("x").info("a\n\x1b[31m%s", "b", extra={"task": "t"})
        logging.getLogger("x").debug("not this")
    finally:
        root.handlers[:], logging.raiseExceptions = before[0], before[2]
        root.setLevel(before[1])

    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "a\n\x1b[31mb"
    assert json.loads(line)["task"] == "t"
    assert "\x1b" not in line
