from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Self

Data = bytes | bytearray | memoryview
Content = Data | Iterable[Data]
"""Bytes of a blob: in one piece, or in several that can be iterated over more than once."""

_PATTERN = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """Content hash of a blob, `sha256:<64 hex digits>`, in OCI's notation.

    Validated on construction, so that no path is ever built from an unchecked string.
    """

    value: str

    def __post_init__(self) -> None:
        if not _PATTERN.fullmatch(self.value):
            raise ValueError("not a sha256 digest")

    def __str__(self) -> str:
        return self.value

    @property
    def hex(self) -> str:
        return self.value.removeprefix("sha256:")

    @classmethod
    def of(cls, content: Content) -> Self:
        hashed = hashlib.sha256()
        for piece in pieces_of(content):
            hashed.update(piece)
        return cls(f"sha256:{hashed.hexdigest()}")

    @classmethod
    def of_file(cls, file: BufferedIOBase) -> Self:
        """Hash a file from its current position to its end, in small pieces."""
        return cls(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")


def pieces_of(content: Content) -> Iterable[Data]:
    """Return the pieces of a blob's content."""
    return (content,) if isinstance(content, bytes | bytearray | memoryview) else content
