"""Prefixes from files, folders, tars and URLs: read alike, and recognised by their content."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from foreword_client import types
from foreword_client._upload import Upload
from foreword_client.apply import remote, sources
from foreword_client.apply.models import Defaults, Definition, Rank, VersionSpec
from foreword_client.apply.sources import UploadSource
from foreword_client.errors import SourceError
from prefix_store import artifact
from prefix_store.digest import Digest
from prefix_store.formats import names, tar
from tests.clients.python.apply.conftest import save_peft
from tests.clients.python.apply.opening import opened, read, uploaded
from tests.server.fakes import BASE, make_prefix

ASKED = Definition(template="Q: {prompt}")
OTHER = Definition(template="Question: {prompt}")
DIGEST = "sha256:" + "ab" * 32


def version(number: int = 1, **fields: Any) -> types.Version:
    given = {"task": "x", "version": number, "digest": DIGEST, "num_virtual_tokens": 3,
             "num_bytes": 9, "created_at": "2026-01-01T00:00:00Z"}  # fmt: skip
    return types.Version.model_validate(given | fields)


def digest(data: bytes) -> str:
    return str(Digest.of(data))


def test_names_of_files_are_the_stores() -> None:
    assert set(remote.KNOWN) == names.KNOWN


def test_the_files_definition_goes_into_the_upload(tmp_path: Path) -> None:
    own = {"template": "old {prompt}", "defaults": {"choices": ["a"], "rank_by": "mean"}}
    save_peft(tmp_path / "run", definition=own | {"fingerprint": BASE.fingerprint})

    source = opened("run", tmp_path)
    found = read(uploaded(source, ASKED))

    ranked = Defaults(rank=Rank(texts=["a"], by="mean"))
    assert source.own == Definition(template="old {prompt}", defaults=ranked)
    assert found.definition is not None
    assert found.definition.template == "Q: {prompt}"
    assert b'"fingerprint"' in uploaded(source, ASKED)


def test_a_folder_is_packed_alike_wherever_it_lies(tmp_path: Path) -> None:
    save_peft(tmp_path / "here", definition={"template": "Q: {prompt}"})
    save_peft(tmp_path / "there", definition={"template": "Q: {prompt}"})

    here, there = opened("here", tmp_path), opened(str(tmp_path / "there"), tmp_path)

    assert uploaded(here, OTHER) == uploaded(there, OTHER)
    assert here.digest(OTHER) == there.digest(OTHER) == digest(uploaded(here, OTHER))


def test_a_prefix_is_recognised_under_every_definition_it_was_uploaded_with(
    tmp_path: Path,
) -> None:
    save_peft(tmp_path / "run")
    source = opened("run", tmp_path)
    pushed = digest(b"".join(Upload(tmp_path / "run").body().chunks()))
    versions = [
        version(1, source_digest=pushed),
        version(2, source_digest=digest(uploaded(source, ASKED))),
        version(3, source_digest=digest(uploaded(source, OTHER))),
        version(4, source_digest=DIGEST),
    ]

    assert source.held_by(versions, [ASKED]) == {1, 2}
    assert source.held_by(versions, [ASKED, OTHER]) == {1, 2, 3}


def test_an_artifact_is_recognised_by_its_digest(tmp_path: Path) -> None:
    data = artifact.dump(make_prefix())
    made = digest(data)
    (tmp_path / "x.safetensors").write_bytes(data)
    golden = [{"prompt": "a", "expect": "b"}]
    line = json.dumps(golden[0]).encode()
    (tmp_path / "x.tar").write_bytes(tar.write({names.ARTIFACT: data, names.GOLDEN: line}))

    bare, packed = opened("x.safetensors", tmp_path), opened("x.tar", tmp_path)

    plain, asked = version(1, digest=made), version(2, digest=made, golden=golden)
    assert bare.held_by([plain, asked], []) == {1}
    assert packed.held_by([plain, asked], []) == {2}
    assert read(uploaded(bare, ASKED)).definition is not None


def test_text_is_recognised_with_and_without_a_definition() -> None:
    source = sources.open_source(VersionSpec(text="hi"), Path(), Path())
    assert isinstance(source, UploadSource)
    bodies = [b'{"text": "hi"}', uploaded(source, ASKED)]
    versions = [version(n, source_digest=digest(body)) for n, body in enumerate(bodies)]

    assert source.held_by(versions, [ASKED]) == {0, 1}
    assert source.held_by(versions, [OTHER]) == {0}


def test_a_tar_is_read_from_its_folder(tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "run", definition={"template": "Q: {prompt}"})
    with tarfile.open(tmp_path / "run.tar", "w") as archive:
        archive.add(folder, "deep")

    source = opened("run.tar", tmp_path)

    assert source.own == ASKED
    found = read(uploaded(source, OTHER))
    assert found.definition is not None
    assert found.definition.template == OTHER.template


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"x": b""}, "empty"),
        ({"x": b"PK\x03\x04" + bytes(9)}, "a pickled file"),
        ({"x": b"\x1f\x8b" + bytes(9)}, "compressed"),
        ({"x/adapter_config.json": b"{}"}, "is no PEFT folder"),
        ({"x/adapter_config.json": b"{}", "x/adapter_model.safetensors": b"w",
          "x/foreword.json": b'{"chat": 1}'}, "foreword.json: chat: Input should be"),
        ({"x/adapter_config.json": b"{}", "x/adapter_model.safetensors": b"w",
          "x/foreword.json": b"{"}, "the foreword.json of the source is not JSON"),
    ],
)  # fmt: skip
def test_what_is_no_prefix_is_refused(
    files: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)

    with pytest.raises(SourceError, match=message):
        opened("x", tmp_path)


def test_damaged_tars_and_missing_files_are_refused(tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "run")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, "run")
    (tmp_path / "cut.tar").write_bytes(buffer.getvalue()[:700])

    for name, message in {
        "cut.tar": "not a whole tar",
        "missing": "no such file or folder",
        "sha256:12": "a digest is",
    }.items():
        with pytest.raises(SourceError, match=message):
            opened(name, tmp_path)
