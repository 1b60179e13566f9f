"""Tars of a prefix and what lies beside it: written as `foreword push` does, and unpacked."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from foreword_client._body import Body
from foreword_client.apply.remote import KNOWN
from foreword_client.errors import SourceError

MEDIA_TYPE = "application/x-tar"
END = bytes(2 * tarfile.BLOCKSIZE)


def member(name: str, content: bytes | Path) -> tuple[bytes | Path, ...]:
    """Header, content, and zeros up to a whole block. Without owner and time: the same content
    gives the same bytes."""
    header = tarfile.TarInfo(name)
    header.size = len(content) if isinstance(content, bytes) else content.stat().st_size
    return header.tobuf(), content, bytes(-header.size % tarfile.BLOCKSIZE)


def write(files: Mapping[str, Path]) -> Body:
    """Pack files into a tar, which is read while it is sent."""
    parts = (part for name, path in files.items() for part in member(name, path))
    return Body(MEDIA_TYPE, (*parts, END))


def unpack(path: Path, folder: Path) -> dict[str, Path]:
    """Copy the known files of a tar, from its outermost folder that has any, into a folder.

    Raises `SourceError`.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            members = [m for m in archive if m.isfile() and PurePosixPath(m.name).name in KNOWN]
            depth = min(map(_depth, members), default=0)
            for one in (one for one in members if _depth(one) == depth):
                _extract(archive, one, folder / PurePosixPath(one.name).name)
    except (tarfile.TarError, EOFError):
        raise SourceError("the tar is damaged") from None
    return {name: folder / name for name in KNOWN if (folder / name).is_file()}


def _depth(member: tarfile.TarInfo) -> int:
    return len([part for part in PurePosixPath(member.name).parts if part != "."])


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, to: Path) -> None:
    if to.exists():
        raise SourceError(f"the tar has more than one {to.name}")
    content = archive.extractfile(member)
    assert content is not None, "a regular file has content"
    with content, to.open("wb") as file:
        shutil.copyfileobj(content, file)
