"""Against PEFT itself, on a tiny random Llama."""

from __future__ import annotations

import io
import tarfile
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from prefix_store import artifact, formats
from prefix_store.digest import Digest
from prefix_store.errors import IncompatiblePrefix
from prefix_store.formats import peft, tar
from prefix_store.prefix import Prefix, SoftPrompt
from tests.prefix_store.tiny_llama import (
    BASE,
    EMBEDDINGS,
    KEYS_AND_VALUES,
    L,
    Trained,
    logits_behind,
    peft_logits,
    read,
    run,
)


@pytest.mark.parametrize("kind", KEYS_AND_VALUES)
def test_keys_and_values_give_what_peft_gives(trained: dict[str, Trained], kind: str) -> None:
    made = trained[kind]
    data = made.tar()
    prefix = read(data)

    assert isinstance(prefix, Prefix)
    assert (prefix.num_virtual_tokens, prefix.position_offset) == (L, L)
    assert prefix.fingerprint == BASE.fingerprint
    expected = kind if kind != "projected" else "peft-prefix-tuning"
    assert prefix.origin == {"source_format": expected, "source_digest": str(Digest.of(data))}
    torch.testing.assert_close(logits_behind(prefix), made.logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", KEYS_AND_VALUES)
def test_the_layout_is_the_documented_one(trained: dict[str, Trained], kind: str) -> None:
    flat = load_file(trained[kind].folder / peft.WEIGHTS)["prompt_embeddings"]
    prefix = read(trained[kind].tar())

    assert isinstance(prefix, Prefix)
    for i in range(BASE.num_layers):
        for head in range(BASE.num_kv_heads):
            for slot, tensor in ((2 * i, prefix.keys[i]), (2 * i + 1, prefix.values[i])):
                begin = (slot * BASE.num_kv_heads + head) * BASE.head_dim
                assert torch.equal(tensor[head], flat[:, begin : begin + BASE.head_dim])


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_embeddings_give_what_peft_gives(trained: dict[str, Trained], kind: str) -> None:
    soft = read(trained[kind].tar())

    assert isinstance(soft, SoftPrompt)
    assert soft.embeddings.shape == (L, BASE.hidden_size)
    assert soft.source_format == kind
    torch.testing.assert_close(logits_behind(run(soft)), trained[kind].logits, atol=2e-5, rtol=0)


def test_embeddings_keep_none_of_the_upload_in_memory() -> None:
    class Body(bytearray):
        pass

    columns = torch.zeros(2, BASE.hidden_size)
    body = Body(save({"prompt_embeddings": columns}))
    kept = weakref.ref(body)
    upload = formats.read(body, formats.SAFETENSORS, BASE, max_prefix_tokens=L)
    del body

    assert isinstance(upload.source, SoftPrompt)
    assert torch.equal(upload.source.embeddings, columns)
    assert kept() is None


@pytest.mark.parametrize(
    "media_type", ["application/x-tar", "application/tar", "", "application/octet-stream"]
)
@pytest.mark.parametrize("top", ["", "my-task"])
def test_a_tar_may_have_one_leading_folder(
    trained: dict[str, Trained], media_type: str, top: str
) -> None:
    assert isinstance(read(trained["peft-cartridge"].tar(top), media_type), Prefix)


@pytest.mark.parametrize(
    "media_type", ["application/vnd.safetensors", "application/octet-stream", ""]
)
@pytest.mark.parametrize("kind", ["projected", "peft-cartridge", "peft-p-tuning"])
def test_weights_alone_are_known_by_their_columns(
    trained: dict[str, Trained], media_type: str, kind: str
) -> None:
    alone, whole = read(trained[kind].weights, media_type), read(trained[kind].tar())

    assert type(alone) is type(whole)
    if isinstance(alone, Prefix) and isinstance(whole, Prefix):
        assert all(map(torch.equal, alone.keys + alone.values, whole.keys + whole.values))


@pytest.mark.parametrize("kind", ["projected", "peft-p-tuning"])
def test_weights_alone_may_have_a_definition_beside_them(
    trained: dict[str, Trained], kind: str
) -> None:
    files = {"prefix.safetensors": trained[kind].weights, "foreword.json": b'{"chat": true}'}

    assert type(read(tar.write(files))) is type(read(trained[kind].weights, ""))


def test_an_export_is_what_peft_loads(trained: dict[str, Trained], tmp_path: Path) -> None:
    prefix = read(trained["projected"].tar())
    assert isinstance(prefix, Prefix)
    data = tar.write(peft.write(prefix, BASE))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(tmp_path, filter="data")
    again = read(data)

    torch.testing.assert_close(peft_logits(tmp_path), trained["projected"].logits, atol=0, rtol=0)
    assert isinstance(again, Prefix)
    assert all(map(torch.equal, again.keys + again.values, prefix.keys + prefix.values))
    assert tar.write(peft.write(again, BASE)) == data


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_export_keeps_the_dtype(
    trained: dict[str, Trained], tmp_path: Path, dtype: torch.dtype
) -> None:
    prefix = read(trained["peft-cartridge"].tar())
    assert isinstance(prefix, Prefix)
    half = replace(
        prefix,
        keys=tuple(t.to(dtype) for t in prefix.keys),
        values=tuple(t.to(dtype) for t in prefix.values),
    )
    with tarfile.open(fileobj=io.BytesIO(tar.write(peft.write(half, BASE)))) as archive:
        archive.extractall(tmp_path, filter="data")
    wide = replace(
        half, keys=tuple(t.float() for t in half.keys), values=tuple(t.float() for t in half.values)
    )

    torch.testing.assert_close(peft_logits(tmp_path), logits_behind(wide), atol=2e-5, rtol=0)


def test_an_offset_that_peft_cannot_express_is_not_exported(trained: dict[str, Trained]) -> None:
    prefix = read(trained["peft-cartridge"].tar())

    assert isinstance(prefix, Prefix)
    with pytest.raises(IncompatiblePrefix, match="position_offset"):
        peft.write(replace(prefix, position_offset=0), BASE)


def test_an_artifact_and_a_peft_file_are_told_apart(trained: dict[str, Trained]) -> None:
    prefix = read(trained["peft-cartridge"].tar())
    assert isinstance(prefix, Prefix)
    again = read(artifact.dump(prefix), "")

    assert isinstance(again, Prefix)
    assert again.origin == prefix.origin
