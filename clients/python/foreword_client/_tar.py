"""Uncompressed tars of a few files: made while they are sent, changed, and read."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from foreword_client._body import Part, Slice, size
from foreword_client.errors import SourceError

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)


def of(files: Mapping[str, Part]) -> tuple[Part, ...]:
    """The parts of a tar of these files. Owners and times are left out."""
    return (*_members(files), _END)


def replaced(tar: bytes | Path, files: Mapping[str, bytes]) -> tuple[Part, ...]:
    """The parts of a tar whose top level has `files`, added or in place of its own.

    Raises `SourceError`.
    """
    whole = tar if isinstance(tar, bytes) else Slice.whole(tar)
    if not files:
        return (whole,)
    with _opened(tar) as archive:
        members = archive.getmembers()
    kept = [_cut(tar, m.offset, _end(m)) for m in members if _path(m) not in files]
    # `tarfile` stops at a damaged header; what follows is for the server to judge.
    rest = _cut(tar, max((_end(m) for m in members), default=0), size(whole))
    return (*kept, *_members(files), rest)


def read(tar: bytes | Path, name: str) -> bytes | None:
    """Read a file of the top level, or else of a folder there. Raises `SourceError`."""
    with _opened(tar) as archive:
        found = {_path(m): m for m in archive if m.isfile()}
        paths = [path for path in found if path == name or path.partition("/")[2] == name]
        if not paths:
            return None
        file = archive.extractfile(found[min(paths, key=len)])
        return None if file is None else file.read()


def files(tar: bytes) -> dict[str, bytes]:
    """Read all files of the top level. Raises `SourceError`."""
    with _opened(tar) as archive:
        members = [m for m in archive if m.isfile() and "/" not in _path(m)]
        return {_path(m): tar[m.offset_data : m.offset_data + m.size] for m in members}


def _members(files: Mapping[str, Part]) -> tuple[Part, ...]:
    return tuple(part for name, content in files.items() for part in _member(name, content))


def _member(name: str, content: Part) -> tuple[Part, ...]:
    """Header, content, and zeros up to a whole block."""
    member = tarfile.TarInfo(name)
    member.size = size(content)
    return member.tobuf(), content, bytes(-member.size % _BLOCK)


@contextmanager
def _opened(tar: bytes | Path) -> Iterator[tarfile.TarFile]:
    name, file = (None, io.BytesIO(tar)) if isinstance(tar, bytes) else (tar, None)
    try:
        with tarfile.open(name, mode="r:", fileobj=file) as archive:
            yield archive
    except tarfile.TarError as exc:
        raise SourceError(f"{name or 'the bytes'}: not a whole tar ({exc})") from None


def _path(member: tarfile.TarInfo) -> str:
    return "/".join(part for part in member.name.split("/") if part not in ("", "."))


def _end(member: tarfile.TarInfo) -> int:
    """Offset of the next member. Raises `SourceError`."""
    if member.issparse():
        raise SourceError(f"{member.name} is a sparse file: make the tar without --sparse")
    end = member.offset_data + (member.size if member.isfile() else 0)
    return end + -end % _BLOCK


def _cut(tar: bytes | Path, begin: int, end: int) -> Part:
    return tar[begin:end] if isinstance(tar, bytes) else Slice(tar, begin, end - begin)
