"""A version carries how it is asked: set by SDK and CLI, shown, downloaded and pushed again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from foreword_client import Client, PreconditionFailedError
from foreword_client.cli import make_app
from prefix_store import artifact
from server.text.tokenizer import Tokenizer
from tests.server.fakes import FakeEngine, make_prefix
from tests.server.live import LiveServer

Run = Callable[..., Result]
Connect = Callable[..., Any]

TEMPLATE = "Q: {prompt}\nA:"
GOLDEN = '{"prompt": "capital?", "expect": "Rome"}\n'
EVALUATION = {"num_examples": 3, "scores": {"exact_match": 0.5}}


@pytest.fixture
def run(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command against the live server."""
    monkeypatch.setenv("FOREWORD_URL", live.url)
    return lambda *args: CliRunner().invoke(make_app(), [str(arg) for arg in args])


@pytest.fixture
def client(connect: Connect, live: LiveServer) -> Any:
    return connect(live.url)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    path.write_bytes(artifact.dump(make_prefix(1)))
    return path


def versions(live: LiveServer, task: str = "x") -> list[Any]:
    with Client(live.url) as client:
        return sorted(client.versions(task).versions, key=lambda version: version.version)


def asked(live: LiveServer, engine: FakeEngine, tokenizer: Tokenizer, task: str = "x") -> str:
    """What the model reads when a task is asked `hi`."""
    with Client(live.url) as client:
        client.generate("hi", task=task)
    return str(tokenizer.decode(engine.submitted[-1][1]))


