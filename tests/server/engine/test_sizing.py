from __future__ import annotations

from types import SimpleNamespace

import pytest

from prefix_store.prefix import BaseModelSpec
from server.engine.messages import EngineConfig
from server.engine.sizing import Sizes, choose_device, sizes

SPEC = BaseModelSpec("tiny", "sha256:" + "0" * 64, 2, 1, 8, 16, "float32")
NUM_BYTES = SPEC.num_bytes_per_token


def sized(*, paged: bool, **config: int) -> Sizes:
    loaded = SimpleNamespace(spec=SPEC, max_positions=1024)
    return sizes(EngineConfig(model="m", blobs="b", **config), loaded, paged=paged)


def test_a_token_takes_keys_and_values_of_every_layer() -> None:
    assert NUM_BYTES == 2 * 2 * 1 * 8 * 4


def test_slabs_share_the_budget_and_stop_at_the_models_context() -> None:
    small = sized(paged=False, kv_cache_bytes=100 * NUM_BYTES * 4, max_num_seqs=4)
    large = sized(paged=False, kv_cache_bytes=9999 * NUM_BYTES * 4, max_num_seqs=4)

    assert small == Sizes(max_model_len=96, num_pages=4, page_size=96)
    assert large == Sizes(max_model_len=1024, num_pages=4, page_size=1024)


def test_pages_hold_the_longest_sequence() -> None:
    size = sized(paged=True, kv_cache_bytes=2000 * NUM_BYTES, max_num_seqs=4)

    assert size == Sizes(max_model_len=1024, num_pages=125, page_size=16)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"max_model_len": 2048}, "1024 positions"),
        ({"max_model_len": 512, "kv_cache_bytes": 100 * NUM_BYTES}, "raise kv_cache_bytes"),
    ],
)
def test_what_cannot_fit_is_said_with_its_numbers(config: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        sized(paged=False, **config)


def test_a_device_without_a_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="CUDA"):
        choose_device("cuda")
