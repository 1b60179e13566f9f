"""What a resident task takes, and that a thousand swaps take nothing."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from safetensors.numpy import save

from tests.running_server import RunningServer, running_server
from tests.small_model import save_small_model

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc"),
]

logger = logging.getLogger(__name__)

NUM_SWAPS = int(os.environ.get("NUM_SWAPS", "80"))
NUM_TOKENS = 70  # a little over four pages
BUDGET = 32 << 20


@pytest.fixture(scope="module")
def small_budget(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningServer]:
    """With a small model whose prefixes are large: 1.7 MB each."""
    folder = tmp_path_factory.mktemp("memory")
    model = save_small_model(folder / "model", num_layers=6, head_dim=256, max_len=4096)
    budgets = ["--device-prefix-bytes", str(BUDGET), "--host-prefix-bytes", str(BUDGET)]
    flags = ("--dtype", "float32", "--num-threads", "1", "--kv-cache-bytes", str(128 << 20))
    with running_server(model, folder / "store", *flags, *budgets) as running:
        yield running


def upload(client: httpx.Client, task: str, seed: int) -> None:
    """A random prefix, as PEFT saves it."""
    info = client.get("/info").raise_for_status().json()
    num_columns = 2 * info["num_layers"] * info["num_kv_heads"] * info["head_dim"]
    values = np.random.default_rng(seed).standard_normal((NUM_TOKENS, num_columns), np.float32)
    client.put(
        f"/tasks/{task}/prefix",
        content=save({"prompt_embeddings": values}),
        headers={"Content-Type": "application/vnd.safetensors"},
    ).raise_for_status()


def generate(client: httpx.Client, task: str) -> None:
    body = {"prompt": "Hello", "max_tokens": 2, "ignore_eos": True}
    client.post("/generate", params={"task": task}, json=body).raise_for_status()


def gauge(client: httpx.Client, name: str) -> float:
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name:
                return sample.value
    raise LookupError(name)


def test_a_resident_task_takes_its_prefix_and_at_most_a_page_more(
    small_budget: RunningServer,
) -> None:
    with httpx.Client(base_url=small_budget.url, timeout=60) as client:
        info = client.get("/info").json()
        upload(client, "sized", seed=1)
        generate(client, "sized")
        wait_for_heartbeat()
        num_bytes = gauge(client, "foreword_engine_prefix_device_bytes")
        num_prefixes = gauge(client, "foreword_engine_prefixes_on_device")

    token = 2 * info["num_layers"] * info["num_kv_heads"] * info["head_dim"] * 4
    assert num_prefixes == 1
    assert NUM_TOKENS * token <= num_bytes < (NUM_TOKENS + 16) * token


def test_swaps_leave_nothing_in_the_engine(small_budget: RunningServer) -> None:
    """Keeping one prefix for each swap would take three times what is allowed here."""
    sizes = []
    with httpx.Client(base_url=small_budget.url, timeout=60) as client:
        for i in range(NUM_SWAPS):
            upload(client, "swapped", seed=i)
            generate(client, "swapped")
            if i % (NUM_SWAPS // 10) == 0:
                sizes.append(resident_bytes(small_budget.engine_pid()))
    logger.info("MiB over %d swaps: %s", NUM_SWAPS, [size >> 20 for size in sizes])

    after_warm_up = sizes[3:]
    assert max(after_warm_up) - min(after_warm_up) < 24 << 20


def wait_for_heartbeat() -> None:
    """The engine tells its figures once a second."""
    time.sleep(1.5)


def resident_bytes(pid: int) -> int:
    num_pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return num_pages * os.sysconf("SC_PAGE_SIZE")
