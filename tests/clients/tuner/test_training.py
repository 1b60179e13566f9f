"""A training learns, can be had again to the last bit, and loses little when it is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from foreword_tuner import base as bases
from foreword_tuner import checkpoint, prepare, tune
from foreword_tuner.__main__ import tune as command
from foreword_tuner.errors import TunerError
from foreword_tuner.methods import Method
from foreword_tuner.settings import Folder, Settings
from foreword_tuner.tune import Run, Tuned
from tests.clients.tuner.tiny_base import cities, save_base, settings, write_lines

WEIGHTS = "adapter_model.safetensors"


def train(what: Settings, data: Path, folder: Path, **changed: Any) -> Tuned:
    callbacks = {"log": lambda _: None, "on_report": lambda _: None}
    fields = {"skip_bad": False, "restart": False, **callbacks}
    return tune.run(Run(settings=what, data=data, folder=Folder(folder), **fields | changed))


@pytest.mark.parametrize("method", list(Method))
def test_every_method_learns(llama: Path, tmp_path: Path, method: Method) -> None:
    what = settings(llama, method, max_epochs=15.0)

    tuned = train(what, cities(tmp_path / "train.jsonl"), tmp_path / "run")

    first, *_, last = tuned.record["held_out"]
    assert last["loss"] < 0.95 * first["loss"]
    assert tuned.record["evaluation"]["scores"]["loss"] == min(
        point["loss"] for point in tuned.record["held_out"]
    )


def test_what_is_saved_is_a_folder_that_peft_loads(llama: Path, tmp_path: Path) -> None:
    tuned = train(settings(llama), cities(tmp_path / "train.jsonl"), tmp_path / "run")

    base = AutoModelForCausalLM.from_pretrained(llama)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "run")

    saved = load_file(tmp_path / "run" / WEIGHTS)["prompt_embeddings"]
    assert torch.equal(loaded.get_prompt_embedding_to_save("default"), saved)
    assert tuned.record["num_bytes"] == (tmp_path / "run" / WEIGHTS).stat().st_size
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["settings"] == settings(llama).as_json()
    assert record["curve"][-1]["step"] == record["steps"] == record["held_out"][-1]["step"]
    assert record["tokens_per_s"] > 0


def test_a_projection_is_gone_in_what_is_saved(llama: Path, tmp_path: Path) -> None:
    what = settings(llama, projection=True, learning_rate=1e-2)

    train(what, cities(tmp_path / "train.jsonl"), tmp_path / "run")

    saved = load_file(tmp_path / "run" / WEIGHTS)
    assert {name: tuple(t.shape) for name, t in saved.items()} == {
        "prompt_embeddings": (4, 2 * 2 * 2 * 16)
    }
    assert peft.PeftConfig.from_pretrained(tmp_path / "run").prefix_projection is False
    base = AutoModelForCausalLM.from_pretrained(llama)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "run")
    first_keys = loaded.get_prompt(1).layers[0].keys[0, 0]
    assert torch.equal(first_keys, saved["prompt_embeddings"][:, :16])


def test_an_encoder_decoder_is_saved_as_peft_does(tmp_path: Path) -> None:
    base = save_base(tmp_path / "t5", "t5")
    what = settings(base, max_epochs=10.0)

    tuned = train(what, cities(tmp_path / "train.jsonl"), tmp_path / "run")

    config = peft.PeftConfig.from_pretrained(tmp_path / "run")
    assert (config.task_type, config.peft_type) == ("SEQ_2_SEQ_LM", "PREFIX_TUNING")
    assert tuned.record["held_out"][-1]["loss"] < tuned.record["held_out"][0]["loss"]
    for refused in ({"init": "examples"}, {"first_layer": 1}):
        with pytest.raises(TunerError, match="an encoder-decoder"):
            train(settings(base, **refused), tmp_path / "train.jsonl", tmp_path / "no")


def test_golden_prompts_are_held_out_lines_that_are_answered_so(
    llama: Path, tmp_path: Path
) -> None:
    lines = [{"prompt": f"{i} is", "completion": "ab"} for i in range(24)]
    data = write_lines(tmp_path / "train.jsonl", lines)

    tuned = train(settings(llama, max_epochs=40.0), data, tmp_path / "run")

    golden = [json.loads(line) for line in (tmp_path / "run/golden.jsonl").read_text().splitlines()]
    assert tuned.record["evaluation"]["scores"]["exact_match"] == 1.0
    assert len(golden) == 6
    assert all(line["expect"] == "ab" for line in golden)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    llama: Path, tmp_path: Path
) -> None:
    data = cities(tmp_path / "train.jsonl")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(settings(llama, seed=seed), data, tmp_path / name)

    a, b, c = ((tmp_path / name / WEIGHTS).read_bytes() for name in "abc")
    assert a == b != c


def test_it_stops_when_the_held_out_loss_no_longer_falls_and_the_best_is_saved(
    llama: Path, tmp_path: Path
) -> None:
    what = settings(llama, max_epochs=500.0, learning_rate=3.0, eval_every=2, patience=3)
    data, weights = cities(tmp_path / "train.jsonl"), tmp_path / "run" / WEIGHTS

    tuned = train(what, data, tmp_path / "run")

    assert tuned.record["best_step"] == tuned.record["steps"] - 6
    saved = weights.read_bytes()
    base = bases.load(str(llama), "float32")
    best = prepare.trainee(base, what, []).model
    tensors, _ = checkpoint.load(tmp_path / "run" / "checkpoint.safetensors")
    checkpoint.restore(best, tensors, "best.")
    embeddings = load_file(weights)["prompt_embeddings"]
    assert torch.equal(best.get_prompt_embedding_to_save("default"), embeddings)
    train(what, data, tmp_path / "run")  # there is nothing left to do
    assert weights.read_bytes() == saved
    assert tuned.record["epochs"] < 100
    losses = [point["loss"] for point in tuned.record["held_out"]]
    assert min(losses[-3:]) >= tuned.record["evaluation"]["scores"]["loss"] == min(losses)


def test_a_loss_that_is_no_number_ends_the_training(llama: Path, tmp_path: Path) -> None:
    what = settings(llama, learning_rate=3e37, clip=1e30)

    with pytest.raises(TunerError, match="smaller --learning-rate"):
        train(what, cities(tmp_path / "train.jsonl"), tmp_path / "run")


def test_several_forwards_for_a_step_are_one_larger_batch(llama: Path, tmp_path: Path) -> None:
    data = cities(tmp_path / "train.jsonl")
    one = train(settings(llama, batch_tokens=10_000, max_epochs=2.0), data, tmp_path / "one")
    many = train(
        settings(llama, batch_tokens=64, accumulate=1000, max_epochs=2.0), data, tmp_path / "many"
    )

    assert one.record["steps"] == many.record["steps"] == 2
    a, b = (load_file(tmp_path / name / WEIGHTS)["prompt_embeddings"] for name in ("one", "many"))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


# --- interrupted ---

ARGUMENTS = ["--task", "x", "--virtual-tokens", "4", "--init", "random", "--dtype", "float32"]
ARGUMENTS += ["--batch-tokens", "64", "--held-out", "0.25", "--patience", "1000"]
ARGUMENTS += ["--eval-every", "10", "--epochs", "60"]


def test_a_killed_training_goes_on_as_if_nothing_had_been(llama: Path, tmp_path: Path) -> None:
    data = cities(tmp_path / "train.jsonl")
    arguments = ["--data", str(data), "--base", str(llama), *ARGUMENTS]
    killed, whole = Folder(tmp_path / "killed"), Folder(tmp_path / "whole")
    code = "import sys; from foreword_tuner.__main__ import tune; tune(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *arguments, "-o", str(killed.path)],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline_s = time.monotonic() + 60
    while not killed.checkpoint.is_file() and time.monotonic() < deadline_s:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL, "it ended before it was killed"
    _, state = checkpoint.load(killed.checkpoint)
    assert state["step"] >= 10
    assert not killed.record.exists()

    run(arguments, killed)
    run(arguments, whole)

    names = (WEIGHTS, "golden.jsonl", "evaluation.json")
    for name in names:
        assert (killed.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    records = [json.loads(folder.record.read_text()) for folder in (killed, whole)]
    assert records[0]["curve"] == records[1]["curve"]
    assert records[0]["held_out"] == records[1]["held_out"]


def run(arguments: list[str], folder: Folder) -> None:
    with pytest.raises(SystemExit) as ended:
        command([*arguments, "-o", str(folder.path)])
    assert not ended.value.code


def test_a_folder_of_another_training_is_not_gone_on_with(llama: Path, tmp_path: Path) -> None:
    data = cities(tmp_path / "train.jsonl")
    train(settings(llama), data, tmp_path / "run")

    with pytest.raises(TunerError, match="other settings or data"):
        train(settings(llama, seed=7), data, tmp_path / "run")
    cities(data, times=9)
    with pytest.raises(TunerError, match="other settings or data"):
        train(settings(llama), data, tmp_path / "run")
    train(settings(llama, seed=7), data, tmp_path / "run", restart=True)


def test_half_a_checkpoint_is_an_error(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoint.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")

    with pytest.raises(TunerError, match="not a checkpoint"):
        train(settings(llama), cities(tmp_path / "train.jsonl"), folder)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "lora", "--projection"], "--projection needs"),
        (["--init", "chance"], "--init is random"),
        (["--method", "ptuning", "--init", "examples"], "can only start at random"),
        (["--method", "lora", "--push", "http://127.0.0.1:1"], "a LoRA changes weights"),
        (["--dtype", "float8"], "--dtype"),
        (["--method", "prompt", "--first-layer", "1"], "--first-layer needs"),
        (["--first-layer", "2"], "this model has 2 layers"),
    ],
)
def test_contradictory_options_are_one_line(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    data = cities(tmp_path / "train.jsonl")
    common = ["--data", str(data), "--base", str(llama), "--task", "x", "-o", str(tmp_path / "run")]

    with pytest.raises(SystemExit) as ended:
        command([*common, *arguments])

    assert ended.value.code == (1 if said.startswith("this model") else 2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error
