"""The compiled layers against transformers' own, over families, prefixes, chunks and threads."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as T
from torch import nn
from transformers import PreTrainedModel

from prefix_store.prefix import BaseModelSpec
from server.engine.attention.base import Span, Step
from server.engine.memory.prefix import ResidentPrefix
from server.engine.native import backend as native
from server.engine.native import layers
from server.engine.native.backend import PAGE_SIZE, NativeBackend, install
from server.engine.native.blocks import BlockPool, from_blocks, to_blocks
from server.engine.native.build import NativeUnavailable, library
from server.engine.native.layers import NativeLinear, NotLlamaLike, ThreadTeam
from tests import tiny_models
from tests.tiny_models import Engine, build_model, make_engine, oracle, random_prefix

ATOL = 2e-5
ATOL_OF_FLOAT64 = 3e-5
"""Of logits up to 6. On a processor where transformers in float32 is off by 1.2e-5, the compiled
layers are by 1.8e-5, and the two differ by 2.4e-5."""
NUM_NEW = 20  # over the end of a block

_SIZES = {
    "vocab_size": 97, "hidden_size": 96, "intermediate_size": 112, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "wide-llama": T.LlamaConfig(**_SIZES, attention_bias=True),
    "wide-qwen3": T.Qwen3Config(**_SIZES, head_dim=32),
    "qwen2": T.Qwen2Config(**_SIZES),
    "llama3-rope": T.LlamaConfig(
        **_SIZES,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        },
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _families(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, config in FAMILIES.items():
        monkeypatch.setitem(tiny_models.CONFIGS, name, config)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    try:
        library()
    except NativeUnavailable as exc:
        pytest.skip(str(exc))


def spec_of(model: PreTrainedModel) -> BaseModelSpec:
    return tiny_models.spec_of(model.config)


def spec_of_config(config: T.PretrainedConfig) -> BaseModelSpec:
    return tiny_models.spec_of(config)


def prefixes_for(spec: BaseModelSpec) -> list[ResidentPrefix | None]:
    """The longest is worked on in several chunks."""
    return [
        None,
        *(random_prefix(spec, num_tokens, seed=num_tokens) for num_tokens in (1, 16, 300)),
    ]


def in_blocks(prefix: ResidentPrefix | None) -> ResidentPrefix | None:
    if prefix is None:
        return None
    return ResidentPrefix(to_blocks(prefix.kv), prefix.position_offset, prefix.num_tokens)


def in_float64(prefix: ResidentPrefix | None) -> ResidentPrefix | None:
    return prefix and replace(prefix, kv=prefix.kv.double())


def prompt(seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 97, (1 + seed * 7 % 30,), generator=generator).tolist()


def native_engine(
    family: str, num_threads: int, max_num_batched_tokens: int = 24, *, int8: bool = False
) -> Engine:
    model = build_model(family, "foreword")
    backend = install(model, spec_of(model), num_threads, int8=int8)
    engine = make_engine(
        model, backend, page_size=PAGE_SIZE, num_pages=60,
        max_num_batched_tokens=max_num_batched_tokens,
    )  # fmt: skip
    engine.runner.bare_forward = backend.bare_forward
    engine.pool = BlockPool(spec_of(model), num_pages=60, page_size=PAGE_SIZE, device="cpu")
    backend.allocate(engine.pool)
    return engine


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("family", ["llama", "mistral", *FAMILIES])
def test_a_mixed_batch_with_chunked_prefill_equals_each_sequence_alone(
    family: str, num_threads: int
) -> None:
    engine, reference = native_engine(family, num_threads), build_model(family, "eager").double()
    prefixes = prefixes_for(spec_of(reference))
    resident = [in_blocks(prefix) for prefix in prefixes]
    for i in range(13):
        engine.add(i, prompt(i), resident[i % 4], NUM_NEW)

    tokens = engine.run()

    for i in range(13):
        expected = oracle(reference, prompt(i), in_float64(prefixes[i % 4]), NUM_NEW)
        expected_tokens, expected_logits = expected
        got = torch.stack(engine.runner.logits[i]).double()
        torch.testing.assert_close(got, expected_logits, atol=ATOL_OF_FLOAT64, rtol=0)
        assert tokens[i] == expected_tokens


def test_the_direct_forward_is_taken_only_where_the_model_does_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_model("llama", "foreword")
    forward = type(model).forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits * 0.5
        return output

    assert install(model, spec_of(model), 1).bare_forward is not None
    monkeypatch.setattr(type(model), "forward", scaled)
    model = build_model("llama", "foreword")
    assert install(model, spec_of(model), 1).bare_forward is None


def test_another_tasks_prefix_gives_other_logits() -> None:
    """The control of the test above."""
    engine, reference = native_engine("llama", 1), build_model("llama", "eager")
    _, one, _, other = prefixes_for(spec_of(reference))
    engine.add(0, prompt(5), in_blocks(one), 1)

    engine.run()

    _, expected = oracle(reference, prompt(5), other, 1)
    assert (engine.runner.logits[0][0] - expected[0]).abs().max() > 100 * ATOL


def test_what_earlier_sequences_left_in_the_pool_changes_nothing() -> None:
    engine, clean = native_engine("llama", 1), native_engine("llama", 1)
    engine.pool.pages.fill_(torch.nan)
    for i in range(4):
        for each in (engine, clean):
            each.add(i, prompt(i), None, NUM_NEW)

    assert engine.run() == clean.run()


def test_bfloat16_is_as_close_to_float32_as_transformers_own() -> None:
    exact = build_model("wide-llama", "eager")
    own = copy.deepcopy(exact).to(torch.bfloat16)
    model = build_model("wide-llama", "foreword").to(torch.bfloat16)
    try:
        backend = install(model, _bfloat16(spec_of(model)), 1)
    except NativeUnavailable as exc:
        pytest.skip(str(exc))
    pool = BlockPool(_bfloat16(spec_of(model)), num_pages=4, page_size=PAGE_SIZE, device="cpu")
    backend.allocate(pool)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected = exact(ids).logits
        error_of_own = (own(ids).logits.float() - expected).norm()
        got = _forward(model, backend, ids)

    assert (got.float() - expected).norm() < 1.5 * error_of_own


def _bfloat16(spec: BaseModelSpec) -> BaseModelSpec:
    return BaseModelSpec(
        spec.name, spec.fingerprint, spec.num_layers, spec.num_kv_heads, spec.head_dim,
        spec.hidden_size, "bfloat16",
    )  # fmt: skip


def _forward(model: PreTrainedModel, backend: NativeBackend, ids: torch.Tensor) -> torch.Tensor:
    num_tokens = ids.shape[1]
    rows = torch.arange(num_tokens)
    spans = [Span(0, 0, num_tokens, 0, [0, 1, 2], None)]
    backend.plan(Step(ids, rows[None], rows, spans, []))
    logits: torch.Tensor = model(input_ids=ids, position_ids=rows[None], use_cache=False).logits
    return logits


@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma2", "gemma3", "qwen3"])
def test_other_families_keep_their_own_layers(family: str) -> None:
    model = build_model(family, "foreword")
    before = [type(module) for module in model.modules()]

    with pytest.raises(NotLlamaLike):
        install(model, spec_of(model), 1)

    assert [type(module) for module in model.modules()] == before


OTHERWISE = {
    # Angles of a quarter of a head, where the compiled layers would read those of all of it.
    "partial-rotary": T.StableLmConfig(
        **_SIZES | {"hidden_size": 192, "num_attention_heads": 6}, head_dim=32,
        partial_rotary_factor=0.25,
    ),
    # Layers with experts and no `mlp`.
    "experts": T.GraniteMoeConfig(**_SIZES, num_local_experts=4, num_experts_per_tok=2),
}  # fmt: skip


@pytest.mark.parametrize("family", OTHERWISE)
def test_what_is_built_otherwise_is_seen_before_it_is_read(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiny_models.CONFIGS, family, OTHERWISE[family])
    model = build_model(family, "foreword")
    before = [type(module) for module in model.modules()]
    reached: list[str] = []
    layers_of = layers.NativeLayers.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        hidden = layers_of(self, *args, **kwargs)
        reached.append("the compiled call")
        return hidden

    monkeypatch.setattr(layers.NativeLayers, "forward", forward)
    with pytest.raises(NotLlamaLike, match=r"rotates 8 of 32|no mlp"):
        install(model, spec_of(model), 1)

    assert not reached
    assert [type(module) for module in model.modules()] == before


def test_an_error_of_any_kind_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        raise KeyError("no such angles")

    monkeypatch.setattr(layers.NativeLayers, "forward", fail)
    model = build_model("llama", "foreword")
    before = [type(module) for module in model.modules()]

    with pytest.raises(NotLlamaLike, match="KeyError: 'no such angles'"):
        install(model, spec_of(model), 1)

    assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize("is_said", [True, False])
def test_layers_are_also_tried_near_the_end_of_the_context(
    is_said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ministral 3 scales queries from its original context on: there the compiled layers differ.
    They would also if its config did not say so."""
    rope = {
        "rope_type": "default", "rope_theta": 10000.0, "llama_4_scaling_beta": 0.5,
        "original_max_position_embeddings": 128,
    }  # fmt: skip
    config = T.Ministral3Config(**_SIZES, head_dim=16, rope_parameters=rope, sliding_window=None)
    monkeypatch.setitem(tiny_models.CONFIGS, "ministral3", config)
    if not is_said:
        monkeypatch.setattr(native, "_check_scaling", lambda *_: None)

    install(build_model("ministral3", "foreword"), spec_of_config(config), 1, max_model_len=128)
    said = "from position 128 on" if is_said else "logits differ"
    with pytest.raises(NotLlamaLike, match=said):
        install(build_model("ministral3", "foreword"), spec_of_config(config), 1, max_model_len=256)