def answer_rome(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    """Answer `Rome` if the question comes in the template, and nonsense otherwise."""
    right = tokenizer.encode("Q: capital?\nA:")
    engine.script = lambda prefix, ids: tokenizer.encode("Rome" if ids == right else "nonsense")


def test_the_options_of_a_push_hold_before_its_golden_prompts_are_asked(
    run: Run, live: LiveServer, engine: FakeEngine, tokenizer: Tokenizer, tmp_path: Path, file: Path
) -> None:
    answer_rome(engine, tokenizer)
    golden = tmp_path / "golden.jsonl"
    golden.write_text(GOLDEN)
    common = ("--golden", golden, "--template", TEMPLATE, "--stop", "\n", "--max-tokens", 9)

    by_file = run("push", "x", file, *common)
    by_text = run("push", "y", "--text", "capitals", *common)

    for done, task in ((by_file, "x"), (by_text, "y")):
        assert done.exit_code == 0, done.stderr
        assert repr(TEMPLATE) in done.stdout
        [version] = versions(live, task)
        assert version.definition.template == TEMPLATE
        assert version.definition.defaults.stop == ["\n"]
        assert version.definition.defaults.max_tokens == 9
        assert [prompt.expect for prompt in version.golden] == ["Rome"]
    assert asked(live, engine, tokenizer) == "Q: hi\nA:"


def test_options_change_what_the_version_would_have_otherwise(
    run: Run, live: LiveServer, file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "prefix.safetensors").write_bytes(artifact.dump(make_prefix(2)))
    (folder / "foreword.json").write_text('{"template": "{prompt}?", "defaults": {"top_k": 3}}')

    run("push", "x", file, "--template", TEMPLATE, "--stop", "\n")
    run("push", "x", "--text", "t", "--max-tokens", 5)  # the active version's, changed
    run("push", "x", folder, "--stop", "!")  # the folder's own, changed
    run("push", "x", "--prefix-of", 1, "--template", "")  # version 1's, changed

    found = [version.definition for version in versions(live)]
    assert [definition.template for definition in found] == [TEMPLATE, TEMPLATE, "{prompt}?", None]
    defaults = [definition.defaults.model_dump(exclude_none=True) for definition in found]
    assert defaults == [
        {"stop": ["\n"]},
        {"stop": ["\n"], "max_tokens": 5},
        {"stop": ["!"], "top_k": 3},
        {"stop": ["\n"]},
    ]
    first, *_, last = versions(live)
    assert last.digest == first.digest


def test_a_push_without_options_is_asked_like_the_active_version(
    run: Run, live: LiveServer, engine: FakeEngine, tokenizer: Tokenizer, file: Path
) -> None:
    run("push", "x", file, "--template", TEMPLATE)

    run("push", "x", "--text", "t")

    assert versions(live)[1].definition.template == TEMPLATE
    assert asked(live, engine, tokenizer) == "Q: hi\nA:"


def test_the_definition_goes_back_with_the_version(
    run: Run, live: LiveServer, engine: FakeEngine, tokenizer: Tokenizer, file: Path
) -> None:
    run("push", "x", file, "--template", TEMPLATE)
    run("push", "x", "--prefix-of", 1, "--template", "{prompt}!")

    before = asked(live, engine, tokenizer)
    run("rollback", "x")

    assert (before, asked(live, engine, tokenizer)) == ("hi!", "Q: hi\nA:")


def test_another_template_of_a_task_is_said_to_be_a_new_version(
    run: Run, live: LiveServer, file: Path
) -> None:
    run("push", "x", file)

    done = run("task", "x", "--template", TEMPLATE)
    other = run("task", "x", "--description", "d")

    assert "v2 is now live" in done.stderr
    assert "prefix of v1" in done.stderr
    assert other.stderr == ""
    assert len(versions(live)) == 2
    assert repr(TEMPLATE) in done.stdout


def test_versions_show_what_changed_and_one_of_them_whole(
    run: Run, live: LiveServer, file: Path, tmp_path: Path
) -> None:
    evaluation = tmp_path / "evaluation.json"
    evaluation.write_text(json.dumps(EVALUATION))
    run("push", "x", file, "--template", TEMPLATE, "--evaluation", evaluation)
    run("push", "x", "--prefix-of", 1, "--stop", "\n")
    run("push", "x", "--text", "t")

    head, *rows = run("versions", "x").stdout.splitlines()
    whole = run("versions", "x", 1).stdout

    assert head.split()[-2:] == ["CHANGED", "TEMPLATE"]
    assert all(r"Q: {prompt}\nA:" in row for row in rows)
    assert "defaults" in rows[1]
    assert "prefix" not in rows[1]
    assert "prefix" in rows[2]
    for shown in (repr(TEMPLATE), "exact_match 0.5 (3 examples)", "finite_values"):
        assert shown in whole
    assert json.loads(run("versions", "x", 1, "--json").stdout)["version"] == 1


@pytest.mark.parametrize("to", ["folder", "x.tar"])
@pytest.mark.parametrize("peft", [[], ["--peft"]], ids=["artifact", "peft"])
def test_a_download_pushed_again_is_the_same_version(
    run: Run,
    live: LiveServer,
    engine: FakeEngine,
    tokenizer: Tokenizer,
    tmp_path: Path,
    file: Path,
    to: str,
    peft: list[str],
) -> None:
    answer_rome(engine, tokenizer)
    for name, content in (("golden", GOLDEN), ("evaluation", json.dumps(EVALUATION))):
        (tmp_path / name).write_text(content)
    beside = ("--golden", tmp_path / "golden", "--evaluation", tmp_path / "evaluation")
    run("push", "x", file, "--template", TEMPLATE, "--stop", "\n", *beside)

    downloaded = run("download", "x", 1, "-o", tmp_path / to, *peft)
    pushed = run("push", "y", tmp_path / to)

    assert (downloaded.exit_code, pushed.exit_code) == (0, 0), pushed.stderr
    [first], [again] = versions(live, "x"), versions(live, "y")
    kept = ("definition", "golden", "evaluation")
    assert [getattr(again, name) for name in kept] == [getattr(first, name) for name in kept]
    assert (again.digest == first.digest) == (not peft)
    engine.script = None
    assert asked(live, engine, tokenizer, "y") == "Q: hi\nA:"


def test_a_download_does_not_go_into_a_folder_with_other_files(
    run: Run, file: Path, tmp_path: Path
) -> None:
    run("push", "x", file)

    done = run("download", "x", 1, "-o", tmp_path)

    assert (done.exit_code, "not empty" in done.stderr) == (2, True)
    assert list(tmp_path.glob("*.json")) == []


def test_a_definition_of_the_sdk_replaces_and_a_change_builds_on_what_is_there(
    client: Any, live: LiveServer
) -> None:
    data = artifact.dump(make_prefix(1))

    client.push("x", data, definition={"template": TEMPLATE, "defaults": {"stop": ["\n"]}})
    client.push("x", data, definition={"template": "{prompt}!", "defaults": {}})
    client.push("x", data, chat=False, defaults={"max_tokens": 3}, description="d", weight=2.0)
    rehearsed = client.rehearse("x", text="t", template=None)

    _, second, third = versions(live)
    assert second.definition.defaults.stop is None
    assert (third.definition.template, third.definition.defaults.max_tokens) == ("{prompt}!", 3)
    assert (rehearsed.version, rehearsed.definition.template) == (4, None)
    profile = client.task("x").profile
    assert (profile.description, profile.weight, profile.template) == ("d", 2.0, "{prompt}!")


def test_a_change_of_what_was_replaced_meanwhile_is_refused(client: Any, live: LiveServer) -> None:
    data = artifact.dump(make_prefix(1))
    client.push("x", data, definition={"template": TEMPLATE})

    with pytest.raises(PreconditionFailedError):
        client.push("x", data, defaults={"max_tokens": 3}, if_match=client.task("x").revision - 1)

    assert len(versions(live)) == 1


def test_a_version_is_pushed_again_as_it_was(client: Any, live: LiveServer) -> None:
    data = artifact.dump(make_prefix(1))
    rank = {"texts": ["yes", "no"], "by": "mean"}
    client.push("x", data, definition={"chat": True, "defaults": {"rank": rank, "max_tokens": 2}})
    [first] = versions(live)

    client.push("y", data, definition=first.definition, evaluation=EVALUATION)

    [again] = versions(live, "y")
    assert again.definition == first.definition
    assert again.evaluation.scores == EVALUATION["scores"]
