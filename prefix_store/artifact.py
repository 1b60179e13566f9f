"""Reading and validating artifacts: bytes to a prefix that fits the base model.

An artifact is one safetensors file: `layers.{i}.keys` and `layers.{i}.values`, each of shape
[num_kv_heads, L, head_dim], and metadata: `format_version`, `fingerprint`, `position_offset` and
`origin.*`. An artifact is identified by the digest of its bytes.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from prefix_store.digest import Data
from prefix_store.errors import (
    IncompatiblePrefix,
    InvalidArtifact,
    NonFiniteValues,
    OutOfRange,
    PrefixTooLong,
    UnsupportedFormat,
    WrongBaseModel,
)
from prefix_store.prefix import BaseModelSpec, Prefix
from prefix_store.safetensors_gate import TensorFile, read_tensors, shown, tensor_file

FORMAT_VERSION = "1"
MAX_NORM_RATIO = 1000.0
"""For scale: prefixes computed from text stay below 2, standard normal noise reaches 16."""
_ORIGIN = "origin."
_NAME = re.compile(r"layers\.(0|[1-9][0-9]{0,3})\.(keys|values)", re.ASCII)
_FINGERPRINT = re.compile(r"(sha256:[0-9a-f]{64})?")
_OFFSET = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)


def dump(prefix: Prefix) -> bytes:
    """Serialise a prefix to memory. Deterministic: equal prefixes give equal bytes."""
    return b"".join(to_file(prefix))


def to_file(prefix: Prefix) -> TensorFile:
    """Serialise a prefix piece by piece, as `dump` does at once."""
    tensors: dict[str, Tensor] = {}
    for i, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        tensors[f"layers.{i}.keys"] = keys
        tensors[f"layers.{i}.values"] = values
    metadata = {
        "format_version": FORMAT_VERSION,
        "fingerprint": prefix.fingerprint,
        "position_offset": str(prefix.position_offset),
        **{f"{_ORIGIN}{key}": value for key, value in prefix.origin.items()},
    }
    return tensor_file(tensors, metadata)


def load(data: Data, base: BaseModelSpec, *, max_prefix_tokens: int) -> Prefix:
    """Read and validate an uploaded artifact; bind it to `base` if it names no base model.

    Raises subclasses of `InvalidUpload`.
    """
    tensors, metadata = read_tensors(data)
    prefix = _assemble(tensors, metadata)
    check(prefix, base, max_prefix_tokens=max_prefix_tokens)
    return replace(prefix, fingerprint=base.fingerprint)


def read(data: Data) -> Prefix:
    """Read an artifact that `load` accepted before and whose digest has been verified."""
    tensors, metadata = read_tensors(data)
    return _assemble(tensors, metadata)


def check(prefix: Prefix, base: BaseModelSpec, *, max_prefix_tokens: int) -> None:
    """Check a prefix's fingerprint, shapes, offset and values against the base model.

    Raises `WrongBaseModel`, `IncompatiblePrefix`, `PrefixTooLong`, `NonFiniteValues`, `OutOfRange`.
    """
    if prefix.fingerprint not in ("", base.fingerprint):
        raise WrongBaseModel(
            f"expected a prefix of {base.name} ({base.fingerprint}), got one of "
            f"{prefix.fingerprint}"
        )
    if len(prefix.keys) != base.num_layers:
        raise IncompatiblePrefix(f"expected {base.num_layers} layers, got {len(prefix.keys)}")
    num_tokens = prefix.num_virtual_tokens
    expected = (base.num_kv_heads, num_tokens, base.head_dim)
    for name, tensor in _named(prefix):
        if tuple(tensor.shape) != expected:
            raise IncompatiblePrefix(
                f"{name}: expected [{base.num_kv_heads}, L, {base.head_dim}] with the same L "
                f"everywhere, got {list(tensor.shape)}"
            )
    check_length(num_tokens, max_prefix_tokens)
    if not 0 <= prefix.position_offset <= num_tokens:
        raise IncompatiblePrefix(
            f"expected a position_offset of 0 to {num_tokens}, got {prefix.position_offset}"
        )
    for name, tensor in _named(prefix):
        check_finite(name, tensor, base.dtype)
    if (longest := max(norm_ratios(prefix, base))) > MAX_NORM_RATIO:
        raise OutOfRange(
            f"the norm of a key or value is {longest:.3g} times the largest of the model's own; "
            f"the limit is {MAX_NORM_RATIO:.0f} times"
        )


def norm_ratios(prefix: Prefix, base: BaseModelSpec) -> tuple[float, float]:
    """Return the largest norms of keys and of values relative to the model's own, over all layers.

    Zero if the model's own norms are unknown.
    """
    keys, values = 0.0, 0.0
    for k, v, own in zip(prefix.keys, prefix.values, base.kv_norms, strict=False):
        keys, values = max(keys, _longest(k) / own[0]), max(values, _longest(v) / own[1])
    return keys, values


def _longest(vectors: Tensor) -> float:
    return float(vectors.float().norm(dim=-1).max())


def check_length(num_tokens: int, max_prefix_tokens: int) -> None:
    """Raise `PrefixTooLong` if there are more virtual tokens than allowed."""
    if num_tokens > max_prefix_tokens:
        raise PrefixTooLong(
            f"the prefix has {num_tokens} virtual tokens; the limit is {max_prefix_tokens}"
        )


def check_finite(name: str, tensor: Tensor, dtype: str) -> None:
    """Raise `NonFiniteValues` if a value is not finite as stored or in the serving dtype."""
    if not torch.isfinite(tensor).all():
        raise NonFiniteValues(f"{name} contains NaN or infinite values")
    serving: torch.dtype = getattr(torch, dtype)
    if serving != tensor.dtype and not torch.isfinite(tensor.to(serving)).all():
        raise NonFiniteValues(f"{name} contains values beyond the range of {dtype}")


def _named(prefix: Prefix) -> list[tuple[str, Tensor]]:
    return [
        (f"layers.{i}.{kind}", tensor)
        for i, pair in enumerate(zip(prefix.keys, prefix.values, strict=True))
        for kind, tensor in zip(("keys", "values"), pair, strict=True)
    ]


def _assemble(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Prefix:
    for name in tensors:
        if not _NAME.fullmatch(name):
            raise InvalidArtifact(f"unexpected tensor {shown(name)}")
    num_layers = -(-len(tensors) // 2)
    for name in (f"layers.{i}.{kind}" for i in range(num_layers) for kind in ("keys", "values")):
        if name not in tensors:
            raise IncompatiblePrefix(f"expected the tensor {name}, which is missing")
        if tensors[name].ndim != 3:
            raise IncompatiblePrefix(f"{name}: expected 3 dimensions, got {tensors[name].ndim}")
    _check_known(metadata)
    return Prefix(
        keys=tuple(tensors[f"layers.{i}.keys"] for i in range(num_layers)),
        values=tuple(tensors[f"layers.{i}.values"] for i in range(num_layers)),
        position_offset=int(metadata["position_offset"]),
        fingerprint=metadata["fingerprint"],
        origin={
            key.removeprefix(_ORIGIN): value
            for key, value in metadata.items()
            if key.startswith(_ORIGIN)
        },
    )


def _check_known(metadata: dict[str, str]) -> None:
    known = {"format_version", "fingerprint", "position_offset"}
    for key in metadata:
        if key not in known and not key.startswith(_ORIGIN):
            raise InvalidArtifact(f"unexpected metadata {shown(key)}")
    if missing := known - metadata.keys():
        raise InvalidArtifact(f"the metadata lacks {min(missing)}")
    if metadata["format_version"] != FORMAT_VERSION:
        raise UnsupportedFormat(
            f"expected format_version {FORMAT_VERSION}, got {shown(metadata['format_version'])}"
        )
    if not _FINGERPRINT.fullmatch(metadata["fingerprint"]):
        raise InvalidArtifact("the fingerprint must be sha256:<64 hex digits>")
    if not _OFFSET.fullmatch(metadata["position_offset"]):
        raise InvalidArtifact("position_offset must be a whole number")