def test_layers_that_compute_something_else_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control of the check at the start: gate and up exchanged."""
    in_turn = layers._in_turn
    monkeypatch.setattr(layers, "_in_turn", lambda weights: in_turn(weights[::-1]))
    model = build_model("llama", "foreword")

    with pytest.raises(NotLlamaLike, match="logits differ"):
        install(model, spec_of(model), 1)

    assert type(model.lm_head) is nn.Linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 7, 8, 16, 17, 33, 70])
def test_a_linear_of_any_size_equals_torchs(num_rows: int, dtype: torch.dtype) -> None:
    team = ThreadTeam(2)
    if not team.supports(dtype):
        pytest.skip(f"this processor does not multiply {dtype}")
    torch.manual_seed(num_rows)
    for in_features, out_features in ((64, 96), (70, 33), (96, 48)):
        linear = nn.Linear(in_features, out_features).to(dtype)
        x = torch.randn(1, num_rows, in_features, dtype=dtype)
        with torch.inference_mode():
            expected, got = linear(x).float(), NativeLinear(linear, team)(x).float()
        tolerance = 1e-5 if dtype is torch.float32 else 0.02
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 16, 37])
def test_blocks_come_back_as_they_were(num_tokens: int, dtype: torch.dtype) -> None:
    kv = torch.randn(3, 2, 2, num_tokens, 32).to(dtype)

    assert torch.equal(from_blocks(to_blocks(kv), num_tokens), kv)


@pytest.mark.parametrize("num_rows", [1, 3, 8, 21])
def test_integers_of_eight_bits_multiply_as_the_rounded_weights_do(num_rows: int) -> None:
    torch.manual_seed(num_rows)
    linear = nn.Linear(96, 112)
    scales = linear.weight.abs().amax(1, keepdim=True) / 127
    rounded = (linear.weight / scales).round() * scales
    x = torch.randn(1, num_rows, 96)
    native = NativeLinear(linear, ThreadTeam(2), int8=True)

    expected = torch.nn.functional.linear(x, rounded, linear.bias)

    torch.testing.assert_close(native(x), expected, atol=1e-5, rtol=0)
    exact = torch.nn.functional.linear(x, linear.weight, linear.bias)
    assert not torch.allclose(native(x), exact, atol=1e-5, rtol=0)


def test_a_model_of_eight_bit_integers_is_the_model_with_rounded_weights() -> None:
    engine = native_engine("llama", 2, int8=True)
    reference = build_model("llama", "eager")
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            if name.endswith("_proj.weight") or name == "lm_head.weight":
                scales = weight.abs().amax(1, keepdim=True) / 127
                weight.copy_((weight / scales).round() * scales)
    engine.add(0, prompt(2), None, NUM_NEW)

    tokens = engine.run()

    expected_tokens, expected_logits = oracle(reference, prompt(2), None, NUM_NEW)
    torch.testing.assert_close(
        torch.stack(engine.runner.logits[0]), expected_logits, atol=ATOL, rtol=0
    )
    assert tokens[0] == expected_tokens
