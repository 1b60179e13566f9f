from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save
from torch import Tensor

from prefix_store import formats
from prefix_store.errors import (
    IncompatiblePrefix,
    InvalidArtifact,
    InvalidUpload,
    NonFiniteValues,
    PrefixTooLong,
    UnsupportedFormat,
)
from prefix_store.formats import peft
from prefix_store.prefix import Prefix, SoftPrompt
from tests.prefix_store.tiny_llama import BASE, L, Trained, directory, model, read

CONFIG = {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": L}
KV = torch.zeros(L, 2 * 3 * 2 * 16)
SOFT = torch.zeros(L, 64)
NAN = torch.full((L, 64), float("nan"))


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None])
def test_the_least_that_a_config_must_say(task_type: str | None) -> None:
    data = directory(CONFIG | {"task_type": task_type}, {"prompt_embeddings": KV})

    assert isinstance(read(data), Prefix)


@pytest.mark.parametrize(
    ("change", "tensor", "error", "words"),
    [
        ({"peft_type": "LORA"}, KV, UnsupportedFormat, "LORA"),
        ({"peft_type": "MULTITASK_PROMPT_TUNING"}, SOFT, UnsupportedFormat, "MULTITASK"),
        ({"peft_type": "x" * 5000}, KV, UnsupportedFormat, "peft_type"),
        ({"peft_type": None}, KV, InvalidArtifact, "peft_type"),
        ({"peft_type": ["PREFIX_TUNING"]}, KV, InvalidArtifact, "peft_type"),
        ({"task_type": "SEQ_CLS"}, KV, UnsupportedFormat, "SEQ_CLS"),
        ({"task_type": "TOKEN_CLS"}, KV, UnsupportedFormat, "TOKEN_CLS"),
        ({"task_type": "SEQ_2_SEQ_LM"}, KV, UnsupportedFormat, "SEQ_2_SEQ_LM"),
        ({"modules_to_save": ["lm_head"]}, KV, UnsupportedFormat, "modules_to_save"),
        ({"num_transformer_submodules": 2}, KV, UnsupportedFormat, "encoder"),
        ({"num_virtual_tokens": None}, KV, InvalidArtifact, "num_virtual_tokens"),
        ({"num_virtual_tokens": 0}, KV, InvalidArtifact, "num_virtual_tokens"),
        ({"num_virtual_tokens": "5"}, KV, InvalidArtifact, "num_virtual_tokens"),
        ({"num_virtual_tokens": 4}, KV, IncompatiblePrefix, "expected 4 rows.*got 5"),
        ({"num_layers": 4}, KV, IncompatiblePrefix, "expected 3 layers, got 4"),
        ({"num_attention_heads": 4}, KV, IncompatiblePrefix, "expected 2 .*got 4"),
        ({}, torch.zeros(L, 384), IncompatiblePrefix, "expected 192 columns.*got 384"),
        ({}, KV.view(L, 3, -1), IncompatiblePrefix, "dimensions"),
        ({}, SOFT, IncompatiblePrefix, "expected 192 columns.*got 64"),
        ({"peft_type": "P_TUNING"}, KV, IncompatiblePrefix, "expected .*64 columns, got 192"),
        ({"peft_type": "PROMPT_TUNING"}, NAN, NonFiniteValues, "NaN"),
        ({}, NAN.repeat(1, 3), NonFiniteValues, "layers.0.keys"),
        ({}, KV.long(), InvalidArtifact, "dtype"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(
    change: dict[str, object], tensor: Tensor, error: type[InvalidUpload], words: str
) -> None:
    with pytest.raises(error, match=words) as refusal:
        read(directory(CONFIG | change, {"prompt_embeddings": tensor}))
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    "extra", ["base_model.score.weight", "prefix_task_cols", "base_model.model.x.lora_A.weight"]
)
def test_other_trained_weights_are_refused_and_not_dropped(extra: str) -> None:
    tensors = {"prompt_embeddings": KV, extra: torch.zeros(2, 2)}

    with pytest.raises(UnsupportedFormat):
        read(directory(CONFIG, tensors))
    with pytest.raises(UnsupportedFormat):
        read(save(tensors), "")


@pytest.mark.parametrize(
    "config",
    [b"", b"{", b"[]", b"null", b'{"peft_type":"A","peft_type":"B"}', b"\xff", b" " * (2 << 20)],
)
def test_a_config_that_cannot_be_read_is_refused(config: bytes) -> None:
    with pytest.raises(InvalidArtifact, match="adapter_config"):
        read(directory(config, {"prompt_embeddings": KV}))


def test_columns_that_fit_nothing_say_what_would(trained: dict[str, Trained]) -> None:
    with pytest.raises(IncompatiblePrefix, match=r"expected 192 columns .* or 64 .*, got 63"):
        read(save({"prompt_embeddings": torch.zeros(L, 63)}), "")


def test_columns_that_fit_both_ask_for_the_config() -> None:
    base = replace(BASE, hidden_size=192)

    with pytest.raises(IncompatiblePrefix, match=r"adapter_config.json"):
        formats.read(save({"prompt_embeddings": KV}), "", base, max_prefix_tokens=64)


@pytest.mark.parametrize("kind", ["peft-cartridge", "peft-p-tuning"])
def test_too_many_rows_are_refused(trained: dict[str, Trained], kind: str) -> None:
    assert read(trained[kind].tar(), tokens=L) is not None
    with pytest.raises(PrefixTooLong):
        read(trained[kind].tar(), tokens=L - 1)


def test_a_real_lora_is_refused_in_either_form(tmp_path: Path) -> None:
    get_peft_model(model(), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    lora = Trained(tmp_path, torch.empty(0))

    for data in (lora.tar(), lora.weights):
        with pytest.raises(UnsupportedFormat, match=r"LoRA|LORA"):
            read(data, "")


@pytest.mark.parametrize("missing", [peft.CONFIG, peft.WEIGHTS])
def test_half_a_directory_is_refused(trained: dict[str, Trained], missing: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in trained["peft-cartridge"].folder.iterdir():
            if path.name != missing:
                archive.add(path, arcname=path.name)

    with pytest.raises(InvalidArtifact, match=missing):
        read(buffer.getvalue())


def test_values_beyond_the_serving_dtype_are_refused() -> None:
    data = directory(CONFIG | {"peft_type": "P_TUNING"}, {"prompt_embeddings": SOFT + 1e5})

    assert isinstance(read(data), SoftPrompt)
    with pytest.raises(NonFiniteValues, match="float16"):
        formats.read(data, "", replace(BASE, dtype="float16"), max_prefix_tokens=64)
