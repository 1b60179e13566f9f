"""`foreword serve` with a model that cannot be served: one sentence, and no server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers as T
from safetensors.torch import load_file, save_file

from tests.server.fakes import make_transformers_tokenizer
from tests.tiny_models import build_model


def bart(folder: Path) -> None:
    config = T.BartConfig(
        vocab_size=260, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    T.BartForConditionalGeneration(config).save_pretrained(folder)


def without_a_weight(folder: Path) -> None:
    build_model("llama", "eager").save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def diffllama(folder: Path) -> None:
    """Its config says nothing: it is seen when it runs."""
    config = T.DiffLlamaConfig(
        vocab_size=260, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=256,
    )  # fmt: skip
    T.DiffLlamaForCausalLM(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("save", "attention", "said"),
    [
        (bart, "ref", "bart is not supported: it is an encoder-decoder"),
        (without_a_weight, "cpu", "the checkpoint lacks model.norm.weight"),
        (diffllama, "auto", "diffllama is not supported: its logits in a batch differ"),
    ],
)
def test_a_model_that_cannot_be_served_is_one_sentence(
    save: Callable[[Path], None], attention: str, said: str, tmp_path: Path
) -> None:
    save(tmp_path / "model")
    make_transformers_tokenizer().save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "server", "--model", str(tmp_path / "model"), "--port", "0"]
    options = ["--store", str(tmp_path / "store"), "--num-threads", "1", "--attention", attention]

    run = subprocess.run(
        [*command, *options, "--dtype", "float32"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )

    assert run.returncode == 2, run.stderr
    [sentence] = [line for line in run.stderr.splitlines() if not line.startswith('{"event"')]
    assert sentence.startswith(f"error: {said}")
    assert "Traceback" not in run.stderr
