"""From a data file to answers: tuned, pushed, served, evaluated; and a text distilled."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from foreword_client import Client
from foreword_tuner import base as bases
from foreword_tuner import initial, prepare
from foreword_tuner.__main__ import distill, evaluate, tune
from foreword_tuner.encoding import Example
from foreword_tuner.teacher import Teacher
from tests.clients.tuner.tiny_base import CITIES, QUICK, cities, run, settings, write_lines
from tests.running_server import RunningServer

pytestmark = pytest.mark.filterwarnings(
    # PEFT's own `generate` passes what PEFT's own `forward` then ignores.
    "ignore:Position ids are not supported:UserWarning"
)

TEXT = "Paris lies in France. Rome lies in Italy. Oslo lies in Norway.\n"


def pefts_tokens(base: Path, folder: Path, text: str, num: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    tuned = peft.PeftModel.from_pretrained(model, folder).eval()
    ids = AutoTokenizer.from_pretrained(base)(text, return_tensors="pt").input_ids
    generated = tuned.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=num, do_sample=False
    )
    return [int(i) for i in generated[0, ids.shape[1] :]]


@pytest.mark.parametrize("method", ["prefix", "cartridge", "prompt", "ptuning"])
def test_a_tuned_task_answers_as_peft_does(
    base: Path, server: RunningServer, tmp_path: Path, method: str
) -> None:
    data, folder = cities(tmp_path / "train.jsonl"), tmp_path / "run"
    common = ("--data", data, "--base", base, "--task", method, "-o", folder, *QUICK)

    run(tune, *common, "--method", method, "--epochs", 6, "--push", server.url)

    with Client(server.url) as client:
        for city, _ in CITIES:
            answer = client.generate(
                f"7 {city}", task=method, max_tokens=12, ignore_eos=True, return_token_ids=True
            )
            assert answer.token_ids == pefts_tokens(base, folder, f"7 {city}\n", 12)
        manifest, profile = client.version(method, 1), client.task(method).profile
    measured = json.loads((folder / "evaluation.json").read_text())
    assert manifest.evaluation is not None
    assert manifest.evaluation.model_dump() == measured
    assert profile.template == "{prompt}\n"
    assert profile.defaults.temperature == 0


def test_a_chat_is_served_as_it_was_trained(
    base: Path, server: RunningServer, tmp_path: Path
) -> None:
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"{i} is"},
                {"role": "assistant", "content": "ab"},
            ]
        }
        for i in range(24)
    ]
    data = write_lines(tmp_path / "train.jsonl", lines)
    common = ("--data", data, "--base", base, "--task", "chat", "-o", tmp_path / "run", *QUICK)

    run(tune, *common, "--chat", "--epochs", 20, "--push", server.url)

    with Client(server.url) as client:
        answer = client.generate("7 is", task="chat")
        same = client.generate(messages=[{"role": "user", "content": "7 is"}], task="chat")
        golden = client.version("chat", 1).golden
    assert answer.text == same.text == "ab"
    assert answer.finish_reason == "stop"
    assert [line.expect for line in golden] == ["ab"] * 6


def test_fields_of_a_template_are_trained_and_evaluated(
    base: Path, server: RunningServer, tmp_path: Path
) -> None:
    lines = [
        {"prompt": f"{i}", "lang": lang, "completion": lang, "id": f"n{i}"}
        for i in range(12)
        for lang in ("de", "fr")
    ]
    data, out = write_lines(tmp_path / "train.jsonl", lines), tmp_path / "result.json"
    common = ("--data", data, "--base", base, "--task", "fields", "-o", tmp_path / "run", *QUICK)

    run(tune, *common, "--template", "{prompt} {lang}:\\n", "--epochs", 3, "--push", server.url)
    run(evaluate, "--data", data, "--task", "fields", "--url", server.url, "--output", out)

    with Client(server.url) as client:
        assert client.task("fields").profile.template == "{prompt} {lang}:\n"
    assert json.loads(out.read_text())["num_questions"] == 24


def test_golden_prompts_go_along_and_hold(
    base: Path, server: RunningServer, tmp_path: Path
) -> None:
    lines = [{"prompt": f"{i} is", "completion": "ab"} for i in range(24)]
    data = write_lines(tmp_path / "train.jsonl", lines)
    common = ("--data", data, "--base", base, "--task", "sure", "-o", tmp_path / "run", *QUICK)

    run(tune, *common, "--epochs", 40, "--push", server.url)

    with Client(server.url) as client:
        manifest = client.version("sure", 1)
    assert [golden.expect for golden in manifest.golden] == ["ab"] * 6
    assert {check.name: check.passed for check in manifest.verification}["golden"] is True


# --- distill ---


def test_the_teacher_answers_like_the_model_after_the_text(
    base: Path, server: RunningServer
) -> None:
    loaded = bases.load(str(base), "float32")
    what = settings(base)
    trainee = prepare.trainee(loaded, what, [])
    student = prepare.forward(loaded, trainee.model, what)
    teacher = Teacher(loaded, loaded.tokenizer(TEXT).input_ids, student.logits_with)  # type: ignore[attr-defined]
    prompts = ["Paris", "Rome", "Oslo is", "Bern lies"]
    ids = [loaded.tokenizer(p, add_special_tokens=False).input_ids for p in prompts]

    answers = dict(teacher.answers(ids, max_tokens=8, batch_tokens=64))

    with Client(server.url) as client:
        client.push("long", text=TEXT)
        for i, prompt in enumerate(prompts):
            served = client.generate(prompt, task="long", max_tokens=8, return_token_ids=True)
            eos = [loaded.eos_id] if served.finish_reason == "stop" else []
            assert answers[i] == [*(served.token_ids or []), *eos]


def test_the_whole_text_as_a_prefix_leaves_nothing_to_learn(base: Path) -> None:
    from foreword_tuner.distill import DistillForward

    loaded = bases.load(str(base), "float32")
    text_ids = loaded.tokenizer(TEXT).input_ids
    what = settings(base, num_virtual_tokens=len(text_ids), init="text")
    student = prepare.forward(loaded, prepare.trainee(loaded, what, text_ids).model, what)
    teacher = Teacher(loaded, text_ids, student.logits_with)  # type: ignore[attr-defined]
    examples = [Example(1, [70, 71], [72, 73, 74]), Example(2, [80], [81])]
    targets = teacher.targets(examples, batch_tokens=64)

    whole = DistillForward(student, 0, targets)(examples)  # type: ignore[arg-type]
    what = settings(base, num_virtual_tokens=4, init="text")
    loaded = bases.load(str(base), "float32")
    start = initial.fill(text_ids, 4)
    short = prepare.forward(loaded, prepare.trainee(loaded, what, start).model, what)
    cut = DistillForward(short, 0, targets)(examples)  # type: ignore[arg-type]

    assert abs(float(whole.loss.detach())) < 1e-4
    assert float(cut.loss.detach()) > 0.01


def test_a_distilled_task_comes_closer_to_its_text(
    base: Path, server: RunningServer, tmp_path: Path
) -> None:
    text, folder = tmp_path / "text.txt", tmp_path / "run"
    text.write_text(TEXT)
    lines = [{"prompt": f"{i} {city}"} for i in range(6) for city, _ in CITIES]
    data = write_lines(tmp_path / "prompts.jsonl", lines)

    run(
        distill, "--text", text, "--data", data, "--base", base, "--task", "short", "-o", folder,
        *QUICK, "--answer-tokens", 6, "--epochs", 10, "--eval-every", 5, "--push", server.url,
    )  # fmt: skip

    record = json.loads((folder / "training.json").read_text())
    assert record["evaluation"]["scores"]["loss"] < 0.8 * record["held_out"][0]["loss"]
    with Client(server.url) as client:
        assert client.task("short").active_version == 1


def test_a_text_that_is_short_already_is_not_distilled(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("ab")
    data = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "a"}, {"prompt": "b"}])

    with pytest.raises(SystemExit, match="1"):
        distill(
            ["--text", str(tmp_path / "text.txt"), "--data", str(data), "--base", str(base),
             "--task", "x", "-o", str(tmp_path / "run"), *QUICK]
        )  # fmt: skip

    assert "push it as text" in capsys.readouterr().err
