"""Versions to look at, pushed over HTTP."""

from __future__ import annotations

import httpx

from prefix_store import artifact
from tests.server.fakes import ARTIFACT, BASE, make_prefix

FINGERPRINT = BASE.fingerprint


def artifact_bytes(seed: int = 0, num_tokens: int = 3) -> bytes:
    """A prefix that fits the fake engine's model, as our own artifact."""
    return artifact.dump(make_prefix(seed, num_tokens=num_tokens, fingerprint=FINGERPRINT))


def push(http: httpx.Client, task: str, *seeds: int) -> None:
    """Push one version per seed. The first is active."""
    for seed in seeds:
        put = seed == seeds[0]
        path = f"/tasks/{task}/{'prefix' if put else 'versions'}"
        method = "PUT" if put else "POST"
        http.request(
            method, path, content=artifact_bytes(seed), headers=ARTIFACT
        ).raise_for_status()
