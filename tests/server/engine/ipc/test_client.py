"""The client with a real engine process: a tiny model, real sockets, real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from safetensors.torch import save
from transformers import PreTrainedModel

from prefix_store import artifact
from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.digest import Digest
from prefix_store.prefix import Prefix
from server.engine.ipc.client import EngineClient
from server.engine.ipc.messages import EngineConfig
from server.engine.params import SamplingParams
from server.errors import CompileFailed, EngineUnavailable, PrefixUnavailable, StepFailed
from tests.tiny_models import CONFIGS, build_model, oracle, random_prefix, spec_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
PROMPT = [5, 9, 14, 3, 77]
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


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    made = build_model("llama", "eager")
    made.config.max_position_embeddings = 20_000  # room for requests that run for many seconds
    return made


@pytest.fixture(scope="module")
def model_dir(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> FileBlobStore:
    return FileBlobStore(tmp_path_factory.mktemp("blobs"))


@pytest.fixture(scope="module")
def make_client(
    model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., EngineClient]:
    def make(hang_timeout_s: float = 60.0, **config: object) -> EngineClient:
        root = tmp_path_factory.getbasetemp() / "blobs0"
        defaults: dict[str, object] = {
            "model": str(model_dir), "blobs": str(root), "dtype": "float32", "num_threads": 1,
            "max_num_seqs": 8, "kv_cache_bytes": 128 << 20,
        }  # fmt: skip
        settings = EngineConfig(**(defaults | config))
        return EngineClient(settings, start_timeout_s=60, hang_timeout_s=hang_timeout_s)

    return make


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(
    make_client: Callable[..., EngineClient], blobs: FileBlobStore
) -> AsyncIterator[EngineClient]:
    made = make_client()
    await made.start()
    yield made
    await made.stop(drain_timeout_s=1)


async def tokens(
    client: EngineClient, prefix: Digest | None, token_ids: list[int], max_tokens: int = 8
) -> list[int]:
    stream = client.submit(
        prefix, token_ids, SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    )
    return [token_id async for delta in stream for token_id in delta.token_ids]


async def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not become true in time"
        await asyncio.sleep(0.02)


def random_artifact(num_tokens: int, seed: int, fingerprint: str) -> bytes:
    keys, values = random_prefix(spec_of(CONFIGS["llama"]), num_tokens, seed).kv.unbind(1)
    return artifact.dump(
        Prefix(tuple(keys.unbind(0)), tuple(values.unbind(0)), num_tokens, fingerprint)
    )


async def test_concurrent_requests_of_many_tasks_match_the_reference(
    client: EngineClient, blobs: FileBlobStore, model: PreTrainedModel
) -> None:
    spec = spec_of(CONFIGS["llama"])
    digests = [blobs.put(random_artifact(n, n, client.info.fingerprint)) for n in (1, 5, 9, 12)]
    prefixes = [random_prefix(spec, n, n) for n in (1, 5, 9, 12)]

    got = await asyncio.gather(*(tokens(client, digests[i % 4], [*PROMPT, i]) for i in range(12)))

    for i in range(12):
        assert got[i] == oracle(model, [*PROMPT, i], prefixes[i % 4], 8)[0]


async def test_a_prefix_compiled_from_text_is_equivalent_to_the_text(client: EngineClient) -> None:
    compiled = await client.compile(token_ids=PROMPT, origin={"source_format": "text"})

    after_prefix = await tokens(client, Digest(compiled.digest), [7, 8])

    assert compiled.num_virtual_tokens == len(PROMPT)
    assert after_prefix == await tokens(client, None, [*PROMPT, 7, 8])


async def test_embeddings_compile_to_the_same_prefix_as_their_tokens(
    client: EngineClient, blobs: FileBlobStore, model: PreTrainedModel
) -> None:
    embeddings = model.get_input_embeddings()(torch.tensor(PROMPT)).detach()
    source = blobs.put(save({"embeddings": embeddings}))

    beside = asyncio.create_task(tokens(client, None, [3] * 20))
    by_embeddings = await client.compile(embeddings=source, origin={})
    by_tokens = await client.compile(token_ids=PROMPT, origin={})

    assert by_embeddings.num_virtual_tokens == by_tokens.num_virtual_tokens
    one, other = (artifact.read(blobs.get(Digest(c.digest))) for c in (by_embeddings, by_tokens))
    for got, expected in zip(one.keys + one.values, other.keys + other.values, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert await beside == oracle(model, [3] * 20, None, 8)[0]


async def test_a_prefix_or_soft_prompt_that_cannot_be_read_fails_alone(
    client: EngineClient, blobs: FileBlobStore
) -> None:
    missing = Digest.of(b"never put")
    with pytest.raises(PrefixUnavailable):
        await tokens(client, missing, PROMPT)
    with pytest.raises(PrefixUnavailable):
        await client.load(missing)
    with pytest.raises(CompileFailed):
        await client.compile(embeddings=blobs.put(b"no tensors here"), origin={})

    assert len(await tokens(client, None, PROMPT)) == 8


async def test_closing_a_stream_cancels_its_sequence(client: EngineClient) -> None:
    stream = client.submit(None, PROMPT, SamplingParams(max_tokens=15_000, ignore_eos=True))
    await anext(stream)
    await wait_until(lambda: client.stats.num_running == 1)

    stream.close()

    assert client.num_in_flight == 0
    await wait_until(lambda: client.stats.num_running == 0)
    assert client.stats.kv_pages_used == 0


async def test_a_prefix_is_resident_after_load_and_not_after_unload(
    client: EngineClient, blobs: FileBlobStore
) -> None:
    digest = blobs.put(random_artifact(3, 33, client.info.fingerprint))
    await client.load(digest)
    await wait_until(lambda: str(digest) in client.stats.prefixes_on_device)

    client.unload(digest)

    await wait_until(lambda: str(digest) not in client.stats.prefixes_on_device)
    assert str(digest) not in client.stats.prefixes_on_host


async def test_a_prefix_that_does_not_fit_beside_the_pins_fails_and_others_are_served(
    make_client: Callable[..., EngineClient], blobs: FileBlobStore
) -> None:
    num_bytes = spec_of(CONFIGS["llama"]).num_bytes_per_token
    client = make_client(device_prefix_bytes=128 * num_bytes, attention="ref")
    await client.start()
    pinned, large, small = (
        blobs.put(random_artifact(n, n, client.info.fingerprint)) for n in (60, 90, 20)
    )
    await client.pin(pinned)

    for call in (client.load(large), tokens(client, large, PROMPT), client.verify(large, PROMPT)):
        with pytest.raises(PrefixUnavailable, match="pinned"):
            await asyncio.wait_for(call, 20)

    for digest in (small, pinned):
        assert len(await asyncio.wait_for(tokens(client, digest, PROMPT), 20)) == 8
    client.unpin(pinned)
    await asyncio.wait_for(client.load(large), 20)
    await client.stop(drain_timeout_s=1)


async def test_a_damaged_prefix_is_refused_and_quarantined_and_can_be_put_again(
    client: EngineClient, blobs: FileBlobStore, model: PreTrainedModel
) -> None:
    data = random_artifact(4, 44, client.info.fingerprint)
    sound, digest = blobs.put(random_artifact(4, 45, client.info.fingerprint)), blobs.put(data)
    path = blobs._path(digest)
    for at in (0, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        beside = asyncio.create_task(tokens(client, sound, PROMPT))
        for call in (client.load(digest), tokens(client, digest, PROMPT)):
            with pytest.raises(PrefixUnavailable):
                await call
        assert len(await beside) == 8
        assert blobs.quarantined() == {digest}
        assert blobs.put(data) == digest
    assert len(await tokens(client, digest, PROMPT)) == 8


async def test_a_killed_engine_is_replaced_and_only_what_it_ran_is_lost(
    client: EngineClient, blobs: FileBlobStore, model: PreTrainedModel
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


async def test_an_engine_that_hangs_is_replaced(make_client: Callable[..., EngineClient]) -> None:
    client = make_client(hang_timeout_s=3.0)
    await client.start()
    stuck = client.pid
    assert stuck is not None

    os.kill(stuck, signal.SIGSTOP)

    await wait_until(lambda: client.is_ready and client.pid != stuck)
    assert len(await tokens(client, None, PROMPT)) == 8
    await client.stop(drain_timeout_s=1)


@pytest.mark.parametrize("attention", ["ref", "auto"])
async def test_a_repeated_prompt_is_served_from_the_prompt_cache_unless_it_is_disabled(
    make_client: Callable[..., EngineClient], model: PreTrainedModel, attention: str
) -> None:
    prompt = [*range(3, 60)]
    right = oracle(model, prompt, None, 8)[0]
    for on, num_reused in ((True, 48), (False, 0)):
        client = make_client(attention=attention, prompt_cache=on)
        await client.start()
        if client.info.attention == "cpu":  # a page holds a whole sequence
            num_reused = 0
        first = await tokens(client, None, prompt)
        stream = client.submit(None, prompt, SamplingParams(max_tokens=8, ignore_eos=True))
        deltas = [delta async for delta in stream]

        assert first == [token_id for delta in deltas for token_id in delta.token_ids] == right
        assert deltas[0].num_reused == num_reused
        if num_reused:
            await wait_until(lambda c=client: c.stats.num_cached_tokens == 48)  # type: ignore[misc]
            assert client.stats.kv_pages_used == 0
            assert client.stats.kv_pages_cached == 4
        await client.stop(drain_timeout_s=1)


async def test_a_drained_engine_finishes_its_requests(
    make_client: Callable[..., EngineClient],
) -> None:
    client = make_client(attention="ref")
    await client.start()
    running = asyncio.create_task(tokens(client, None, PROMPT, 50))
    await asyncio.sleep(0.05)

    await client.stop(drain_timeout_s=20)

    assert len(await running) == 50
    assert client.num_restarts == 0


async def test_a_missing_model_is_a_clear_failure_to_start(
    make_client: Callable[..., EngineClient], tmp_path: Path
) -> None:
    client = make_client(model=str(tmp_path))

    with pytest.raises(EngineUnavailable, match=r"config\.json|model"):
        await client.start()
    await client.stop(drain_timeout_s=0)
