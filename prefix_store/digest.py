from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Self

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
    def of(cls, data: bytes) -> Self:
        return cls(f"sha256:{hashlib.sha256(data).hexdigest()}")
