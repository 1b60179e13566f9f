"""Prefixes at URLs: read as local ones are, or refused in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.registry import _registry

from foreword_client.apply.models import Definition
from foreword_client.errors import SourceError
from prefix_store import artifact
from tests.clients.python.apply.conftest import save_peft
from tests.clients.python.apply.opening import opened, read, uploaded
from tests.s3 import BUCKET, S3, running_s3
from tests.server.fakes import make_prefix

ASKED = Definition(template="Q: {prompt}")
OTHER = Definition(template="Question: {prompt}")


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with running_s3() as server:
        yield server


@pytest.mark.parametrize("url", ["memory://bucket/run", "file://{}/run", f"s3://{BUCKET}/run"])
def test_a_url_is_read_as_a_local_folder_is(url: str, s3: S3, tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "run", definition={"template": "Q: {prompt}"})
    (folder / "optimizer.pt").write_bytes(b"large")
    url = url.format(tmp_path)
    if not url.startswith("file:"):
        filesystem, path = fsspec.core.url_to_fs(url)
        filesystem.put(str(folder), path, recursive=True)

    source = opened(url, tmp_path)

    assert source.label == url
    assert source.own == ASKED
    assert uploaded(source, OTHER) == uploaded(opened("run", tmp_path), OTHER)
    assert not list((tmp_path / "scratch").rglob("optimizer.pt"))


def test_a_file_at_a_url_is_read(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/bucket/x.safetensors", artifact.dump(make_prefix()))

    source = opened("memory://bucket/x.safetensors", tmp_path)

    assert read(uploaded(source, ASKED)).definition is not None


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://bucket/none", "memory://bucket/none: no such file or folder"),
        ("nothing://x", "nothing:// is no kind of URL that fsspec reads"),
        ("s3://key:secret@bucket/x", "s3://bucket/x cannot be read: no route"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused_in_one_sentence(
    url: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if url.startswith("s3:"):

        def fails(url: str) -> None:
            raise OSError("no route\nto the host")

        monkeypatch.setattr(fsspec.core, "url_to_fs", fails)

    with pytest.raises(SourceError) as caught:
        opened(url, tmp_path)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("url", "missing", "extra"),
    [
        ("hf://org/repo", "fsspec", "hf"),
        ("s3://bucket/x", "s3fs", "s3"),
        ("hf://org/repo", "huggingface_hub", "hf"),
        ("gs://bucket/x", "fsspec", "fsspec"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_has_it(
    url: str, missing: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(_registry, url.partition(":")[0], raising=False)

    with pytest.raises(SourceError, match=rf"pip install 'foreword-client\[{extra}\]'$"):
        opened(url, tmp_path)
