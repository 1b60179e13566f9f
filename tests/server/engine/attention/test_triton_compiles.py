"""The kernels compile for an H100 with the arguments of a real launch. This needs no GPU.

A process can use Triton either as an interpreter or as a compiler, so a second process, which runs
this file as a script, compiles.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

ROOT = Path(__file__).parents[4]
SHARED_MEMORY = 227 * 1024
MODELS: dict[str, dict[str, Any]] = {
    "8b": {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128},
    "135m": {"num_heads": 9, "num_kv_heads": 3, "head_dim": 64},
    "gemma": {"num_heads": 8, "num_kv_heads": 4, "head_dim": 256, "window": 512, "softcap": 50.0},
    "float32": {
        "num_heads": 8,
        "num_kv_heads": 8,
        "head_dim": 80,
        "has_sinks": True,
        "dtype": "float32",
    },
}


def test_the_kernels_compile_for_an_h100(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": path}
    env.pop("TRITON_INTERPRET", None)
    command = [sys.executable, __file__]

    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)

    assert result.returncode == 0, result.stderr
    kernels = json.loads(result.stdout.splitlines()[-1])
    attention = ["write_kv", "attend_items", "attend_items", "merge_parts"]
    fused = ["rms_norm", "gate", "gate", "rotate", "rotate"]
    assert [kernel["name"] for kernel in kernels] == len(MODELS) * [*attention, *fused]
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_MEMORY
        if kernel["name"] == "attend_items":  # keys and values are loaded 16 bytes at a time
            assert kernel["wide_copies"] >= 8


def compile_instead(fn: Any, compiled: list[dict[str, Any]]) -> Any:
    """Return a stand-in for the kernel `fn` that compiles instead of launching."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {torch.int32: "i32", torch.int64: "i64", torch.float32: "fp32", torch.bfloat16: "bf16"}

    def launch(*args: Any, **kwargs: Any) -> None:
        given = dict(zip(fn.arg_names, args, strict=False)) | kwargs
        values = {name: given.pop(name) for name in fn.arg_names}
        signature, constants, attributes = {}, {}, {}
        for i, (parameter, (name, value)) in enumerate(zip(fn.params, values.items(), strict=True)):
            if parameter.is_constexpr:
                signature[name], constants[(i,)] = "constexpr", value
                continue
            is_tensor = isinstance(value, torch.Tensor)
            signature[name] = f"*{types[value.dtype]}" if is_tensor else "i32"
            if isinstance(value, float):
                signature[name] = "fp32"
            elif (value.data_ptr() if is_tensor else value) % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        source = ASTSource(fn, signature, constants, attributes)
        binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=given)
        wide = len(re.findall(r"cp\.async\.cg\.shared\.global[^;]*, 0x10, ", binary.asm["ptx"]))
        compiled.append(
            {"name": fn.__name__, "shared": binary.metadata.shared, "wide_copies": wide}
        )

    class Kernel:
        def __getitem__(self, grid: object) -> Callable[..., None]:
            return launch

    return Kernel()


def launch_all(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    window: int | None = None,
    softcap: float | None = None,
    has_sinks: bool = False,
    dtype: str = "bfloat16",
) -> None:
    """Run attention over one layer, then each fused module."""
    from prefix_store.prefix import BaseModelSpec
    from server.engine.attention import triton
    from server.engine.attention.base import AttentionCall, BatchCapacity
    from server.engine.memory.kv_pool import KvPool
    from server.engine.model import fuse

    spec = BaseModelSpec("x", "sha256:" + "0" * 64, 2, num_kv_heads, head_dim, 64, dtype)
    backend = triton.TritonBackend()
    backend.allocate(
        KvPool(spec, num_pages=2, page_size=16, device="cpu"), BatchCapacity(num_heads)
    )
    query, key = (
        torch.zeros(1, 8, heads, head_dim, dtype=getattr(torch, dtype)).transpose(1, 2)
        for heads in (num_heads, num_kv_heads)
    )
    sinks = query[0, :, 0, 0].contiguous() if has_sinks else None
    call = AttentionCall(head_dim**-0.5, window, softcap, sinks)
    backend.attend(1, query[0], key[0], key[0], call)
    norm = torch.nn.RMSNorm(num_heads * head_dim, eps=1e-6, dtype=query.dtype)
    x = torch.zeros(1, 8, num_heads * head_dim, dtype=query.dtype)
    fuse.RmsNorm(norm, 1.0)(x)
    for is_gelu in (False, True):
        linears = [torch.nn.Linear(x.shape[-1], 256, dtype=x.dtype) for _ in range(2)]
        mlp: Any = SimpleNamespace(
            gate_proj=linears[0], up_proj=linears[1], down_proj=torch.nn.Identity()
        )
        fuse.GatedMlp(mlp, is_gelu=is_gelu)(x)
    cos = torch.zeros(1, 8, head_dim, dtype=query.dtype)
    fuse.Rotary(lambda *args: args)(query, query, cos, cos)


def main() -> None:
    from server.engine.attention import triton_kernels
    from server.engine.model import fuse_kernels

    compiled: list[dict[str, Any]] = []
    for module, names in (
        (triton_kernels, ("write_kv", "attend_items", "merge_parts")),
        (fuse_kernels, ("rms_norm", "gate", "rotate")),
    ):
        for name in names:
            setattr(module, name, compile_instead(getattr(module, name), compiled))
    for model in MODELS.values():
        launch_all(**model)
    print(json.dumps(compiled))  # noqa: T201


if __name__ == "__main__":
    main()
