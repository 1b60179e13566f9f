"""A parser of server-sent events as WHATWG specifies them. Bytes in, events out, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One dispatched event. `data` is all of its data lines, joined by newlines."""

    name: str
    data: str


class Decoder:
    """Incremental decoder: chunks of any size in, complete events out. A partial one is dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._after_cr = False
        self._at_start = True
        self._name = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that this chunk completes."""
        for line in self._lines(chunk):
            if line:
                self._field(line)
                continue
            if self._data:
                yield Event(self._name or "message", "\n".join(self._data))
            self._name, self._data = "", []

    def _lines(self, chunk: bytes) -> list[bytes]:
        if not chunk:
            return []
        if self._after_cr:  # the second half of a CR LF
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        *lines, self._rest = _LINE_END.split(self._rest + chunk)
        if lines and self._at_start:
            self._at_start = False
            lines[0] = lines[0].removeprefix(_BOM)
        return lines

    def _field(self, line: bytes) -> None:
        name, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "data":
            self._data.append(value)
        # Everything else is a comment (an empty name), `id`, `retry`, or unknown: ignored.
