"""Engine processes that die, hang, lose their device or cannot start."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from prefix_store.blobs.blobs import FileBlobStore
from server.engine.ipc import client as client_module
from server.engine.ipc.client import EngineClient
from server.engine.params import SamplingParams
from server.errors import EngineUnavailable, StepFailed
from tests.server.engine.ipc.running_client import PROMPT, tokens, wait_until
from tests.server.fakes import INFO
from tests.tiny_models import oracle

pytestmark = pytest.mark.asyncio(loop_scope="module")
KILLED = "the engine process was killed from outside (SIGKILL): out of memory?"
POISON, LOSES_DEVICE = 91, 92
"""First tokens of requests: one that fails, and one after which the device fails for good."""

ENGINE_ON_A_BAD_DEVICE = f"""
import sys
from server.engine.runner.runner import Runner
launch, lost = Runner.launch, []
def bad(self, batch):
    firsts = [chunk.seq.token_ids[0] for chunk in batch.chunks]
    lost.extend(first for first in firsts if first == {LOSES_DEVICE})
    if lost or {POISON} in firsts or sys.argv[3:]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return launch(self, batch)
Runner.launch = bad
from server.engine.__main__ import main
main(*map(int, sys.argv[1:3]))
"""


async def test_a_killed_engine_is_replaced_and_only_what_it_ran_is_lost(
    client: EngineClient,
    blobs: FileBlobStore,
    model: PreTrainedModel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    restarts = client.num_restarts
    running = [asyncio.create_task(tokens(client, None, PROMPT, 15_000)) for _ in range(4)]
    await wait_until(lambda: client.stats.num_running == 4)
    started_s = time.monotonic()

    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)
    lost = await asyncio.gather(*running, return_exceptions=True)

    assert [type(error) for error in lost] == [EngineUnavailable] * 4
    with pytest.raises(EngineUnavailable):
        client.submit(None, PROMPT, SamplingParams(max_tokens=1))
    assert client.heartbeat_age_s is None
    await wait_until(lambda: client.is_ready)
    assert time.monotonic() - started_s < 60
    assert client.num_restarts == restarts + 1
    assert await tokens(client, None, PROMPT) == oracle(model, PROMPT, None, 8)[0]
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == [f"{KILLED}; starting another one"]


async def test_the_kernel_takes_the_engine_before_the_api_process(client: EngineClient) -> None:
    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    assert client.pid is not None
    assert score(client.pid) >= min(1000, score(os.getpid()) + 200)


async def test_an_engine_killed_while_it_loads_is_a_clear_failure_to_start(
    make_client: Callable[..., EngineClient],
) -> None:
    client = make_client()
    starting = asyncio.create_task(client.start())
    await wait_until(lambda: client.pid is not None)
    assert client.pid is not None

    os.kill(client.pid, signal.SIGKILL)

    with pytest.raises(EngineUnavailable, match="out of memory"):
        await starting
    await client.stop(drain_timeout_s=0)


def on_a_bad_device(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    """Start later engines with a bad device. With a flag, no step runs on it at all."""
    start = asyncio.create_subprocess_exec

    def start_there(python: str, _m: str, _: str, *args: str, **options: Any) -> Any:
        return start(python, "-c", ENGINE_ON_A_BAD_DEVICE, *args, *flags, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_there)


async def test_an_engine_on_which_nothing_runs_is_a_clear_failure_to_start(
    make_client: Callable[..., EngineClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_bad_device(monkeypatch, "lost")
    client = make_client(attention="ref")

    with pytest.raises(EngineUnavailable, match="illegal memory access"):
        await client.start()
    await client.stop(drain_timeout_s=0)


async def test_an_engine_whose_device_is_lost_is_replaced_and_one_with_bad_requests_is_not(
    make_client: Callable[..., EngineClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_bad_device(monkeypatch)
    client = make_client(attention="ref")
    await client.start()
    for _ in range(6):
        with pytest.raises(StepFailed):
            await tokens(client, None, [POISON])
    assert client.num_restarts == 0
    assert len(await tokens(client, None, PROMPT)) == 8

    with pytest.raises(EngineUnavailable):
        await tokens(client, None, [LOSES_DEVICE])

    await wait_until(lambda: client.is_ready, timeout_s=60)
    assert client.num_restarts == 1
    assert len(await tokens(client, None, PROMPT)) == 8
    await client.stop(drain_timeout_s=1)


async def test_an_engine_that_hangs_is_replaced(
    make_client: Callable[..., EngineClient], caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client(hang_timeout_s=3.0)
    await client.start()
    stuck = client.pid
    assert stuck is not None

    os.kill(stuck, signal.SIGSTOP)

    await wait_until(lambda: client.is_ready and client.pid != stuck)
    assert len(await tokens(client, None, PROMPT)) == 8
    assert "no heartbeat" in caplog.text
    assert "out of memory" not in caplog.text  # the server killed it itself
    await client.stop(drain_timeout_s=1)


async def test_a_missing_model_is_a_clear_failure_to_start(
    make_client: Callable[..., EngineClient], tmp_path: Path
) -> None:
    client = make_client(model=str(tmp_path))

    with pytest.raises(EngineUnavailable, match=r"config\.json|model"):
        await client.start()
    await client.stop(drain_timeout_s=0)


async def test_where_no_process_can_be_started_the_client_keeps_trying(
    make_client: Callable[..., EngineClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_RESTART_DELAYS_S", (0.01,))
    monkeypatch.setattr(sys, "executable", "/missing")
    client = make_client()
    with pytest.raises(EngineUnavailable, match="No such file"):
        await client.start()
    await client.stop(drain_timeout_s=0)

    after_a_crash = make_client()
    after_a_crash._info = INFO
    after_a_crash._supervisor = asyncio.create_task(after_a_crash._supervise())
    await wait_until(lambda: after_a_crash.num_restarts > 2, timeout_s=10)
    await after_a_crash.stop(drain_timeout_s=0)


async def test_a_client_that_is_stopped_between_two_processes_starts_no_other(
    make_client: Callable[..., EngineClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until a process is ready there is nothing to drain, and the next one must not outlive it."""
    client = make_client(attention="ref")
    await client.start()
    ended = client.pid
    assert ended is not None
    monkeypatch.setattr(client_module, "_RESTART_DELAYS_S", (0.5,))

    os.kill(ended, signal.SIGKILL)
    await wait_until(lambda: not client.is_ready)
    await asyncio.wait_for(client.stop(drain_timeout_s=0), 30)

    assert client.pid == ended
    assert not client.is_ready
