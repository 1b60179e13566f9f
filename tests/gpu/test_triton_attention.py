"""Compiled attention on the device, against the oracle, the interpreter, and its own replay."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

import triton

from server.engine.attention.ref import RefBackend
from server.engine.attention.triton import TritonBackend
from tests.attention_cases import CASES, Attention, Case, Tasks, attend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

ROOT = Path(__file__).parents[2]
MIXED: Tasks = (
    (64, [(1, 31 * i) for i in range(12)]),
    (1024, [(300, 0), *((1, 17 * i) for i in range(20))]),
    (3000, [(1, 500), (100, 77), (1, 1999)]),
    (0, [(1, 1), (64, 64)]),
)
MODELS = {
    "8b": Case(group=4, num_kv_heads=8, head_dim=128, tasks=MIXED),
    "135m": Case(group=3, num_kv_heads=3, head_dim=64, tasks=MIXED),
    "gemma": Case(group=2, num_kv_heads=4, head_dim=256, window=512, softcap=50.0, tasks=MIXED),
    "sinks": Case(group=8, num_kv_heads=8, head_dim=64, window=128, has_sinks=True, tasks=MIXED),
    "mha": Case(group=1, num_kv_heads=32, head_dim=80, tasks=MIXED),
    "one_row": Case(group=4, num_kv_heads=8, head_dim=128, tasks=((8192, [(1, 1000)]),)),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("model", MODELS)
def test_output_and_pool_equal_the_oracles(model: str, dtype: str) -> None:
    case = replace(MODELS[model], dtype=dtype, page_size=16)
    attention = Attention(case)
    expected, expected_pool = attention.run(RefBackend())

    got, pool = attention.run(TritonBackend())

    error = (got - expected).norm() / expected.norm()
    assert error < {"bfloat16": 1e-2, "float16": 2e-3}[dtype]
    torch.testing.assert_close(pool, expected_pool, atol=0, rtol=0, equal_nan=True)


def test_the_compiled_kernels_equal_the_interpreted_ones(tmp_path: Path) -> None:
    if triton.__version__ < "3.7" and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("the interpreter of this Triton needs an older numpy")
    env = os.environ | {
        "TRITON_INTERPRET": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    path = tmp_path / "interpreted.pt"
    subprocess.run([sys.executable, __file__, str(path)], env=env, check=True, timeout=110)
    interpreted = torch.load(path)

    for name, case in CASES.items():
        compiled, _ = Attention(case).run(TritonBackend(min_keys=case.min_keys))
        atol = 1e-5 if case.dtype == "float32" else 2e-3
        torch.testing.assert_close(compiled.cpu(), interpreted[name], atol=atol, rtol=0)


def test_one_capture_replays_every_step() -> None:
    """Steps are queued one after another without waiting: each must see its own work list."""
    num_rows = 32
    chunks = [[(1, 3 * i) for i in range(n)] for n in (1, 7, 32)]
    steps = [Attention(Case(tasks=((40, rows),), page_size=16)) for rows in chunks]
    expected = [steps[i].run(TritonBackend(), num_rows)[0] for i in range(3)]
    largest, backend = steps[-1], TritonBackend()
    pool = largest.pool()
    backend.allocate(pool, largest.case.capacity)
    query, key, value = (
        torch.zeros_like(torch.cat([x] * num_rows, dim=1)[:, :num_rows])
        for x in (steps[0].query, steps[0].key, steps[0].value)
    )
    static = Attention(Case(tasks=((0, [(num_rows, 0)]),), page_size=16))
    static.query, static.key, static.value = query, key, value
    attend(static, backend, num_rows)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend(static, backend, num_rows)

    got = []
    for step in steps * 3:
        before = step.pool_before_the_step().pages
        pool.pages[: len(before)].copy_(before)
        backend.plan(step.step)
        for buffer, rows in ((query, step.query), (key, step.key), (value, step.value)):
            buffer[:, : step.num_rows] = rows
        graph.replay()
        got.append(out.clone())

    for i, replayed in enumerate(got):
        torch.testing.assert_close(replayed, expected[i % 3], atol=0, rtol=0)


def interpret(path: str) -> None:
    outputs = {
        name: Attention(case).run(TritonBackend(min_keys=case.min_keys))[0]
        for name, case in CASES.items()
    }
    torch.save(outputs, path)


if __name__ == "__main__":
    interpret(sys.argv[1])
