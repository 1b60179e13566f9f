from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefix_store.prefix import BaseModelSpec
from server.engine.ipc.messages import EngineConfig
from server.engine.sizing import (
    Budget,
    Sizes,
    activation_bytes,
    choose_device,
    choose_dtype,
    cpu_budget,
    cuda_budget,
    sizes,
)
from tests.server.engine.scheduler_setup import make_scheduler, sequence, step

SPEC = BaseModelSpec("tiny", "sha256:" + "0" * 64, 2, 1, 8, 16, "float32")
GIB = 1 << 30
NUM_BYTES = SPEC.num_bytes_per_token


def sized(*, paged: bool, **config: int) -> Sizes:
    loaded = SimpleNamespace(spec=SPEC, max_positions=1024)
    made = EngineConfig(model="m", blobs="b", **config)
    return sizes(made, loaded, cpu_budget(made).kv, paged=paged)


def test_a_token_needs_keys_and_values_in_every_layer() -> None:
    assert NUM_BYTES == 2 * 2 * 1 * 8 * 4


def test_slabs_share_the_budget_up_to_the_models_context() -> None:
    small = sized(paged=False, kv_cache_bytes=100 * NUM_BYTES * 4, max_num_seqs=4)
    large = sized(paged=False, kv_cache_bytes=9999 * NUM_BYTES * 4, max_num_seqs=4)

    assert small == Sizes(max_model_len=96, num_pages=4, page_size=96)
    assert large == Sizes(max_model_len=1024, num_pages=4, page_size=1024)


def test_pages_hold_the_longest_sequence() -> None:
    size = sized(paged=True, kv_cache_bytes=2000 * NUM_BYTES, max_num_seqs=4)

    assert size == Sizes(max_model_len=1024, num_pages=125, page_size=16)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_model_len": 2048}, "1024 positions"),
        ({"max_model_len": 512, "kv_cache_bytes": 100 * NUM_BYTES}, "raise kv_cache_bytes"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_numbers(
    config: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sized(paged=False, **config)


def test_a_context_limited_by_the_pool_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    size = sized(paged=True, kv_cache_bytes=1000 * NUM_BYTES)

    assert size.max_model_len == 992
    assert "992 of the model's 1024 positions" in caplog.text


@given(
    num_tokens=st.integers(1, 2200),
    max_model_len=st.none() | st.integers(16, 1024),
    max_num_seqs=st.integers(1, 4),
    paged=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_whatever_is_admitted_finds_room(
    num_tokens: int, max_model_len: int | None, max_num_seqs: int, *, paged: bool
) -> None:
    """The longest possible request runs next to others, or the start is refused."""
    config = {"kv_cache_bytes": num_tokens * NUM_BYTES, "max_num_seqs": max_num_seqs}
    if max_model_len is not None:
        config["max_model_len"] = max_model_len
    try:
        size = sized(paged=paged, **config)
    except ValueError:
        needed = (max_model_len or 16) * (1 if paged else max_num_seqs)
        assert num_tokens < needed + 16, "it would have fitted"
        return

    assert 16 <= size.max_model_len <= 1024
    assert size.num_pages * size.page_size <= num_tokens
    s, _ = make_scheduler(
        num_pages=size.num_pages, page_size=size.page_size, max_num_seqs=max_num_seqs, budget=512
    )
    num_prompt = size.max_model_len - 9
    for i in range(2):
        longest = sequence(i, num_prompt, max_tokens=9)
        assert s.can_hold(longest)
        s.add(longest)
    for _ in range(60):
        if s.has_work:
            step(s)
    assert not s.running
    assert not s.waiting


def test_a_missing_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert choose_device("auto") == "cpu"
    with pytest.raises(ValueError, match="no CUDA device"):
        choose_device("cuda")


def test_cuda_with_bfloat16_is_the_default_if_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    assert choose_device("auto") == "cuda"
    assert choose_device("cpu") == "cpu"
    assert choose_dtype("auto", "cuda") == "bfloat16"
    assert choose_dtype("float16", "cuda") == "float16"


# --- memory of CUDA devices ---


def on_cuda(*, free: int = 62 * GIB, reserved: int = 1 * GIB, **config: int) -> Budget:
    made = EngineConfig(model="m", blobs="b", **config)
    return cuda_budget(made, num_free_bytes=free, num_reserved_bytes=reserved)


def test_an_8b_model_on_80_gb_leaves_space_for_both() -> None:
    """Of 80 GB, 62 GiB remain after 16 GB of weights and the driver's share."""
    reserved = activation_bytes(
        num_tokens=512, num_rows=64, hidden_size=4096, vocab_size=128_256, itemsize=2
    )
    budget = on_cuda(reserved=reserved)

    assert 0.9 * GIB < reserved < 1.2 * GIB
    assert budget.kv + budget.prefixes + reserved <= 0.92 * 62 * GIB
    assert budget.prefixes == (int(0.92 * 62 * GIB) - reserved) // 4
    num_bytes_per_token = 2 * 32 * 8 * 128 * 2
    assert budget.prefixes // num_bytes_per_token > 8 * 8192
    assert budget.kv // num_bytes_per_token > 64 * 4096


def test_settings_are_respected_and_the_pool_gets_the_rest() -> None:
    usable = int(0.92 * 62 * GIB) - GIB

    assert on_cuda(device_prefix_bytes=0) == Budget(kv=usable, prefixes=0)
    assert on_cuda(device_prefix_bytes=GIB) == Budget(kv=usable - GIB, prefixes=GIB)
    assert on_cuda(kv_cache_bytes=GIB) == Budget(kv=GIB, prefixes=usable // 4)


@pytest.mark.parametrize(
    "config",
    [{"free": GIB}, {"device_prefix_bytes": 62 * GIB}, {"kv_cache_bytes": 50 * GIB}],
)
def test_settings_above_the_devices_memory_are_refused_with_numbers(config: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="can be used"):
        on_cuda(**config)
