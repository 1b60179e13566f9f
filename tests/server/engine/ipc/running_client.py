"""Helpers for tests with a real engine process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from prefix_store import artifact
from prefix_store.digest import Digest
from prefix_store.prefix import Prefix
from server.engine.ipc.client import EngineClient
from server.engine.params import SamplingParams
from tests.tiny_models import CONFIGS, random_prefix, spec_of

PROMPT = [5, 9, 14, 3, 77]


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
