"""What is refused in a file of tasks, in one sentence with file and path; and where files come
from."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from foreword_client.apply import files
from foreword_client.apply.files import InvalidFileError
from tests.checkout import ROOT

A = "tasks:\n  a: {text: hi"
BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcd", "bcde"))  # noqa: B905


def read(text: str, folder: Path) -> dict[str, Any]:
    (folder / "tasks.yaml").write_text(text)
    return {name: task.spec for name, task in files.read([str(folder / "tasks.yaml")]).items()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: {}", ": task: unknown key; did you mean tasks?"),
        ("[1]", ": not a mapping with the key `tasks`"),
        ("{}", ": tasks: is required"),
        ("", ": empty; `tasks: {}` declares no tasks"),
        ("# tasks: {}\n---\n", ": empty; `tasks: {}` declares no tasks"),
        ("tasks: [", ", line 1: not YAML: expected the node content, but found '<stream end>'"),
        ("\ttasks: 1", ", line 1: not YAML: found character '\\t' that cannot start any token"),
        (
            "tasks: \x07",
            ": not YAML: unacceptable character #x0007: special characters are not allowed",
        ),
        ("tasks: " + "{a: " * 3000, ": nested too deeply"),
        (BOMB, ", line 1: anchors and aliases are not allowed"),
        ("tasks: {a: &x {text: hi}}", ", line 1: anchors and aliases are not allowed"),
        (
            "tasks:\n  a: !!python/object/apply:os.system [ls]",
            ", line 2: not YAML: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object/apply:os.system'",
        ),
        ("tasks:\n  a: {text: x}\n  a: {text: y}", ", line 3: the key is given twice"),
        ("tasks: {a: {text: x, text: y}}", ", line 1: the key is given twice"),
        (
            "tasks: {A b: {text: hi}}",
            ": tasks.A b: a task's name is 1 to 63 of a-z, 0-9, _ and -, not first _ or -",
        ),
        ("tasks: {7: {text: hi}}", ": tasks.7: Input should be a valid string"),
        (f"{A}, templte: x}}", ": tasks.a.templte: unknown key; did you mean template?"),
        (f"{A}, choice: [x]}}", ": tasks.a.choice: unknown key; it belongs under defaults"),
        (f"{A}, traffic: 9}}", ": tasks.a.traffic: unknown key; it belongs under versions"),
        (
            f"{A}, limits: {{rate: 9}}}}",
            ": tasks.a.limits.rate: unknown key; known are max_tokens, max_prompt_tokens, "
            "max_concurrency",
        ),
        (
            f"{A}, defaults: {{temperature: 3}}}}",
            ": tasks.a.defaults.temperature: Input should be less than or equal to 2",
        ),
        (f"{A}, defaults: {{temperature: .nan}}}}", ": tasks.a.defaults.temperature: Input should "
         "be a finite number"),
        (f"{A}, weight: '2'}}", ": tasks.a.weight: Input should be a valid number"),
        (f"{A}, chat: yes}}", ": tasks.a.chat: Input should be a valid boolean"),
        (f"{A}, golden: [{{prompt: x, expect: 5}}]}}", ": tasks.a.golden.0.expect: Input should be "
         "a valid string"),
        (f"{A}, golden: [{{prompt: x}}]}}", ": tasks.a.golden.0.expect: is required"),
        (
            f"{A}, defaults: {{choice: [x], regex: y}}}}",
            ": tasks.a.defaults: set only one of regex and choice",
        ),
        (
            f"{A}, defaults: {{response_format: {{schema: 2024-01-01}}}}}}",
            ": tasks.a.defaults.response_format.schema: input was not a valid JSON value",
        ),
        (f"{A}, prefix: y}}", ": tasks.a: set only one of prefix and text"),
        (
            f"{A}, versions: [{{text: x, traffic: 1}}]}}",
            ": tasks.a: text belongs into each of the versions, not beside them",
        ),
        (
            f"{A}, rollback_if: {{golden_fails: true}}}}",
            ": tasks.a: rollback_if goes with versions that share the traffic",
        ),
        (
            "tasks: {a: {rollback_if: {min_requests: 9}, versions: [{text: x, traffic: 1}]}}",
            ": tasks.a.rollback_if: a rule needs a condition, such as error_rate_above",
        ),
        ("tasks: {a: {versions: [{text: x}]}}", ": tasks.a.versions.0.traffic: is required"),
        (
            "tasks: {a: {versions: [{traffic: 1}]}}",
            ": tasks.a.versions.0: give exactly one of prefix, text and messages",
        ),
        (
            "tasks: {a: {versions: [{text: x, traffic: 0}]}}",
            ": tasks.a: at least one version needs traffic above 0",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_with_file_and_path(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError) as caught:
        read(text, tmp_path)

    assert str(caught.value) == f"{tmp_path / 'tasks.yaml'}{message}"


def test_words_that_are_booleans_in_old_yaml_are_texts(tmp_path: Path) -> None:
    found = read("tasks: {on: {text: no, defaults: {choice: [yes, no], stop: off}}}", tmp_path)

    assert found["on"].text == "no"
    assert found["on"].defaults.choice == ["yes", "no"]
    assert found["on"].defaults.stop == ["off"]


def test_null_in_a_definition_counts_as_given(tmp_path: Path) -> None:
    found = read("tasks: {a: {prefix: x, template: null}, b: {prefix: x}, c: }", tmp_path)

    assert found["a"].definition == {"template": None}
    assert found["b"].definition == found["c"].definition == {}


def test_files_folders_documents_and_standard_input_are_read_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "one.yaml").write_text("tasks: {a: {text: x}}\n---\ntasks: {b: {text: x}}\n")
    (tmp_path / "sub/two.yml").write_bytes(b"\xef\xbb\xbftasks: {c: {text: x}}")
    (tmp_path / "sub/three.yaml").write_text("# nothing\n")
    (tmp_path / "sub/notes.txt").write_text("not YAML: [")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"tasks": {"d": {}}}')))

    found = files.read([str(tmp_path / "one.yaml"), str(tmp_path / "sub"), "-"])

    assert list(found) == ["a", "b", "c", "d"]
    assert [task.folder for task in found.values()] == [
        tmp_path, tmp_path, tmp_path / "sub", Path(),
    ]  # fmt: skip
    assert found["d"].at("prefix") == "standard input: tasks.d.prefix"


def test_a_task_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("one.yaml", "two.yaml"):
        (tmp_path / name).write_text("tasks: {a: {text: x}}")

    with pytest.raises(InvalidFileError) as caught:
        files.read([str(tmp_path)])

    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    assert str(caught.value) == f"{two}: tasks.a: the task is in {one} too"


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"tasks: {a: {text: \xe9}}")
    (tmp_path / "empty").mkdir()

    for name, message in {
        "none.yaml": "No such file or directory",
        "latin.yaml": "not UTF-8 text",
        "empty": "the folder has no .yaml or .yml file",
    }.items():
        with pytest.raises(InvalidFileError, match=rf"{name}: {message}$"):
            files.read([str(tmp_path / name)])


def test_the_example_of_the_page_is_a_file_of_tasks(tmp_path: Path) -> None:
    page = (ROOT / "docs/tasks-as-code.md").read_text("utf-8")
    example = page.partition("```yaml\n")[2].partition("```")[0]

    found = read(example, tmp_path)

    assert list(found) == ["french", "summarize", "mood"]
    assert found["french"].defaults.stop == ["\n"]
    assert [version.traffic for version in found["mood"].versions] == [90, 10]
