"""Random trained prefixes, uploaded as what PEFT saves, so that a server has something to serve."""

from __future__ import annotations

import httpx
import numpy as np
from safetensors.numpy import save


def upload_random(url: str, num_tasks: int, num_tokens: int) -> list[str]:
    """Make the tasks `bench-0`, `bench-1`, ...; returns their names."""
    names = [f"bench-{i}" for i in range(num_tasks)]
    with httpx.Client(base_url=url, timeout=120) as client:
        geometry = client.get("/info").raise_for_status().json()
        num_columns = 2 * geometry["num_layers"] * geometry["num_kv_heads"] * geometry["head_dim"]
        for i, name in enumerate(names):
            values = np.random.default_rng(i).standard_normal((num_tokens, num_columns), np.float32)
            body = save({"prompt_embeddings": values})
            headers = {"Content-Type": "application/vnd.safetensors"}
            client.put(f"/tasks/{name}/prefix", content=body, headers=headers).raise_for_status()
    return names
