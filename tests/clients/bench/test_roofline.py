"""The roofline's arithmetic, by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from foreword_bench.errors import BenchError
from foreword_bench.roofline import Model, Rates, Roofline, Shape, measure

MODEL = Model(900, 100, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)
SHAPE = Shape(
    num_requests=4, num_tasks=3, num_prefix_tokens=10, num_prompt_tokens=5, num_new_tokens=3
)


def test_bytes_and_flops_of_a_model() -> None:
    assert MODEL.weight_bytes == 2000
    assert MODEL.kv_bytes == 2 * 2 * 2 * 8 * 2
    assert MODEL.attention_flops(10) == 4 * 2 * 4 * 8 * 10


def test_a_step_is_bound_by_memory_or_by_arithmetic() -> None:
    # Weights once, 4 requests' own 6 tokens, 3 prefixes of 10 tokens, 128 bytes a token.
    num_bytes = 2000 + (4 * 6 + 3 * 10) * 128
    # Each of 4 tokens: 2 a weight, and attention to 16 tokens.
    num_flops = 4 * (2 * 1000 + 256 * 16)

    by_memory = Roofline(MODEL, Rates(copy=1, read=100, gemm=1e9))
    by_arithmetic = Roofline(MODEL, Rates(copy=1, read=1e9, gemm=100))

    assert by_memory.step_s(SHAPE, 6) == num_bytes / 100
    assert by_arithmetic.step_s(SHAPE, 6) == num_flops / 100


def test_a_wave_is_a_pass_over_the_prompts_and_a_step_for_each_further_token() -> None:
    roofline = Roofline(MODEL, Rates(copy=1, read=100, gemm=1e9))

    steps_s = [roofline.step_s(SHAPE, 6), roofline.step_s(SHAPE, 7)]

    assert roofline.prefill_s(SHAPE) == 2000 / 100
    assert roofline.mean_step_s(SHAPE) == sum(steps_s) / 2
    assert roofline.tok_s(SHAPE) == pytest.approx(4 * 3 / (20 + sum(steps_s)))


def test_prefill_computes_the_head_once_a_prompt() -> None:
    roofline = Roofline(MODEL, Rates(copy=1, read=1e9, gemm=100))

    a_token = 2 * 900 + 256 * (10 + 2.5)

    assert roofline.prefill_s(SHAPE) == 4 * (5 * a_token + 2 * 100) / 100


def test_no_task_has_no_prefix_and_a_step_reads_no_more_prefixes_than_requests() -> None:
    assert replace(SHAPE, num_tasks=0).num_prefix_seen == 0
    assert replace(SHAPE, num_tasks=0).num_prefix_read == 0
    assert replace(SHAPE, num_tasks=99).num_prefix_read == 40


@pytest.mark.parametrize("is_tied", [True, False])
def test_weights_are_those_that_are_multiplied_with(tmp_path: Path, is_tied: bool) -> None:
    tensors = {
        "model.embed_tokens.weight": np.zeros((10, 4), np.float32),
        "model.layers.0.mlp.weight": np.zeros((4, 6), np.float32),
        "model.norm.weight": np.zeros(4, np.float32),
    }
    if not is_tied:
        tensors["lm_head.weight"] = np.zeros((10, 4), np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    config = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))

    model = Model.load(tmp_path)

    assert (model.num_layer_weights, model.num_head_weights) == (24, 40)
    assert (model.num_kv_heads, model.head_dim) == (2, 2)


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"no config\.json"):
        Model.load(tmp_path)


def test_rates_are_measured() -> None:
    rates = measure(1, num_bytes=1 << 22, num_times=1, gemm_size=128)

    assert min(rates.copy, rates.read, rates.gemm) > 1e6
