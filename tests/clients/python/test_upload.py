"""What goes beside a prefix is part of the upload, whatever the prefix comes from."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foreword_client import Definition, Evaluation, SourceError
from foreword_client._body import Body
from foreword_client._upload import Source, Upload

DEFINITION = {"template": "Q: {prompt}\nÄ:", "defaults": {"stop": ["\n"], "max_tokens": 9}}
GOLDEN = [{"prompt": "a", "expect": "b"}, {"prompt": "c", "expect": [1, 2]}]
EVALUATION = {"num_examples": 3, "scores": {"exact_match": 0.5}}
BESIDE: dict[str, Any] = {"definition": DEFINITION, "golden": GOLDEN, "evaluation": EVALUATION}
OLD = {"foreword.json": b'{"chat": true}', "golden.jsonl": b"{}\n", "evaluation.json": b"{}"}
PEFT = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"w" * 700}


def sent(body: Body) -> bytes:
    data = b"".join(body.chunks())
    assert len(data) == body.num_bytes
    return data


def unpacked(data: bytes) -> dict[str, bytes]:
    """The files of a tar, each of which is there once."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        members = archive.getmembers()
        files = {m.name.removeprefix("./"): archive.extractfile(m) for m in members}
        assert len(files) == len(members)
        return {name: file.read() for name, file in files.items() if file is not None}


def packed(files: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def folder(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


Make = Callable[[Path], Source]
SOURCES: dict[str, Make] = {
    "folder": lambda tmp: folder(tmp / "x", PEFT | OLD),
    "tar": lambda tmp: written(tmp / "x.tar", packed(PEFT | OLD)),
    "gnu tar": lambda tmp: packed({f"./{k}": v for k, v in (PEFT | OLD).items()}),
    "tar of a folder": lambda tmp: packed({f"x/{k}": v for k, v in (PEFT | OLD).items()}),
    "file": lambda tmp: written(tmp / "x.safetensors", b"s" * 1000),
    "bytes": lambda tmp: b"s" * 1000,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_what_is_given_goes_into_the_tar_in_place_of_what_was_there(
    tmp_path: Path, kind: str
) -> None:
    source = SOURCES[kind](tmp_path)

    body = Upload(source, **BESIDE).body()
    files = unpacked(sent(body))

    assert body.media_type == "application/x-tar"
    assert json.loads(files["foreword.json"]) == DEFINITION
    assert [json.loads(line) for line in files["golden.jsonl"].splitlines()] == GOLDEN
    assert json.loads(files["evaluation.json"]) == EVALUATION
    prefix = {"prefix.safetensors": b"s" * 1000} if kind in ("file", "bytes") else PEFT
    assert {name: files.get(name, files.get(f"x/{name}")) for name in prefix} == prefix


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_with_nothing_beside_it_is_sent_as_it_is(tmp_path: Path, kind: str) -> None:
    source = SOURCES[kind](tmp_path)

    data = sent(Upload(source).body())

    if kind == "folder":
        assert unpacked(data) == PEFT | OLD
    else:
        assert data == (source if isinstance(source, bytes) else Path(str(source)).read_bytes())


@pytest.mark.parametrize(
    "source",
    [
        {"text": "t"},
        {"messages": [{"role": "user", "content": "hi"}]},
        {"prefix_of": 3},
    ],
)
def test_a_json_upload_has_it_in_its_fields(source: dict[str, Any]) -> None:
    typed = {
        "definition": Definition.model_validate(DEFINITION),
        "evaluation": Evaluation.model_validate(EVALUATION),
    }

    assert json.loads(sent(Upload(**source, **BESIDE).body())) == source | BESIDE
    assert json.loads(sent(Upload(**source).body())) == source
    found = json.loads(sent(Upload(**source, **typed).body()))
    assert found["definition"] == DEFINITION | {"chat": False}
    assert found["evaluation"] == EVALUATION


def test_a_definition_of_a_newer_server_is_sent_back_whole() -> None:
    newer = {"template": "{prompt}", "tools": [1], "defaults": {"typical_p": 0.5}, "chat": False}

    upload = Upload(text="t", definition=Definition.model_validate(newer))

    assert json.loads(sent(upload.body()))["definition"] == newer


@pytest.mark.parametrize("kind", SOURCES)
def test_a_change_is_made_to_the_definition_that_the_source_has(tmp_path: Path, kind: str) -> None:
    upload = Upload(SOURCES[kind](tmp_path))
    own = upload.own_definition()

    assert own == (None if kind in ("file", "bytes") else {"chat": True})
    changed = upload.asked(own or {}, {"template": "{prompt}!"})
    found = json.loads(unpacked(sent(changed.body()))["foreword.json"])
    assert found == (own or {}) | {"template": "{prompt}!"}


def test_defaults_are_changed_one_by_one_and_none_clears() -> None:
    upload = Upload(text="t")
    changes = {"template": None, "defaults": {"stop": None, "max_tokens": 5}}

    changed = upload.asked(DEFINITION | {"chat": True}, changes)

    assert changed.own_definition() == {"chat": True, "defaults": {"max_tokens": 5}}
    kept = upload.asked(DEFINITION, {"chat": True}).own_definition()
    assert kept == DEFINITION | {"chat": True}


def test_a_folder_from_a_download_is_a_source(tmp_path: Path) -> None:
    files = {"prefix.safetensors": b"s" * 10} | OLD
    source = folder(tmp_path / "x", files)

    assert unpacked(sent(Upload(source).body())) == files
    (source / "adapter_config.json").write_text("{}")
    with pytest.raises(SourceError, match="both"):
        Upload(source).body()


@pytest.mark.parametrize(
    ("files", "why"),
    [({"foreword.json": b"{"}, "not JSON"), ({"foreword.json": b"[]"}, "not a JSON object")],
)
def test_a_definition_that_cannot_be_changed_is_refused(
    tmp_path: Path, files: dict[str, bytes], why: str
) -> None:
    with pytest.raises(SourceError, match=why):
        Upload(folder(tmp_path / "x", PEFT | files)).own_definition()


def test_a_torn_tar_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    torn = packed(PEFT)[:700]

    for source in (torn, written(tmp_path / "x.tar", torn)):
        with pytest.raises(SourceError, match="not a whole tar"):
            Upload(source, definition={}).body()


def test_a_damaged_tar_is_not_made_whole(tmp_path: Path) -> None:
    damaged = bytearray(packed(PEFT))
    damaged[1024 + 148 : 1024 + 156] = b"00000000"  # the checksum of the second file

    for source in (bytes(damaged), written(tmp_path / "x.tar", bytes(damaged))):
        data = sent(Upload(source, definition={}).body())
        assert data.endswith(damaged[1024:])
