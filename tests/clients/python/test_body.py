from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from foreword_client import SourceError
from foreword_client._body import Body, of_json
from foreword_client._upload import Source, Upload

SAFETENSORS = "application/vnd.safetensors"
TAR = "application/x-tar"


def of_prefix(source: Source | None, text: str | None, messages: Any) -> Body:
    return Upload(source, text, messages).body()


def _sent(body: Body) -> bytes:
    async def collect() -> bytes:
        return b"".join([chunk async for chunk in body.async_chunks()])

    data = b"".join(body.chunks())
    assert anyio.run(collect) == data
    assert len(data) == body.num_bytes
    return data


@pytest.fixture
def peft_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "prefix"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING"}')
    (folder / "adapter_model.safetensors").write_bytes(b"w" * 3_000_000)
    (folder / "README.md").write_text("not sent")
    return folder


@pytest.mark.parametrize("num_bytes", [1, 511, 512, 513, 3_000_000])
def test_a_peft_folder_becomes_a_tar_of_its_two_files(peft_folder: Path, num_bytes: int) -> None:
    weights = peft_folder / "adapter_model.safetensors"
    weights.write_bytes(b"w" * num_bytes)

    body = of_prefix(str(peft_folder), None, None)

    with tarfile.open(fileobj=io.BytesIO(_sent(body)), mode="r:") as tar:
        assert tar.getnames() == ["adapter_config.json", "adapter_model.safetensors"]
        member = tar.extractfile("adapter_model.safetensors")
        assert member is not None
        assert member.read() == weights.read_bytes()
    assert body.media_type == TAR


def test_the_same_folder_makes_the_same_tar_for_every_sender(peft_folder: Path) -> None:
    first = _sent(of_prefix(peft_folder, None, None))
    (peft_folder / "adapter_model.safetensors").touch()

    assert _sent(of_prefix(peft_folder, None, None)) == first


def test_a_file_is_sent_as_what_it_holds(tmp_path: Path, peft_folder: Path) -> None:
    tar = tmp_path / "prefix.data"
    tar.write_bytes(_sent(of_prefix(peft_folder, None, None)))
    weights = peft_folder / "adapter_model.safetensors"

    assert of_prefix(tar, None, None).media_type == TAR
    assert of_prefix(tar.read_bytes(), None, None).media_type == TAR
    assert of_prefix(weights, None, None).media_type == SAFETENSORS
    assert of_prefix(weights.read_bytes(), None, None).media_type == SAFETENSORS
    assert _sent(of_prefix(weights, None, None)) == weights.read_bytes()


def test_text_and_messages_go_as_json() -> None:
    messages = [{"role": "user", "content": "hi"}]

    assert json.loads(_sent(of_prefix(None, "é", None))) == {"text": "é"}
    assert json.loads(_sent(of_prefix(None, None, messages))) == {"messages": messages}


def test_a_folder_that_is_none_of_pefts_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no adapter_config.json and no adapter_model"):
        of_prefix(tmp_path, None, None)

    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"PK")
    with pytest.raises(SourceError, match="safe_serialization=True"):
        of_prefix(tmp_path, None, None)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"PK\x03\x04 a torch checkpoint", "pickled"),
        (b"\x80\x02 an old torch checkpoint", "pickled"),
        (b"\x1f\x8b gzip", "compressed"),
        (b"", "empty"),
    ],
)
def test_what_can_be_no_prefix_is_refused_before_anything_is_sent(
    tmp_path: Path, data: bytes, why: str
) -> None:
    file = tmp_path / "prefix.safetensors"
    file.write_bytes(data)

    with pytest.raises(SourceError, match=why):
        of_prefix(data, None, None)
    with pytest.raises(SourceError, match=why):
        of_prefix(file, None, None)


def test_exactly_one_source_is_wanted(tmp_path: Path) -> None:
    for source, text in ((None, None), (b"x", "y")):
        with pytest.raises(SourceError, match="exactly one"):
            of_prefix(source, text, None)
    with pytest.raises(SourceError, match="no such file"):
        of_prefix(tmp_path / "gone", None, None)


def test_json_has_no_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        of_json({"temperature": float("nan")})


def test_progress_reports_how_much_was_sent(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(bytes(3 << 20))
    told: list[tuple[int, int]] = []

    body = replace(of_prefix(file, None, None), progress=lambda *sent: told.append(sent))
    assert sum(map(len, body.chunks())) == 3 << 20

    assert told == [(n << 20, 3 << 20) for n in (1, 2, 3)]


async def test_and_so_is_who_asks_asynchronously(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    body = replace(of_prefix(b"x" * 9, None, None), progress=lambda *sent: told.append(sent))

    assert [chunk async for chunk in body.async_chunks()] == [b"x" * 9]
    assert told == [(9, 9)]
