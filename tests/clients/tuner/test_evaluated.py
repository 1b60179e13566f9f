"""Answers of a served task, scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foreword_client import Client
from foreword_tuner.__main__ import evaluate
from tests.clients.tuner.tiny_base import CITIES, cities, run, write_lines
from tests.running_server import RunningServer


def test_an_evaluation_scores_every_question_once(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Client(server.url) as client:
        client.push("echo", text="Say it: ", template="{prompt}", defaults={"max_tokens": 6})
        said = [client.generate(city, task="echo").text for city, _ in CITIES]
    right = {"prompt": CITIES[0][0], "completion": f" {said[0]} "}
    lines = [
        {"prompt": CITIES[0][0], "completion": "never"},
        right,
        *({"prompt": city, "completion": "never"} for city, _ in CITIES[1:]),
    ]
    data = write_lines(tmp_path / "test.jsonl", lines)
    out, answers = tmp_path / "result.json", tmp_path / "answers.jsonl"

    run(
        evaluate, "--data", data, "--task", "echo", "--url", server.url, "--output", out,
        "--answers", answers, "--concurrency", 3,
    )  # fmt: skip

    result = json.loads(out.read_text())
    assert (result["num_questions"], result["versions"]) == (4, [1])
    assert result["scores"]["exact_match"]["value"] == 25.0
    assert result["scores"]["exact_match"]["low"] == 0.0
    assert set(result["scores"]) == {"exact_match", "accuracy", "f1", "bleu", "rougeL"}
    told = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["answer"] for row in told] == said
    assert [row["prompt"] for row in told] == [city for city, _ in CITIES]
    assert told[0]["references"] == ["never", right["completion"]]
    assert "echo@1: 4 questions" in capsys.readouterr().out


def test_an_evaluation_of_no_task_is_an_error(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = cities(tmp_path / "test.jsonl")

    with pytest.raises(SystemExit, match="1"):
        evaluate(["--data", str(data), "--task", "nobody", "--url", server.url])

    assert capsys.readouterr().err.startswith("error: ")


def test_each_of_a_lines_references_is_right(server: RunningServer, tmp_path: Path) -> None:
    with Client(server.url) as client:
        client.push("many", text="Say it: ", template="{prompt}", defaults={"max_tokens": 6})
        said = client.generate("Paris", task="many").text
    assert said.strip()
    lines = [{"prompt": "Paris", "references": ["never", said]}]
    data, out = write_lines(tmp_path / "test.jsonl", lines), tmp_path / "result.json"

    run(evaluate, "--data", data, "--task", "many", "--url", server.url, "--output", out)

    scores = json.loads(out.read_text())["scores"]
    assert {name: score["value"] for name, score in scores.items()}["exact_match"] == 100
    assert scores["bleu"]["value"] == pytest.approx(100)


def test_a_template_without_a_prompt_is_asked_by_its_fields(
    server: RunningServer, tmp_path: Path
) -> None:
    with Client(server.url) as client:
        client.push(
            "alpaca", text="Do: ", template="{instruction}: {input}\n", defaults={"max_tokens": 4}
        )
        said = client.generate(
            task="alpaca", fields={"instruction": "Double it.", "input": "4"}
        ).text
    line = {"instruction": "Double it.", "input": "4", "output": said or "x"}
    data, answers = write_lines(tmp_path / "test.jsonl", [line]), tmp_path / "answers.jsonl"

    run(
        evaluate, "--data", data, "--task", "alpaca", "--url", server.url, "--answers", answers
    )  # fmt: skip

    [row] = [json.loads(line) for line in answers.read_text().splitlines()]
    assert row["answer"] == said
    assert row["fields"] == {"instruction": "Double it.", "input": "4"}
    assert "prompt" not in row


def test_a_version_is_asked_by_its_own_template(server: RunningServer, tmp_path: Path) -> None:
    with Client(server.url) as client:
        client.push("moved", text="Do: ", template="{prompt} {lang}:", defaults={"max_tokens": 4})
        said = client.generate("a", task="moved", fields={"lang": "de"}).text
        client.push("moved", text="Do: ", template="{prompt}")
    line = {"prompt": "a", "lang": "de", "completion": "x"}
    data, answers = write_lines(tmp_path / "test.jsonl", [line]), tmp_path / "answers.jsonl"

    run(
        evaluate, "--data", data, "--task", "moved", "--version", 1, "--url", server.url,
        "--answers", answers,
    )  # fmt: skip

    assert json.loads(answers.read_text())["answer"] == said
