"""The engine ends with its API process: SIGKILL of a real server, and a broken socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from server.engine.ipc import messages as m
from server.engine.ipc.child import EngineProcess
from server.engine.params import SamplingParams
from tests.running_server import RunningServer, running_server, starting_server, wait_gone
from tests.small_model import save_small_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

FLAGS = ("--dtype", "float32", "--num-threads", "1", "--kv-cache-bytes", str(256 << 20))
BODY = {"prompt": "Hi", "max_tokens": 15_000, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("model"))


@contextlib.contextmanager
def streams(url: str, num: int) -> Iterator[None]:
    """Run `num` streaming clients, each past its first tokens when the block starts."""
    begun = threading.Barrier(num + 1, timeout=300)

    def read() -> None:
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.stream("POST", f"{url}/generate", json=BODY, timeout=300) as response,
        ):
            lines = response.iter_lines()
            next(lines)
            begun.wait()
            for _ in lines:
                pass

    threads = [threading.Thread(target=read, daemon=True) for _ in range(num)]
    for thread in threads:
        thread.start()
    begun.wait()
    yield
    for thread in threads:
        thread.join(10)


def wait_until(read: Callable[[], int], timeout_s: float = 300.0) -> int:
    """Return the result of `read`, retried until it raises no error."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError, ValueError):
            return read()
        assert time.monotonic() < deadline_s, "it did not succeed in time"
        time.sleep(0.02)


def kill(server: RunningServer) -> None:
    server.process.kill()
    server.process.wait(10)


def test_the_engine_ends_with_the_api_process_while_it_streams(model: Path, tmp_path: Path) -> None:
    with running_server(model, tmp_path / "store", *FLAGS) as server:
        engine = server.engine_pid()
        with streams(server.url, 4):
            kill(server)

            wait_gone(engine)


@pytest.mark.parametrize("delay_s", [0.0, 2.0], ids=["at once", "while it imports or loads"])
def test_the_engine_ends_with_the_api_process_before_it_listens(
    model: Path, tmp_path: Path, delay_s: float
) -> None:
    with starting_server(model, tmp_path / "store", *FLAGS) as server:
        engine = wait_until(server.engine_pid)
        time.sleep(delay_s)

        kill(server)

        wait_gone(engine)


def test_the_engine_and_its_compiler_end_with_the_api_process(model: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nsleep 100 ; true\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    env = {"CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path)}
    flags = (*FLAGS, "--attention", "native")  # `auto` compiles for wide vectors only
    with starting_server(model, tmp_path / "store", *flags, env=env) as server:
        compiling = wait_until(lambda: int((tmp_path / "pid").read_text()))
        engine = server.engine_pid()

        kill(server)

        wait_gone(engine, compiling)


async def test_the_engine_ends_when_its_socket_is_reset(model: Path, tmp_path: Path) -> None:
    """The only sign on systems whose kernel does not signal the end of a parent."""
    config = m.EngineConfig(
        model=str(model), blobs=str(tmp_path), dtype="float32", attention="ref", num_threads=1,
        kv_cache_bytes=256 << 20,
    )  # fmt: skip
    process = await EngineProcess.spawn(config)
    try:
        assert isinstance(await asyncio.wait_for(process.read(), 300), m.Ready)
        process.send(
            m.Submit(1, None, [5, 6, 7], SamplingParams(max_tokens=15_000, ignore_eos=True))
        )
        assert isinstance(await asyncio.wait_for(process.read(), 300), m.Heartbeat | m.Tokens)
        transport = process._writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        transport.pause_reading()
        await asyncio.sleep(0.5)  # closing a socket with unread data is a reset

        transport.abort()

        await asyncio.wait_for(process.wait(), 5)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, 9)
