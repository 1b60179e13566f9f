"""Tasks with random prefixes, uploaded in PEFT's format, as something to serve."""

from __future__ import annotations

import time
from typing import Any

import httpx
import numpy as np
from safetensors.numpy import save

MEDIA_TYPE = "application/vnd.safetensors"


def has_registry(client: httpx.Client) -> bool:
    """Return whether this is a Foreword server."""
    response = client.get("/info")
    return response.status_code == 200 and b'"fingerprint"' in response.content


def ensure(client: httpx.Client, num_tasks: int, num_tokens: int) -> list[str]:
    """Upload tasks with random prefixes of `num_tokens`, unless they exist. Return their names."""
    info = client.get("/info").raise_for_status().json()
    names = [f"bench-{num_tokens}-{i}" for i in range(num_tasks)]
    for i, name in enumerate(names):
        found = client.get(f"/tasks/{name}")
        if found.status_code == 404 or found.json()["active_version"] is None:
            upload(client, name, random_prefix(info, num_tokens, seed=i))
        else:
            found.raise_for_status()
    return names


def two_versions(
    client: httpx.Client, info: dict[str, Any], task: str, num_tokens: int
) -> tuple[int, int]:
    """Upload and activate a second version of a task. Return the version that was active before,
    and the new one. Both stay loaded, as nothing evicts them."""
    before: int = client.get(f"/tasks/{task}").raise_for_status().json()["active_version"]
    after = upload(client, task, random_prefix(info, num_tokens, seed=time.time_ns()))
    return before, after


def upload(client: httpx.Client, task: str, body: bytes) -> int:
    """Upload and activate a prefix. Return its version number."""
    headers = {"Content-Type": MEDIA_TYPE}
    response = client.put(f"/tasks/{task}/prefix", content=body, headers=headers)
    version: int = response.raise_for_status().json()["version"]
    return version


def random_prefix(info: dict[str, Any], num_tokens: int, seed: int) -> bytes:
    """Make keys and values of `num_tokens` virtual tokens for the geometry in `/info`, as
    safetensors."""
    num_columns = 2 * info["num_layers"] * info["num_kv_heads"] * info["head_dim"]
    values = np.random.default_rng(seed).standard_normal((num_tokens, num_columns), np.float32)
    return save({"prompt_embeddings": values})
