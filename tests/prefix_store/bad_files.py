"""Files that look more or less like safetensors. The library itself takes many of them."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
from typing import Any

import torch

from prefix_store.safetensors_gate import MAX_HEADER_BYTES, MAX_METADATA_BYTES


def info(shape: list[Any], begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file(header: object, data: bytes = b"", *, lie: int = 0, pad: bool = True) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8) if pad else b""
    return struct.pack("<Q", len(text) + lie) + text + data


def raw(text: str, data: bytes = b"") -> bytes:
    return file(text.encode(), data)


def torch_saved() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, buffer)
    return buffer.getvalue()


ONE = info([2], 0, 8)
A = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
EIGHT = b"\0" * 8

DTYPES: list[tuple[Any, int]] = [
    ("Q9", 4), ("f32", 4), ("F64", 8), ("I64", 8), ("BOOL", 1), ("U8", 1), ("F8_E8M0", 1),
    ("F8_E4M3", 1), ("C64", 8), ("", 4), (None, 4), (7, 4), (["F32"], 4), ({}, 4),
]  # fmt: skip
NAMES = ["../../etc/passwd", "a\0b", "", "x" * 900_000, "a\u202eb", "layers.0.k\u0435ys"]

BAD: dict[str, bytes] = {
    "empty": b"",
    "7 bytes": b"\0" * 7,
    "8 zero bytes": b"\0" * 8,
    "length only": struct.pack("<Q", 64),
    "length 2^64-1": b"\xff" * 8 + b"{}",
    "length 2^63": struct.pack("<Q", 1 << 63) + b"{}",
    "length 100_000_001": struct.pack("<Q", 100_000_001) + b"{}",
    "length of the file": struct.pack("<Q", 24) + b"{}" + b" " * 14,
    "length one short": file({"a": ONE}, EIGHT, lie=-1),
    "length one long": file({"a": ONE}, EIGHT, lie=1),
    "length eight short": file({"a": ONE}, EIGHT, lie=-8),
    "length eight long": file({"a": ONE}, EIGHT, lie=8),
    "header of spaces": file(b"{" + b" " * MAX_HEADER_BYTES),
    "99 MB header": struct.pack("<Q", 99_000_000) + b"{" + b" " * 99_000,
    "3 MB of empty tensors": file({f"t{i}": info([0], 0, 0) for i in range(50_000)}),
    "10 000 tensors without bytes": file(
        {f"{i}": info([1], 4 * i, 4 * i + 4) for i in range(10_000)}
    ),
    "header not UTF-8": file(b'{"\xff\xfe":1}'),
    "header in UTF-16": file('{"a":1}'.encode("utf-16")),
    "byte order mark": file(b"\xef\xbb\xbf{}"),
    "header not JSON": file(b"{", pad=False),
    "array": file(b"[]"),
    "null": file(b"null"),
    "leading whitespace": file(b"  {}"),
    "trailing NULs": file(b"{}\0\0\0\0\0\0"),
    "no tensors": file({}),
    "only metadata": file({"__metadata__": {"a": "b"}}),
    "cut by 2": file({"a": info([4], 0, 16)}, b"\0" * 14),
    "polyglot": file({"a": info([4], 0, 16)}, b"\0" * 16 + b"PK\x05\x06extra"),
    "same offsets": file({"a": info([4], 0, 16), "b": info([4], 0, 16)}, b"\0" * 16),
    "ten on one range": file({f"t{i}": ONE for i in range(10)}, EIGHT),
    "partial overlap": file({"a": info([4], 0, 16), "b": info([4], 8, 24)}, b"\0" * 24),
    "hole": file({"a": ONE, "b": info([2], 16, 24)}, b"\0" * 24),
    "reversed offsets": file({"a": info([2], 8, 0)}, EIGHT),
    "negative offset": file({"a": info([2], -8, 0)}, EIGHT),
    "float offset": file({"a": info([2], 0.0, 8.0)}, EIGHT),
    "boolean offset": file({"a": info([2], False, 8)}, EIGHT),
    "three offsets": file({"a": ONE | {"data_offsets": [0, 4, 8]}}, EIGHT),
    "offset beyond the file": file({"a": info([1_000_000], 0, 4_000_000)}, EIGHT),
    "shape above the bytes": file({"a": info([1_000_000], 0, 4)}, b"\0" * 4),
    "shape overflows to 4": file(
        {"a": info([4194305, 4194305, 211106198978564], 0, 16)}, EIGHT * 2
    ),
    "shape overflows u64": file({"a": info([2, 18446744073709551614], 0, 16)}, EIGHT * 2),
    "shape of 4 400 digits": raw("{" + A.replace("[2]", f"[{'9' * 4400}]") + "}", EIGHT),
    "negative shape": file({"a": info([-2, -1], 0, 8)}, EIGHT),
    "boolean shape": file({"a": info([True, 2], 0, 8)}, EIGHT),
    "shape no list": file({"a": ONE | {"shape": 2}}, EIGHT),
    "rank 0": file({"a": info([], 0, 4)}, b"\0" * 4),
    "rank 10 000": file({"a": info([1] * 10_000, 0, 4)}, b"\0" * 4),
    "zero-size": file({"a": info([0, 5], 0, 0)}),
    "zero-size shares an offset": file({"a": info([0], 0, 0), "b": ONE}, EIGHT),
    "zero-size in the middle": file({"a": ONE, "z": info([0], 4, 4)}, EIGHT),
    **{
        f"dtype {dtype}": file({"a": info([8 // size], 0, 8, dtype)}, EIGHT)
        for dtype, size in DTYPES
    },
    "dtype F4": file({"a": info([16], 0, 8, "F4")}, EIGHT),
    "dtypes differ": file({"a": ONE, "b": info([2], 8, 12, "F16")}, b"\0" * 12),
    "NaN and Inf": file({"a": ONE}, struct.pack("<ff", float("nan"), float("inf"))),
    "duplicate tensor": raw("{" + A + "," + A + "}", EIGHT),
    "duplicate, differing": raw(
        "{" + A.replace("[2]", "[4]").replace(",8]", ",16]") + "," + A + "}", EIGHT
    ),
    "duplicate, escaped": raw("{" + A + "," + A.replace('"a"', '"\\u0061"') + "}", EIGHT),
    "duplicate in the info": raw(
        "{" + A.replace('"dtype":', '"dtype":"F16","dtype":') + "}", EIGHT
    ),
    "duplicate metadata": raw(
        '{"__metadata__":{"x":"1"},"__metadata__":{"x":"2"},' + A + "}", EIGHT
    ),
    "duplicate in the metadata": raw('{"__metadata__":{"x":"1","x":"2"},' + A + "}", EIGHT),
    "unknown field": file({"a": ONE | {"evil": 1}}, EIGHT),
    "missing field": file({"a": {"dtype": "F32", "shape": [2]}}, EIGHT),
    "info no object": file({"a": [0, 8]}, EIGHT),
    "metadata not strings": file({"__metadata__": {"x": 1}, "a": ONE}, EIGHT),
    "metadata nested": file({"__metadata__": {"x": {"y": "z"}}, "a": ONE}, EIGHT),
    "metadata null": file({"__metadata__": None, "a": ONE}, EIGHT),
    "metadata a list": file({"__metadata__": [], "a": ONE}, EIGHT),
    "metadata of 10 000 pairs": file(
        {"__metadata__": {str(i): "" for i in range(10_000)}, "a": ONE}, EIGHT
    ),
    "metadata too big": file({"__metadata__": {"x": "y" * MAX_METADATA_BYTES}, "a": ONE}, EIGHT),
    "metadata lone surrogate": raw('{"__metadata__":{"x":"\\ud800"},' + A + "}", EIGHT),
    "metadata as a tensor": file({"__metadata__": ONE}, EIGHT),
    "NaN in the header": raw("{" + A.replace("[2]", "[NaN]") + "}", EIGHT),
    **{f"tensor named {name!a:.20}": file({name: ONE}, EIGHT) for name in NAMES},
    "tensor named by a lone surrogate": raw("{" + A.replace('"a"', '"\\ud800"') + "}", EIGHT),
    "odd header length": file(b"{" + A.encode() + b"}   ", EIGHT, pad=False),
    "nested 100 000 deep": raw('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "nested 500 000 objects deep": raw('{"a":' * 170_000 + "1" + "}" * 170_000),
    "pickle": pickle.dumps({"a": 1}),
    "pickle 2": pickle.dumps({"a": 1}, protocol=2),
    "torch.save": torch_saved(),
    "zip": b"PK\x03\x04" + b"\0" * 100,
    "gzip": gzip.compress(b"\0" * 1_000_000),
    "GGUF": b"GGUF" + b"\0" * 60,
    "NumPy": b"\x93NUMPY\x01\x00" + b"\0" * 60,
    "ELF": b"\x7fELF" + b"\0" * 60,
    "HTML": b"<!doctype html><title>404</title>",
    "10 MB of JSON": b'{"a":"' + b"x" * 10_000_000 + b'"}',
}
