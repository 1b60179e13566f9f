"""Files next to a prefix in a tar, and how often the tar is parsed for them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foreword_client import _upload
from prefix_store import artifact, formats
from prefix_store.definition import Definition, Evaluation, GoldenPrompt
from prefix_store.digest import Digest
from prefix_store.errors import InvalidArtifact
from prefix_store.formats import names, tar
from prefix_store.prefix import BaseModelSpec, Prefix

CONSOLE = Path(__file__).parents[3] / "clients" / "console" / "source.js"
GOLDEN = {"prompt": "a", "expect": "b"}
EVALUATION = {"num_examples": 3, "scores": {"exact": 0.5}}


def archive(prefix: Prefix, folders: dict[str, str] | None = None) -> bytes:
    """A tar of a prefix and all sidecars; `folders` maps names to folders."""
    files = {
        names.ARTIFACT: artifact.dump(prefix),
        names.DEFINITION: json.dumps({"template": "Q: {prompt}"}).encode(),
        names.GOLDEN: json.dumps(GOLDEN).encode(),
        names.EVALUATION: json.dumps(EVALUATION).encode(),
    }
    return tar.write({f"{(folders or {}).get(name, '')}{name}": files[name] for name in files})


def read(data: bytes, base: BaseModelSpec) -> formats.Upload:
    return formats.read(data, "", base, max_prefix_tokens=64)


@pytest.mark.parametrize("folders", [{}, dict.fromkeys(names.KNOWN, "x/")])
def test_an_upload_is_parsed_with_all_its_files_in_one_pass(
    base: BaseModelSpec,
    prefix: Prefix,
    monkeypatch: pytest.MonkeyPatch,
    folders: dict[str, str],
) -> None:
    passes: list[int] = []
    members = tar._members

    def counting(data: bytes) -> Iterator[Any]:
        passes.append(len(data))
        return members(data)

    monkeypatch.setattr(tar, "_members", counting)
    data = archive(prefix, folders)

    upload = read(data, base)

    assert len(passes) == 1
    assert isinstance(upload.source, Prefix)
    assert upload.digest == Digest.of(data)
    assert upload.golden == (GoldenPrompt.model_validate(GOLDEN),)
    assert upload.evaluation == Evaluation.model_validate(EVALUATION)
    assert upload.definition == Definition(template="Q: {prompt}")


def test_each_file_is_taken_from_the_outermost_folder_that_has_it(
    base: BaseModelSpec, prefix: Prefix
) -> None:
    upload = read(archive(prefix, {names.ARTIFACT: "adapter/", names.GOLDEN: "data/"}), base)

    assert isinstance(upload.source, Prefix)
    assert (len(upload.golden), upload.evaluation is None) == (1, False)


def test_one_file_in_two_folders_is_refused(base: BaseModelSpec, prefix: Prefix) -> None:
    data = artifact.dump(prefix)

    with pytest.raises(InvalidArtifact, match="more than one directory"):
        read(tar.write({f"a/{names.ARTIFACT}": data, f"b/{names.ARTIFACT}": data}), base)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (names.DEFINITION, "[]", "foreword.json: the file must be an object, not a list"),
        (names.DEFINITION, '{"chat": 5}', "foreword.json: `chat` must be true or false"),
        (
            names.DEFINITION,
            '{"prompt": {"messages": [{"role": "user", "content": ""}]}}',
            "foreword.json: a message is empty",
        ),
        (names.GOLDEN, '{"prompt": "x"}', "golden.jsonl: `[0].expect` is missing"),
        (names.EVALUATION, '{"scores": {}}', "evaluation.json: `num_examples` is missing"),
    ],
)
def test_a_refused_file_is_named_with_its_field(
    base: BaseModelSpec, prefix: Prefix, name: str, content: str, said: str
) -> None:
    data = tar.write({names.ARTIFACT: artifact.dump(prefix), name: content.encode()})

    with pytest.raises(InvalidArtifact) as refusal:
        read(data, base)
    assert str(refusal.value).startswith(said)


def test_a_json_body_has_golden_prompts_and_no_other_sidecars(base: BaseModelSpec) -> None:
    body = json.dumps({"text": "Be brief.", "golden": [GOLDEN]}).encode()

    upload = formats.read(body, formats.JSON, base, max_prefix_tokens=64)

    assert upload.golden == (GoldenPrompt.model_validate(GOLDEN),)
    assert (upload.evaluation, upload.definition) == (None, None)


def test_the_clients_send_the_files_that_the_server_reads() -> None:
    """The SDK and the console know no server code, so they repeat the names."""
    sdk = {_upload.ARTIFACT, _upload.PEFT_CONFIG, _upload.PEFT_WEIGHTS, *_upload.BESIDE}
    text = CONSOLE.read_text("utf-8").partition("/**")[0]
    console = set(re.findall(r'"([\w.]+\.(?:jsonl?|safetensors))"', text))

    assert sdk == console == names.KNOWN
