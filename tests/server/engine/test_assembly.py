"""The engine that default settings assemble on a CPU, for Llama-like models and others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from msgspec.structs import replace
from torch import Tensor

from server.engine import assembly
from server.engine.assembly import Assembly, assemble, make_runner
from server.engine.attention.cpu import CpuBackend
from server.engine.attention.ref import RefBackend
from server.engine.ipc.messages import EngineConfig
from server.engine.model.families import UnsupportedModel
from server.engine.native.backend import NativeBackend
from server.engine.native.build import NativeUnavailable, library
from server.engine.params import SamplingParams
from server.engine.scheduler.page_allocator import PageAllocator
from server.engine.scheduler.scheduler import Scheduler
from server.engine.scheduler.sequence import Sequence
from tests import tiny_models
from tests.tiny_models import CONFIGS, EXPERTS, AlwaysReady, build_model, oracle

PROMPT = torch.randint(3, 97, (150,), generator=torch.Generator().manual_seed(0)).tolist()
NUM_NEW = 8


@pytest.mark.parametrize("has_wide_vectors", [True, False])
def test_auto_uses_the_compiled_layers_where_they_are_fast(
    has_wide_vectors: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        library()
    except NativeUnavailable as exc:
        pytest.skip(str(exc))
    monkeypatch.setattr(assembly, "has_wide_vectors", lambda: has_wide_vectors)
    build_model("llama", "eager").save_pretrained(tmp_path)

    backend = assemble(config_of(tmp_path)).backend

    assert isinstance(backend, NativeBackend) == has_wide_vectors


@pytest.mark.parametrize("family", [*CONFIGS, *EXPERTS])
def test_the_default_backend_computes_the_model(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Including models whose trial of the compiled layers fails."""
    monkeypatch.setattr(assembly, "has_wide_vectors", lambda: True)
    model = build_model(family, "eager")
    model.save_pretrained(tmp_path)
    config = config_of(tmp_path)

    tokens = generated(assemble(config), config)

    assert tokens == oracle(model, PROMPT, None, NUM_NEW)[0]


def config_of(folder: Path, **settings: Any) -> EngineConfig:
    return EngineConfig(
        model=str(folder), blobs=str(folder), device="cpu", dtype="float32",
        kv_cache_bytes=16 << 20, max_num_seqs=4, max_num_batched_tokens=64, num_threads=1,
        **settings,
    )  # fmt: skip


@pytest.mark.parametrize("attention", ["auto", "cpu", "ref"])
def test_a_family_that_a_backend_computes_wrongly_is_refused(
    attention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DiffLlama splits its heads after attention, which is not part of the interface."""
    monkeypatch.setitem(tiny_models.CONFIGS, "diffllama", T.DiffLlamaConfig(**tiny_models.GQA))
    build_model("diffllama", "eager").save_pretrained(tmp_path)

    with pytest.raises(UnsupportedModel, match="diffllama is not supported: its logits") as message:
        assemble(config_of(tmp_path, attention=attention))

    assert "\n" not in str(message.value)


@pytest.mark.parametrize("attention", ["cpu", "ref"])
@pytest.mark.parametrize("fault", ["scale", "prefix", "error"])
def test_a_faulty_backend_is_found_at_the_start(
    attention: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Controls of the comparison: without it, each of these would start."""
    build_model("gpt2", "eager").save_pretrained(tmp_path)
    backend = CpuBackend if attention == "cpu" else RefBackend
    attend = backend.attend

    def faulty(self: Any, layer: int, q: Tensor, *args: Any) -> Tensor:
        if fault == "error":
            raise RuntimeError("no kernel for this")
        return attend(self, layer, q * 1.01 if fault == "scale" else q, *args)

    monkeypatch.setattr(backend, "attend", faulty)
    if fault == "prefix":
        monkeypatch.setattr(assembly, "_unchanged", torch.zeros_like)
    with pytest.raises(UnsupportedModel, match=r"differ|no kernel for this"):
        assemble(config_of(tmp_path, attention=attention))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral"])
def test_rounding_of_the_dtype_is_accepted(family: str, dtype: str, tmp_path: Path) -> None:
    build_model(family, "eager").save_pretrained(tmp_path)

    assert assemble(replace(config_of(tmp_path), dtype=dtype)).loaded.spec.dtype == dtype


# --- the end of the context ---

LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8,
    "long_factor": [1.0 + 4 * i for i in range(8)],
}  # fmt: skip


@pytest.mark.parametrize("wanted", [None, 200])
def test_the_context_ends_before_a_long_request_changes_a_short_one(
    wanted: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    phi3 = T.Phi3Config(
        **tiny_models.GQA, rope_parameters=LONGROPE, original_max_position_embeddings=48
    )
    monkeypatch.setitem(tiny_models.CONFIGS, "phi3", phi3)
    model = build_model("phi3", "eager")
    model.save_pretrained(tmp_path)
    config = config_of(tmp_path, max_model_len=wanted)

    parts = assemble(config)

    assert parts.size.max_model_len == 48
    assert "max_model_len is at most 48" in caplog.text
    prompts = [PROMPT[:6], PROMPT[: 48 - NUM_NEW]]
    alone = [oracle(model, prompt, None, NUM_NEW)[0] for prompt in prompts]
    assert all_generated(parts, config, prompts) == alone


def test_attention_scaled_per_token_needs_no_shorter_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ministral 3 scales attention after its original context; the compiled layers do not."""
    rope = {
        "rope_type": "default", "rope_theta": 10000.0, "llama_4_scaling_beta": 0.5,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    ministral = T.Ministral3Config(
        **tiny_models.GQA, head_dim=16, rope_parameters=rope, sliding_window=None
    )
    monkeypatch.setitem(tiny_models.CONFIGS, "ministral3", ministral)
    model = build_model("ministral3", "eager")
    model.save_pretrained(tmp_path)
    config = config_of(tmp_path)

    parts = assemble(config)

    assert (parts.size.max_model_len, parts.backend.name) == (256, "cpu")
    prompts = [PROMPT[:6], PROMPT]
    alone = [oracle(model, prompt, None, NUM_NEW)[0] for prompt in prompts]
    assert all_generated(parts, config, prompts) == alone


def generated(parts: Assembly, config: EngineConfig) -> list[int]:
    return all_generated(parts, config, [PROMPT])[0]


def all_generated(
    parts: Assembly, config: EngineConfig, prompts: list[list[int]]
) -> list[list[int]]:
    """Generate from all prompts in one batch, with long ones in chunks."""
    runner = make_runner(parts, config, {}.__getitem__)
    allocator = PageAllocator(parts.size.num_pages, parts.size.page_size)
    scheduler = Scheduler(
        allocator, AlwaysReady(), max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens, eos_token_ids=[],
    )  # fmt: skip
    sampling = SamplingParams(max_tokens=NUM_NEW, ignore_eos=True)
    for i, prompt in enumerate(prompts):
        scheduler.add(Sequence(i, None, list(prompt), sampling))
    tokens: list[list[int]] = [[] for _ in prompts]
    for _ in range(100):
        if not scheduler.has_work:
            break
        batch = scheduler.schedule()
        for delta in scheduler.commit(batch, runner.launch(batch).tokens()):
            tokens[delta.request_id] += delta.token_ids
    return tokens
