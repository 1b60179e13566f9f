from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prefix_store import artifact
from prefix_store.errors import (
    IncompatiblePrefix,
    InvalidArtifact,
    InvalidUpload,
    NonFiniteValues,
    PrefixTooLong,
    UnsupportedFormat,
    WrongBaseModel,
)
from prefix_store.prefix import BaseModelSpec, Prefix
from prefix_store.safetensors_gate import read_tensors, write_tensors

Tensors = dict[str, Tensor]


def load(data: bytes, base: BaseModelSpec) -> Prefix:
    return artifact.load(data, base, max_prefix_tokens=64)


def same(a: Prefix, b: Prefix) -> bool:
    return all(map(torch.equal, a.keys + a.values, b.keys + b.values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_prefix_reads_back(base: BaseModelSpec, prefix: Prefix, dtype: torch.dtype) -> None:
    prefix = replace(
        prefix,
        keys=tuple(t.to(dtype) for t in prefix.keys),
        values=tuple(t.to(dtype) for t in prefix.values),
    )
    data = artifact.dump(prefix)

    for read in (load(data, base), artifact.read(data)):
        assert same(read, prefix)
        assert read.keys[0].dtype == dtype
        assert (read.position_offset, read.fingerprint) == (3, base.fingerprint)
        assert read.origin == prefix.origin


def test_equal_content_gives_equal_bytes(base: BaseModelSpec, prefix: Prefix) -> None:
    data = artifact.dump(prefix)
    shuffled = replace(
        prefix,
        keys=tuple(t.transpose(0, 1).contiguous().transpose(0, 1) for t in prefix.keys),
        origin=dict(reversed(prefix.origin.items())),
    )

    assert artifact.dump(shuffled) == data
    assert artifact.dump(load(data, base)) == data


def test_another_base_model_is_named(base: BaseModelSpec, prefix: Prefix) -> None:
    other = "sha256:" + "cd" * 32
    with pytest.raises(WrongBaseModel) as refusal:
        load(artifact.dump(replace(prefix, fingerprint=other)), base)

    assert base.fingerprint in str(refusal.value)
    assert other in str(refusal.value)


def test_a_prefix_without_a_fingerprint_is_bound(base: BaseModelSpec, prefix: Prefix) -> None:
    data = artifact.dump(replace(prefix, fingerprint=""))

    assert load(data, base).fingerprint == base.fingerprint


def test_too_many_virtual_tokens(base: BaseModelSpec, prefix: Prefix) -> None:
    data = artifact.dump(prefix)

    assert artifact.load(data, base, max_prefix_tokens=3).num_virtual_tokens == 3
    with pytest.raises(PrefixTooLong, match=r"3 virtual tokens.*limit is 2"):
        artifact.load(data, base, max_prefix_tokens=2)


def rename(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {new if k == old else k: v for k, v in tensors.items()}


def reshape(change: Callable[[Tensor], Tensor], only: str = "") -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: change(v) if only in k else v for k, v in tensors.items()}


SHAPES: dict[str, Callable[[Tensors], Tensors]] = {
    "a layer less": lambda t: {k: v for k, v in t.items() if "layers.1" not in k},
    "a layer more": lambda t: t | {k.replace("1", "2"): v for k, v in t.items() if ".1." in k},
    "keys only": lambda t: {k: v for k, v in t.items() if k.endswith("keys")},
    "one tensor less": lambda t: {k: v for k, v in t.items() if k != "layers.1.values"},
    "a gap in the layers": lambda t: {k.replace(".1.", ".7."): v for k, v in t.items()},
    "values of another length": reshape(lambda v: v[:, :2], "values"),
    "one tensor of another length": reshape(lambda v: v[:, :2], "layers.1.keys"),
    "a head less": reshape(lambda v: v[:1]),
    "a head more": reshape(lambda v: torch.cat([v, v[:1]])),
    "head_dim less": reshape(lambda v: v[..., :3]),
    "head_dim more": reshape(lambda v: torch.cat([v, v[..., :1]], -1)),
    "transposed": reshape(lambda v: v.transpose(0, 1)),
    "rank 2": reshape(lambda v: v[0]),
    "rank 4": reshape(lambda v: v[None]),
}
NAMES: dict[str, Callable[[Tensors], Tensors]] = {
    "an extra tensor": lambda t: t | {"extra": t["layers.0.keys"]},
    "singular": rename("layers.0.keys", "layers.0.key"),
    "leading zero": rename("layers.1.keys", "layers.01.keys"),
    "other digits": rename("layers.1.keys", "layers.\u0661.keys"),
    "newline": rename("layers.1.keys", "layers.1.keys\n"),
}


def mangled(prefix: Prefix, change: Callable[[Tensors], Tensors]) -> bytes:
    tensors, metadata = read_tensors(artifact.dump(prefix))
    return write_tensors(change(tensors), metadata)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_that_does_not_fit_says_expected_and_got(
    base: BaseModelSpec, prefix: Prefix, name: str
) -> None:
    with pytest.raises(IncompatiblePrefix, match="expected"):
        load(mangled(prefix, SHAPES[name]), base)


@pytest.mark.parametrize("name", NAMES)
def test_an_unexpected_name_is_refused(base: BaseModelSpec, prefix: Prefix, name: str) -> None:
    with pytest.raises(InvalidArtifact, match="unexpected tensor"):
        load(mangled(prefix, NAMES[name]), base)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_found(
    base: BaseModelSpec, prefix: Prefix, value: float
) -> None:
    prefix.values[-1][-1, -1, -1] = value

    with pytest.raises(NonFiniteValues, match=r"layers\.1\.values"):
        load(artifact.dump(prefix), base)


def test_a_value_beyond_the_serving_dtype_is_found(base: BaseModelSpec, prefix: Prefix) -> None:
    prefix.keys[0][0, 0, 0] = 1e5

    assert same(load(artifact.dump(prefix), base), prefix)
    with pytest.raises(NonFiniteValues, match=r"layers\.0\.keys.*float16"):
        load(artifact.dump(prefix), replace(base, dtype="float16"))


def test_subnormal_values_are_taken(base: BaseModelSpec, prefix: Prefix) -> None:
    prefix.keys[0][:] = 1e-40

    assert same(load(artifact.dump(prefix), base), prefix)


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("format_version", "2", UnsupportedFormat),
        ("format_version", None, InvalidArtifact),
        ("fingerprint", None, InvalidArtifact),
        ("fingerprint", "sha256:xyz", InvalidArtifact),
        ("fingerprint", "sha256:" + "AB" * 32, InvalidArtifact),
        ("position_offset", None, InvalidArtifact),
        ("position_offset", "-1", InvalidArtifact),
        ("position_offset", "3.0", InvalidArtifact),
        ("position_offset", "\u0663", InvalidArtifact),
        ("position_offset", "9" * 5000, InvalidArtifact),
        ("position_offset", "4", IncompatiblePrefix),
        ("surprise", "x", InvalidArtifact),
    ],
)
def test_metadata_is_checked(
    base: BaseModelSpec, prefix: Prefix, key: str, value: str | None, error: type[InvalidUpload]
) -> None:
    tensors, metadata = read_tensors(artifact.dump(prefix))
    del_or_set = {k: v for k, v in (metadata | {key: value}).items() if v is not None}

    with pytest.raises(error):
        load(write_tensors(tensors, del_or_set), base)


def test_a_prefix_may_begin_at_zero(base: BaseModelSpec, prefix: Prefix) -> None:
    data = artifact.dump(replace(prefix, position_offset=0))

    assert load(data, base).position_offset == 0
