"""Folders that transformers' own Trainer saves, sent as they are."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import Trainer, TrainingArguments

from prefix_store.errors import UnsupportedFormat
from prefix_store.formats import peft
from prefix_store.prefix import Prefix
from tests.prefix_store.tiny_llama import IDS, KEYS_AND_VALUES, model, read


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A folder with a checkpoint of the first step and the result of the second, and the result's
    keys and values."""
    folder = tmp_path_factory.mktemp("trainer")
    tuned = get_peft_model(model(), KEYS_AND_VALUES["peft-prefix-tuning"]())
    arguments = TrainingArguments(
        str(folder), max_steps=2, save_steps=1, save_total_limit=1, use_cpu=True, report_to=[],
        disable_tqdm=True, learning_rate=0.1,
    )  # fmt: skip
    trainer = Trainer(tuned, arguments, train_dataset=[{"input_ids": IDS[0], "labels": IDS[0]}])  # type: ignore[arg-type]
    trainer.train()
    with torch.no_grad():
        tuned.prompt_encoder["default"].embedding.weight.add_(1)
    trainer.save_model()
    return folder, tuned.prompt_encoder["default"].embedding.weight.detach()


def packed(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, arcname=".")
    return buffer.getvalue()


def test_the_adapter_is_read_and_nothing_else(saved: tuple[Path, Tensor]) -> None:
    folder, weights = saved
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    checkpoint = {f"checkpoint-2/{name}" for name in ("optimizer.pt", peft.WEIGHTS)}
    assert checkpoint | {"training_args.bin", peft.WEIGHTS} < names

    prefix = read(packed(folder))

    assert isinstance(prefix, Prefix)
    rows = weights.view(len(weights), len(prefix.keys), 2, -1)
    for i in range(len(prefix.keys)):
        assert torch.equal(prefix.keys[i].transpose(0, 1).flatten(1), rows[:, i, 0])
        assert torch.equal(prefix.values[i].transpose(0, 1).flatten(1), rows[:, i, 1])


def test_a_checkpoint_of_its_own_is_read_too(saved: tuple[Path, Tensor]) -> None:
    [checkpoint] = saved[0].glob("checkpoint-*")

    assert isinstance(read(packed(checkpoint)), Prefix)


def test_a_folder_of_pickles_only_is_refused(saved: tuple[Path, Tensor], tmp_path: Path) -> None:
    for name in ("adapter_config.json", "training_args.bin"):
        (tmp_path / name).write_bytes((saved[0] / name).read_bytes())
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x05.")

    with pytest.raises(UnsupportedFormat, match=r"pickle, which is never loaded"):
        read(packed(tmp_path))
