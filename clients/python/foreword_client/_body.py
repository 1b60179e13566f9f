"""Request bodies: bytes and parts of files, streamed from disk, of a length known beforehand."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

Progress = Callable[[int, int], None]
"""Called with the number of bytes sent so far, and the total."""

_CHUNK_BYTES = 1 << 20
_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a file."""

    path: Path
    begin: int
    num_bytes: int

    @classmethod
    def whole(cls, path: Path) -> Slice:
        return cls(path, 0, path.stat().st_size)

    def read(self) -> Iterator[bytes]:
        """Yield the bytes in pieces of 1 MiB."""
        with self.path.open("rb") as file:
            file.seek(self.begin)
            num_left = self.num_bytes
            while num_left and (chunk := file.read(min(num_left, _CHUNK_BYTES))):
                yield chunk
                num_left -= len(chunk)


Part = bytes | Slice


def size(part: Part) -> int:
    """Number of bytes."""
    return len(part) if isinstance(part, bytes) else part.num_bytes


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body: its parts in sequence. Can be sent more than once."""

    media_type: str
    parts: tuple[Part, ...]
    progress: Progress | None = None

    @property
    def num_bytes(self) -> int:
        return sum(size(part) for part in self.parts)

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Type": self.media_type, "Content-Length": str(self.num_bytes)}

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes; a file in pieces of 1 MiB."""
        num_sent = 0
        for chunk in self._read():
            yield chunk
            num_sent += len(chunk)
            self._tell(num_sent)

    async def async_chunks(self) -> AsyncIterator[bytes]:
        """Like `chunks`; files are read off the event loop."""
        num_sent, chunks = 0, self._read()
        while (chunk := await anyio.to_thread.run_sync(next, chunks, None)) is not None:
            yield chunk
            num_sent += len(chunk)
            self._tell(num_sent)

    def _read(self) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part, bytes):
                yield part
            else:
                yield from part.read()

    def _tell(self, num_sent: int) -> None:
        if self.progress is not None:
            self.progress(num_sent, self.num_bytes)


def of_json(value: object) -> Body:
    """Encode a value as JSON. Raises `ValueError` for NaN, which JSON lacks."""
    return Body(_JSON, (json.dumps(value, allow_nan=False).encode(),))
