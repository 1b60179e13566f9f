"""Reading safetensors files from untrusted sources.

Stricter than the safetensors library, which accepts duplicate names, empty tensors, any dtype and
headers that take seconds to parse. Layout: a little-endian u64 with the header's length, the header
as JSON, then the tensors' bytes. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefix_store import strict_json
from prefix_store.digest import Data
from prefix_store.errors import InvalidArtifact

MAX_HEADER_BYTES = 1 << 20
MAX_METADATA_PAIRS = 64
MAX_METADATA_BYTES = 16 << 10
MAX_RANK = 4

_LENGTH = struct.Struct("<Q")
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_FOREIGN = {
    b"PK\x03\x04": "a zip file (torch.save writes those); save with safe_serialization=True",
    b"PK\x05\x06": "a zip file; save with safe_serialization=True",
    b"\x80": "a pickle file; save with safe_serialization=True",
    b"\x1f\x8b": "compressed with gzip; send the file uncompressed",
    b"(\xb5/\xfd": "compressed with zstd; send the file uncompressed",
    b"BZh": "compressed with bzip2; send the file uncompressed",
    b"\xfd7zXZ": "compressed with xz; send the file uncompressed",
    b"GGUF": "a GGUF file, which holds a whole model",
    b"\x93NUMPY": "a NumPy file; save as safetensors",
    b"\x7fELF": "a program",
    b"<": "an HTML or XML page",
}


def read_tensors(data: Data) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file; every byte must be accounted for.

    The tensors are views of `data`, or of one copy if `data` is not writable, so that a file takes
    its size in memory only once. All share one dtype: F32, F16 or BF16. Tensor names are not
    checked. Raises `InvalidArtifact`.
    """
    header, begin = _read_header(data)
    metadata = _check_metadata(header.pop("__metadata__", {}))
    _check_tensors(header, len(data) - begin)
    buffer = data if _is_writable(data) else bytearray(data)  # torch has no read-only tensors
    return {name: _view(buffer, begin, info) for name, info in header.items()}, metadata


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A safetensors file to be written. Each iteration makes its bytes, a tensor at a time."""

    header: bytes
    num_bytes: int
    parts: Callable[[], Iterable[Tensor]]
    """Makes the tensors, or consecutive parts of them."""

    def __iter__(self) -> Iterator[Data]:
        yield self.header
        for part in self.parts():
            flat = part.detach().cpu().contiguous().view(-1)
            yield flat.view(torch.uint8).numpy().data


def tensor_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> TensorFile:
    """Lay out a safetensors file. Deterministic, unlike the library's writer."""
    shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    return file_of_parts(shapes, metadata, tensors.values)


def file_of_parts(
    shapes: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    metadata: Mapping[str, str],
    parts: Callable[[], Iterable[Tensor]],
) -> TensorFile:
    """Lay out a safetensors file of tensors that need not exist at once."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name, (dtype, shape) in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return TensorFile(_LENGTH.pack(len(text)) + text, _LENGTH.size + len(text) + end, parts)


def write_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Write a safetensors file to memory."""
    return b"".join(tensor_file(tensors, metadata))


def is_safetensors(data: Data) -> bool:
    """Whether the bytes start like a safetensors file."""
    return data[8:9] == b"{" and _LENGTH.unpack_from(data)[0] <= MAX_HEADER_BYTES


def name_foreign(data: Data) -> str | None:
    """Name the actual format of a file that is commonly uploaded by mistake."""
    start = bytes(data[:8])
    return next((name for magic, name in _FOREIGN.items() if start.startswith(magic)), None)


def shown(name: object) -> str:
    """Format an untrusted name for an error message: short, ASCII, escaped."""
    text = ascii(name)
    return text if len(text) <= 64 else f"{text[:60]}...'"


def _read_header(data: Data) -> tuple[dict[str, Any], int]:
    """Return the header and the offset of the first tensor."""
    if not is_safetensors(data):
        if found := name_foreign(data):
            raise InvalidArtifact(f"this is {found}")
        raise InvalidArtifact("this is not a safetensors file, or its header is above 1 MiB")
    (length,) = _LENGTH.unpack_from(data)
    if length % 8 or 8 + length > len(data):
        raise InvalidArtifact("the header's length is wrong: the file is damaged or cut short")
    try:
        header = strict_json.parse(bytes(data[8 : 8 + length]))
    except ValueError as error:
        raise InvalidArtifact(f"the header cannot be read: {error}") from None
    assert isinstance(header, dict)  # it begins with a brace
    return header, 8 + length


def _is_writable(data: Data) -> bool:
    return not memoryview(data).readonly


def _view(buffer: Data, begin: int, info: dict[str, Any]) -> Tensor:
    shape = info["shape"]
    flat = torch.frombuffer(
        buffer,
        dtype=_DTYPES[info["dtype"]],
        count=math.prod(shape),
        offset=begin + info["data_offsets"][0],
    )
    return flat.view(shape)


def _check_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
        raise InvalidArtifact("the metadata must map strings to strings")
    num_bytes = sum(len(k.encode()) + len(v.encode()) for k, v in metadata.items())
    if len(metadata) > MAX_METADATA_PAIRS or num_bytes > MAX_METADATA_BYTES:
        raise InvalidArtifact(
            f"the metadata is limited to {MAX_METADATA_PAIRS} pairs and {MAX_METADATA_BYTES} bytes"
        )
    return metadata


def _check_tensors(header: dict[str, Any], num_bytes: int) -> None:
    spans = sorted(_span(name, info) for name, info in header.items())
    end = 0
    for begin, next_end in spans:
        if begin != end:
            raise InvalidArtifact("the tensors overlap or leave a gap")
        end = next_end
    if not spans or end != num_bytes:
        raise InvalidArtifact(f"the tensors need {end} bytes, but the file has {num_bytes}")
    if len({info["dtype"] for info in header.values()}) > 1:
        raise InvalidArtifact("the tensors differ in dtype")


def _span(name: str, info: object) -> tuple[int, int]:
    """Return a tensor's byte range, after checking that dtype, shape and offsets agree."""
    if not isinstance(info, dict) or info.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidArtifact(f"tensor {shown(name)}: the header entry is malformed")
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if type(dtype) is not str or dtype not in _DTYPES:
        raise InvalidArtifact(f"tensor {shown(name)}: the dtype must be F32, F16 or BF16")
    if not _is_counts(shape, least=1) or not 1 <= len(shape) <= MAX_RANK:
        raise InvalidArtifact(
            f"tensor {shown(name)}: the shape must be 1 to {MAX_RANK} sizes of at least 1"
        )
    if not _is_counts(offsets, least=0) or len(offsets) != 2:
        raise InvalidArtifact(f"tensor {shown(name)}: data_offsets must be two offsets")
    begin, end = offsets
    if end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise InvalidArtifact(f"tensor {shown(name)}: the shape does not match the number of bytes")
    return begin, end


def _is_counts(value: object, *, least: int) -> bool:
    # `type` and not isinstance: true is an int to Python.
    return isinstance(value, list) and all(type(n) is int and n >= least for n in value)
