"""A disk that forgets what was not made durable: what a power cut may leave, from a trace."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

OPTIONS = ("-y", "-xx", "-s", "20000000", "-e", "trace=%file,%desc")
"""Of strace: descriptors with their paths, and all that is written."""

_CHANGES_NOTHING = {
    "access", "close", "fchmod", "fchown", "fcntl", "flock", "fstat", "getdents64", "ioctl",
    "lseek", "lstat", "mmap", "newfstatat", "pread64", "read", "readlink", "stat", "statx",
    "utimensat",
}  # fmt: skip

_LINE = re.compile(r"(\w+)\((.*)\) += \d+")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"\d+<((?:\\x[0-9a-f]{2})*)>")


@dataclass
class File:
    """An inode: what the system shows, and what surely is on the disk."""

    seen: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    last_write: tuple[int, int] = (0, 0)
    """Begin and end."""


@dataclass
class Disk:
    """Files and folders below a root; `None` stands for a folder."""

    root: str
    seen: dict[str, File | None] = field(default_factory=dict)
    durable: dict[str, File | None] = field(default_factory=dict)
    num_done: int = 0
    """Steps that were acknowledged."""

    def apply(self, line: str) -> bool:
        """Replay a line of the trace; whether it changed anything."""
        match = _LINE.match(line)
        if match is None:  # failed, or no call at all
            return False
        name, arguments = match.groups()
        strings = [_bytes(found) for found in _STRING.findall(arguments)]
        descriptor = _DESCRIPTOR.match(arguments)
        path = (_bytes(descriptor[1]) if descriptor else strings[0] if strings else b"").decode()
        if name == "writev":  # only the actor says things this way
            self.num_done += strings[0] == b"done\n"
            return True
        if name in _CHANGES_NOTHING or not f"{path}/".startswith(f"{self.root}/"):
            return False
        # Where there is a call `renameat` it is all that there is, and the same.
        change = getattr(self, "_" + re.sub("at2?$", "", name))
        change(path, arguments, strings)
        return True

    def states(self) -> Iterator[dict[str, bytes | None]]:
        """What may be there after a power cut now: paths and bytes, `None` for a folder."""
        for entries in (self.durable, self.seen):
            for content in (_durable, _seen, _torn):
                yield {
                    path: None if file is None else content(file)
                    for path, file in entries.items()
                    if _is_there(path, entries, self.root) and not path.endswith("-shm")
                }

    def _open(self, path: str, arguments: str, _: list[bytes]) -> None:
        if "O_CREAT" in arguments:
            self.seen.setdefault(path, File())
        if "O_TRUNC" in arguments:
            self._file(path).seen.clear()

    def _write(self, path: str, _: str, strings: list[bytes]) -> None:
        self._put(path, len(self._file(path).seen), strings[0])

    def _pwrite64(self, path: str, arguments: str, strings: list[bytes]) -> None:
        self._put(path, int(arguments.rpartition(",")[2]), strings[0])

    def _fsync(self, path: str, *_: object) -> None:
        if path != self.root and (file := self.seen[path]) is not None:
            file.durable = bytes(file.seen)
            return
        elsewhere = {p: f for p, f in self.durable.items() if p.rpartition("/")[0] != path}
        inside = {p: f for p, f in self.seen.items() if p.rpartition("/")[0] == path}
        self.durable = elsewhere | inside

    _fdatasync = _fsync

    def _rename(self, path: str, _: str, strings: list[bytes]) -> None:
        self.seen[strings[1].decode()] = self.seen.pop(path)

    def _unlink(self, path: str, *_: object) -> None:
        del self.seen[path]

    def _mkdir(self, path: str, *_: object) -> None:
        self.seen[path] = None

    def _ftruncate(self, path: str, arguments: str, _: list[bytes]) -> None:
        file = self._file(path)
        length = int(arguments.rpartition(",")[2], 0)
        file.seen[:] = file.seen[:length].ljust(length, b"\0")

    def _put(self, path: str, at: int, data: bytes) -> None:
        file = self._file(path)
        file.seen.extend(bytes(max(0, at - len(file.seen))))
        file.seen[at : at + len(data)] = data
        file.last_write = (at, at + len(data))

    def _file(self, path: str) -> File:
        file = self.seen[path]
        assert file is not None
        return file


def _durable(file: File) -> bytes:
    return file.durable


def _seen(file: File) -> bytes:
    return bytes(file.seen)


def _torn(file: File) -> bytes:
    """All that is not durable got lost, but for the first half of the last write."""
    begin, end = file.last_write
    half = bytes(file.seen[begin : (begin + end) // 2])
    if bytes(file.seen) == file.durable or not half:
        return file.durable
    content = bytearray(file.durable.ljust(begin, b"\0"))
    content[begin : begin + len(half)] = half
    return bytes(content)


def _is_there(path: str, entries: dict[str, File | None], root: str) -> bool:
    folder = path.rpartition("/")[0]
    return folder == root or (folder in entries and _is_there(folder, entries, root))


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def write_state(state: dict[str, bytes | None], root: str, folder: Path) -> None:
    """Make a disk's state a folder's content."""
    folder.mkdir()
    for path in sorted(state):
        target = folder / path.removeprefix(f"{root}/")
        content = state[path]
        if content is None:
            target.mkdir()
        else:
            target.write_bytes(content)
