"""Servers with a real registry and a fake engine, and `foreword apply` against them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from foreword_client.cli import make_app
from prefix_store.formats import peft
from prefix_store.store import PrefixStore
from server.app import create_app
from server.settings import Settings
from server.text.tokenizer import Tokenizer
from tests.server.fakes import BASE, FakeEngine, make_prefix, make_transformers_tokenizer
from tests.server.live import serve
from tests.server.stores import compile_into, open_store


@dataclass(frozen=True)
class Server:
    """A running server, and what it was asked."""

    url: str
    store: PrefixStore
    writes: list[str]
    """Requests so far that were not reads."""
    in_progress: list[str]
    at_write: dict[int, Callable[[], None]]
    """What to do before the n-th of them is answered."""

    def get(self, path: str) -> Any:
        answer = httpx.get(f"{self.url}{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def send(self, method: str, path: str, body: Any = None) -> Any:
        answer = httpx.request(method, f"{self.url}{path}", json=body)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def answer(self, task: str) -> dict[str, Any]:
        """What a task generates, without what differs from request to request."""
        found = self.send("POST", f"/generate?task={task}", {"prompt": "hi"})
        return {name: found[name] for name in ("text", "digest", "finish_reason", "usage")}

    def num_versions(self) -> dict[str, int]:
        return {task["name"]: task["num_versions"] for task in self.get("/tasks")["tasks"]}

    def pinned(self, task: str) -> list[int]:
        versions = self.get(f"/tasks/{task}/versions")["versions"]
        return [version["version"] for version in versions if version["pinned"]]

    def state(self) -> dict[str, Any]:
        """All tasks with their versions, without times."""
        tasks = self.get("/tasks?limit=1000")["tasks"]
        return {task["name"]: self._described(task["name"]) for task in tasks}

    def _described(self, name: str) -> dict[str, Any]:
        task, found = self.get(f"/tasks/{name}"), self.get(f"/tasks/{name}/versions")
        versions = [
            {name: value for name, value in one.items() if name not in ("created_at", "residency")}
            for one in found["versions"]
        ]
        kept = ("profile", "active_version", "weights")
        return {name: task[name] for name in kept} | {"versions": versions}


class Recorder:
    """Middleware that notes requests that may write."""

    def __init__(self, app: Any, server: Server) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] == "GET":
            await self._app(scope, receive, send)
            return
        request = f"{scope['method']} {scope['path']}"
        self._server.writes.append(request)
        self._server.in_progress.append(request)
        try:
            self._server.at_write.get(len(self._server.writes), lambda: None)()
            await self._app(scope, receive, send)
        finally:
            self._server.in_progress.remove(request)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Server]]:
    """Starts a server with an empty store, in a folder of the given name."""
    with ExitStack() as stack:

        def start(name: str) -> Server:
            folder = tmp_path / name
            folder.mkdir()
            settings = Settings(_cli_parse_args=False, store=folder, drain_timeout_s=1.0)
            stored = stack.enter_context(open_store(folder))
            engine = FakeEngine(compile_to=compile_into(stored.store, folder))
            tokenizer = Tokenizer(make_transformers_tokenizer())
            app = create_app(settings, *stored, engine, tokenizer, "tiny")
            server = Server("", stored.store, [], [], {})
            app.add_middleware(Recorder, server=server)
            return replace(server, url=stack.enter_context(serve(app)).url)

        yield start


@pytest.fixture
def server(start: Callable[[str], Server]) -> Server:
    return start("store")


Run = Callable[..., Result]


@pytest.fixture
def run(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in a folder of its own against the server."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("FOREWORD_URL", server.url)
    return lambda *args, **options: CliRunner().invoke(make_app(), args, **options)


@pytest.fixture
def apply(run: Run) -> Run:
    """Writes a file of tasks and applies it."""

    def apply(text: str, *args: str, code: int = 0) -> Result:
        Path("tasks.yaml").write_text(text)
        done = run("apply", "-f", "tasks.yaml", *args)
        assert done.exit_code == code, done.output
        return done

    return apply


def save_peft(folder: Path, seed: int = 0, *, definition: object = None) -> Path:
    """A folder as PEFT saves it, with a definition beside it."""
    folder.mkdir(parents=True)
    for name, content in peft.write(make_prefix(seed), BASE).items():
        (folder / name).write_bytes(content)
    if definition is not None:
        (folder / "foreword.json").write_text(json.dumps(definition))
    return folder
