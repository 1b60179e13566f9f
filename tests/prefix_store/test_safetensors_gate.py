from __future__ import annotations

import json
import random
import time

import pytest
import safetensors.torch
import torch

from prefix_store import artifact, formats
from prefix_store.errors import InvalidArtifact, InvalidUpload
from prefix_store.prefix import BaseModelSpec, Prefix
from prefix_store.safetensors_gate import read_tensors, write_tensors
from tests.prefix_store.bad_files import BAD, EIGHT, ONE, file


@pytest.mark.parametrize("media_type", [formats.SAFETENSORS, formats.OCTET_STREAM])
@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_a_bad_file_is_refused_soon_and_in_few_words(
    base: BaseModelSpec, name: str, media_type: str
) -> None:
    start = time.process_time()
    with pytest.raises(InvalidUpload) as refusal:
        formats.read(BAD[name], media_type, base, max_prefix_tokens=64)

    assert time.process_time() - start < 2.0
    assert len(str(refusal.value)) < 300
    assert str(refusal.value).isascii()
    assert str(refusal.value).isprintable()


WELL_FORMED = {name for name in BAD if name.startswith("tensor named ")} | {"NaN and Inf"}
WELL_FORMED.remove("tensor named by a lone surrogate")


@pytest.mark.parametrize("name", sorted(BAD.keys() - WELL_FORMED), ids=ascii)
def test_the_structure_alone_gives_it_away_before_the_library_sees_it(name: str) -> None:
    with pytest.raises(InvalidArtifact) as refusal:
        read_tensors(BAD[name])
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize("name", ["header of spaces", "99 MB header", "3 MB of empty tensors"])
def test_a_header_above_the_limit_is_not_even_parsed(name: str) -> None:
    with pytest.raises(InvalidArtifact, match="1 MiB"):
        read_tensors(BAD[name])


@pytest.mark.parametrize("name", sorted(WELL_FORMED), ids=ascii)
def test_names_and_values_are_for_others_to_judge(name: str) -> None:
    assert len(read_tensors(BAD[name])[0]) == 1


@pytest.mark.parametrize("name", ["pickle", "torch.save", "zip"])
def test_a_pickle_is_told_how_to_become_safetensors(name: str) -> None:
    with pytest.raises(InvalidArtifact, match="safe_serialization=True"):
        read_tensors(BAD[name])


def test_what_the_library_writes_is_read() -> None:
    tensors = {"b": torch.randn(3, 5), "a": torch.randn(2)}
    data = safetensors.torch.save(tensors, {"format": "pt"})
    read, metadata = read_tensors(data)

    assert metadata == {"format": "pt"}
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_written_the_library_reads(dtype: torch.dtype) -> None:
    tensors = {"a": torch.randn(3, 5).T.to(dtype), "b": torch.randn(1).to(dtype)}
    read = safetensors.torch.load(write_tensors(tensors, {"x": "\u00e9"}))

    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_every_header_length_that_looks_like_a_pickle_is_read() -> None:
    for length in (0x280, 0x380, 0x480, 0x580):  # as little-endian bytes: a pickle's first two
        padding = "x" * (length - len(json.dumps({"__metadata__": {"": ""}, "a": ONE})))
        data = file({"__metadata__": {"": padding}, "a": ONE}, EIGHT)
        assert data[:2] == bytes([0x80, length >> 8])
        assert read_tensors(data)[0].keys() == {"a"}


def test_a_file_cut_anywhere_is_refused(base: BaseModelSpec, prefix: Prefix) -> None:
    data = artifact.dump(prefix)
    for end in {*range(0, len(data), 7), len(data) - 1, len(data) - 2, len(data) - 8}:
        with pytest.raises(InvalidUpload):
            formats.read(data[:end], formats.SAFETENSORS, base, max_prefix_tokens=64)


def test_a_file_with_flipped_bytes_is_refused_or_still_a_prefix(
    base: BaseModelSpec, prefix: Prefix
) -> None:
    dice = random.Random(0)
    data = artifact.dump(prefix)
    header_end = 8 + int.from_bytes(data[:8], "little")
    for _ in range(1000):
        flipped = bytearray(data)
        for _ in range(dice.randint(1, 3)):
            flipped[dice.randrange(header_end)] = dice.randrange(256)
        try:
            read = formats.read(bytes(flipped), "", base, max_prefix_tokens=64).source
        except InvalidUpload:
            continue
        assert isinstance(read, Prefix)
        assert read.fingerprint == base.fingerprint
