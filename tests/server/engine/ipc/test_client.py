"""The client with a real engine process: a tiny model and real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import save
from transformers import PreTrainedModel

from prefix_store import artifact
from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.digest import Digest
from server.engine.ipc.client import EngineClient
from server.engine.params import SamplingParams
from server.errors import CompileFailed, PrefixUnavailable
from tests.server.engine.ipc.running_client import PROMPT, random_artifact, tokens, wait_until
from tests.tiny_models import CONFIGS, oracle, random_prefix, spec_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


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


@pytest.mark.parametrize("attention", ["ref", "auto"])
async def test_a_repeated_prompt_is_served_from_the_prompt_cache_unless_it_is_disabled(
    make_client: Callable[..., EngineClient], model: PreTrainedModel, attention: str
) -> None:
    prompt = [*range(3, 60)]
    right = oracle(model, prompt, None, 8)[0]
    for on, num_cached_tokens in ((True, 48), (False, 0)):
        client = make_client(attention=attention, prompt_cache=on)
        await client.start()
        if client.info.attention == "cpu":  # a page holds a whole sequence
            num_cached_tokens = 0
        first = await tokens(client, None, prompt)
        stream = client.submit(None, prompt, SamplingParams(max_tokens=8, ignore_eos=True))
        deltas = [delta async for delta in stream]

        assert first == [token_id for delta in deltas for token_id in delta.token_ids] == right
        assert deltas[0].num_cached_tokens == num_cached_tokens
        if num_cached_tokens:
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
