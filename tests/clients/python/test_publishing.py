"""Publishing by SDK and CLI on the real app: a newer activation stays, a broken push waits."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from typer.testing import CliRunner, Result

from foreword_client import Client, PreconditionFailedError
from foreword_client.cli import make_app
from prefix_store import artifact
from prefix_store.formats import tar
from prefix_store.registry.keys import Grant, KeyStore
from server.settings import Settings
from tests.server.fakes import FakeEngine, make_prefix
from tests.server.live import LiveServer, wait_until

Run = Callable[..., Result]
Connect = Callable[..., Any]

LARGE = 24 << 20
"""Bytes of an upload that fits neither into the sockets' buffers nor into what a server reads
ahead."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        _cli_parse_args=False, store=tmp_path, allowed_hosts="test", max_upload_bytes=2 * LARGE
    )


@pytest.fixture
def run(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command against the live server."""
    monkeypatch.setenv("FOREWORD_URL", live.url)
    return lambda *args: CliRunner().invoke(make_app(), args)


def push(client: Any, *seeds: int, activate: bool = True) -> None:
    """Push a version of x per seed."""
    for seed in seeds:
        client.push("x", artifact.dump(make_prefix(seed)), activate=activate)


def active(live: LiveServer) -> tuple[int | None, int]:
    """The active version of x, and how many there are."""
    with Client(live.url) as client:
        task = client.task("x")
    return task.active_version, task.num_versions


class Held:
    """An asynchronous method that waits, once called, until it is released."""

    def __init__(self, owner: object, name: str) -> None:
        self.has_begun = self._may_go = False
        self._inner = getattr(owner, name)
        setattr(owner, name, self._call)

    async def _call(self, *args: object, **options: object) -> object:
        self.has_begun = True
        while not self._may_go:
            await asyncio.sleep(0.01)
        return await self._inner(*args, **options)

    def release(self) -> None:
        self._may_go = True


def start(live: LiveServer, *args: str) -> subprocess.Popen[bytes]:
    """Start `foreword` in a process of its own."""
    # A background job of a script inherits that interrupts are ignored; a terminal's does not.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    main = f"{heard}; from foreword_client.cli import main; main()"
    environment = os.environ | {"FOREWORD_URL": live.url}
    command = [sys.executable, "-c", main, *args]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def interrupt(live: LiveServer, file: Path, held: Held, sign: signal.Signals) -> int:
    """Push a file, and stop the push by a signal while `held` holds it up. The exit code."""
    process = start(live, "push", "x", str(file))
    try:
        wait_until(lambda: held.has_begun)
        process.send_signal(sign)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait(10)
    assert (b"foreword versions x" in said) == (sign == signal.SIGINT), said
    with Client(live.url) as client:  # by then the server has read that the connection is closed
        client.is_alive()
    held.release()
    wait_until(lambda: not live.server.server_state.tasks)
    return process.returncode


SIGNALS = pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL], ids=lambda s: s.name)
EXIT_CODES = {signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}


@SIGNALS
def test_a_push_interrupted_while_it_is_sent_leaves_nothing(
    live: LiveServer, app: FastAPI, tmp_path: Path, sign: signal.Signals
) -> None:
    with Client(live.url) as client:
        push(client, 1)
    file = tmp_path / "x.tar"
    padding = {"notes": bytes(LARGE)}
    file.write_bytes(tar.write(padding | {"prefix.safetensors": artifact.dump(make_prefix(2))}))
    held = Held(app.state.services.uploads, "preflight")

    code = interrupt(live, file, held, sign)

    assert (code, active(live)) == (EXIT_CODES[sign], (1, 1))


@SIGNALS
@pytest.mark.parametrize("is_new", [True, False])
def test_a_push_interrupted_while_it_is_verified_leaves_nothing(
    live: LiveServer, engine: FakeEngine, tmp_path: Path, sign: signal.Signals, is_new: bool
) -> None:
    if not is_new:
        with Client(live.url) as client:
            push(client, 1)
    file = tmp_path / "x.safetensors"
    file.write_bytes(artifact.dump(make_prefix(2)))
    held = Held(engine, "verify")

    code = interrupt(live, file, held, sign)

    assert code == EXIT_CODES[sign]
    if not is_new:
        assert active(live) == (1, 1)
    with Client(live.url) as client:
        assert [task.name for task in client.tasks()] == ([] if is_new else ["x"])


def test_rollback_goes_one_step_further_back_each_time(run: Run, live: LiveServer) -> None:
    with Client(live.url) as client:
        push(client, 1, 2, 3)

    outcomes = [run("rollback", "x") for _ in range(3)]

    assert [done.exit_code for done in outcomes] == [0, 0, 1]
    assert "x: v2 is now live" in outcomes[0].stdout
    assert "before: v3" in outcomes[0].stdout
    assert "x: v1 is now live" in outcomes[1].stdout
    assert "no earlier version" in outcomes[2].stderr
    assert active(live) == (1, 3)


def test_rollback_ends_a_split_first_and_then_goes_back(run: Run, live: LiveServer) -> None:
    with Client(live.url) as client:
        push(client, 1, 2)
        push(client, 3, activate=False)
        client.set_traffic("x", {2: 90, 3: 10})

    outcomes = [run("rollback", "x").stdout for _ in range(2)]

    assert "x: v2 is now live" in outcomes[0]
    assert "before: v2 (weight 90) and v3 (weight 10)" in outcomes[0]
    assert "x: v1 is now live" in outcomes[1]
    assert active(live) == (1, 3)


def test_an_activation_of_what_was_seen_earlier_does_not_overtake(
    run: Run, live: LiveServer
) -> None:
    with Client(live.url) as client:
        push(client, 1, 2)
        seen = client.task("x").revision
        push(client, 3)

    for command in (["activate", "x", "1"], ["rollback", "x"]):
        done = run(*command, "--if-match", str(seen))
        assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
        assert "x has changed" in done.stderr
        assert "nothing was done" in done.stderr
    assert active(live) == (3, 3)
    assert "before: v3" in run("activate", "x", "1").stdout


class BusyOnce:
    """A server that is overloaded at the first change; `meanwhile` another client has its turn."""

    def __init__(self, live: LiveServer, meanwhile: Callable[[], None]) -> None:
        self._live = live
        self._meanwhile: Callable[[], None] | None = meanwhile

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method != "GET" and self._meanwhile is not None:
            self._meanwhile()
            self._meanwhile = None
            return httpx.Response(503, headers={"Retry-After": "0"})
        return forward(self._live, request)


def forward(live: LiveServer, request: httpx.Request) -> httpx.Response:
    headers = {k: v for k, v in request.headers.items() if k != "host"}
    url = request.url.copy_with(host="127.0.0.1", port=live.port)
    found = httpx.request(request.method, url, content=request.read(), headers=headers)
    return httpx.Response(found.status_code, content=found.content)


@pytest.mark.parametrize(
    "change",
    [
        lambda client: client.activate("x", 1),
        lambda client: client.rollback("x"),
        lambda client: client.set_traffic("x", {1: 1, 2: 1}),
        lambda client: client.push("x", text="older"),
        lambda client: client.push("x", text="older", template="{prompt}!"),
    ],
    ids=["activate", "rollback", "traffic", "push", "push of a change"],
)
def test_a_change_that_is_tried_again_does_not_overtake(
    connect: Connect, live: LiveServer, change: Callable[[Any], Any]
) -> None:
    with Client(live.url) as other:
        push(other, 1, 2)
        client = connect(BusyOnce(live, lambda: push(other, 3)))

        with pytest.raises(PreconditionFailedError):
            change(client)

    assert active(live) == (3, 3)


def test_a_push_whose_answer_was_lost_counts_once(connect: Connect, live: LiveServer) -> None:
    def lose(request: httpx.Request) -> httpx.Response:
        found = forward(live, request)
        if request.method == "PUT" and not lost:
            lost.append(found.status_code)
            raise httpx.ReadError("lost")
        return found

    lost: list[int] = []
    with Client(live.url) as other:
        push(other, 1)

    uploaded = connect(lose).push("x", text="t")

    assert (uploaded.version, uploaded.active, lost) == (2, True, [200])
    assert active(live) == (2, 2)


@pytest.mark.parametrize("is_new", [False, True])
def test_a_push_that_is_tried_again_becomes_active_if_nothing_else_did(
    connect: Connect, live: LiveServer, is_new: bool
) -> None:
    with Client(live.url) as other:
        if not is_new:
            push(other, 1)
        stored = [] if is_new else [2]
        client = connect(BusyOnce(live, lambda: push(other, *stored, activate=False)))

        assert client.push("x", text="t").active

    assert active(live) == ((1, 1) if is_new else (3, 3))


def test_a_key_that_may_not_read_activates_all_the_same(
    run: Run, live: LiveServer, keys: KeyStore
) -> None:
    with Client(live.url) as client:
        push(client, 1, 2)
    key = keys.create(Grant(name="cd", scopes=("promote",)))[1]

    assert run("--api-key", key, "activate", "x", "1").exit_code == 0
    assert run("--api-key", key, "activate", "x", "2").exit_code == 0
    assert "x: v1 is now live" in run("--api-key", key, "rollback", "x").stdout
