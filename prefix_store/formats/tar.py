"""Uncompressed tar archives in memory, written with `tarfile` but read with a parser of our own.

`tarfile` before Python 3.11.14 loops forever on a member of negative size (CVE-2025-8194), and
follows sparse maps and size records that make a member larger than the archive. Nothing is ever
unpacked to disk.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prefix_store.digest import Data
from prefix_store.errors import InvalidArtifact, UnsupportedFormat
from prefix_store.safetensors_gate import name_foreign, shown

BLOCK = 512
MAX_MEMBERS = 256
MAX_NAME_BYTES = 1024
MAX_EXTENDED_BYTES = 64 << 10

_PIECE = 1 << 20
_FILE, _OLD_FILE, _FOLDER = b"0", b"\0", b"5"
_GNU_NAME, _PAX, _PAX_GLOBAL = b"L", b"x", b"g"
_OCTAL = re.compile(rb"[0-7]{1,12}")
_RECORD = re.compile(rb"([1-9][0-9]{0,5}) ([^=\n]{1,256})=")
_PICKLE = re.compile(r".*\.(bin|pt|pth|ckpt|pkl|pickle)", re.IGNORECASE | re.DOTALL)
_WEIGHTS_SUFFIX = ".safetensors"
_REFUSED_RECORDS = (b"size", b"linkpath", b"GNU.sparse.")


@dataclass(frozen=True, slots=True)
class _Member:
    folder: str
    name: str
    kind: bytes
    begin: int
    end: int


def is_tar(data: Data) -> bool:
    """Whether the first block is a tar header."""
    return data[257:262] == b"ustar"


class Archive:
    """Index of the files with known names in the top two levels of a tar."""

    def __init__(self, data: Data, known: frozenset[str]) -> None:
        """Parse all headers once, and skip files with other names.

        Pickles are skipped next to known safetensors files: transformers' Trainer saves
        `training_args.bin` and optimizer states. Raises `InvalidArtifact` for damaged archives,
        links, devices, sparse files, and names that leave the archive or appear twice in a folder;
        `UnsupportedFormat` if there are pickles, and no known safetensors file.
        """
        if not is_tar(data):
            raise InvalidArtifact(f"this is {name_foreign(data) or 'not a tar file'}")
        self._data = memoryview(data)
        self._folders: dict[str, dict[str, _Member]] = {}
        pickle: _Member | None = None
        for member in _members(self._data):
            _check(member)
            if pickle is None and member.kind != _FOLDER and _PICKLE.fullmatch(member.name):
                pickle = member
            if member.kind == _FOLDER or member.name not in known or "/" in member.folder:
                continue
            files = self._folders.setdefault(member.folder, {})
            if member.name in files:
                raise InvalidArtifact(f"{member.name} appears twice")
            files[member.name] = member
        if pickle is not None and not self._has_weights():
            raise UnsupportedFormat(
                f"{shown(pickle.name)} is a pickle, which is never loaded: remove it, and save "
                "with safe_serialization=True"
            )

    def _has_weights(self) -> bool:
        return any(
            name.endswith(_WEIGHTS_SUFFIX) for files in self._folders.values() for name in files
        )

    def files(self, wanted: frozenset[str]) -> dict[str, memoryview]:
        """Return the wanted files by name, from the outermost folder that has any of them.

        They are views of the archive, not copies.

        Raises `InvalidArtifact` if several folders below the top have some.
        """
        folders = {name: wanted & files.keys() for name, files in self._folders.items()}
        folders = {name: found for name, found in folders.items() if found}
        # Training runs keep checkpoints in folders next to the result.
        if "" not in folders and len(folders) > 1:
            raise InvalidArtifact("the archive contains more than one directory of this kind")
        folder = "" if "" in folders else next(iter(folders), "")
        members = {name: self._folders[folder][name] for name in folders.get(folder, ())}
        return {name: self._data[m.begin : m.end] for name, m in members.items()}


def read_files(data: Data, wanted: frozenset[str]) -> dict[str, memoryview]:
    """Return the wanted files of a tar by name. Raises the errors of `Archive`."""
    return Archive(data, wanted).files(wanted)


def write(files: Mapping[str, Data]) -> bytes:
    """Write a tar. Deterministic: times and owners are zero."""
    content = b"".join(_members_of(files))
    return content + _end_of(len(content))


def around(
    name: str, num_bytes: int, before: Mapping[str, Data], after: Mapping[str, Data]
) -> tuple[bytes, bytes]:
    """Return the parts of a tar before and after the content of one file among others."""
    begin = b"".join((*_members_of(before), _header_of(name, num_bytes)))
    end = b"".join((bytes(-num_bytes % BLOCK), *_members_of(after)))
    return begin, end + _end_of(len(begin) + num_bytes + len(end))


def _members_of(files: Mapping[str, Data]) -> Iterator[Data]:
    for name, content in files.items():
        yield from (_header_of(name, len(content)), content, bytes(-len(content) % BLOCK))


def _header_of(name: str, num_bytes: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = num_bytes
    return member.tobuf(tarfile.USTAR_FORMAT)


def _end_of(num_bytes: int) -> bytes:
    """Return two empty blocks, and padding to the size of a tape's record."""
    return bytes(2 * BLOCK + -(num_bytes + 2 * BLOCK) % tarfile.RECORDSIZE)


def _check(member: _Member) -> None:
    if member.kind not in (_FILE, _OLD_FILE, _FOLDER):
        raise InvalidArtifact(f"{shown(member.name)} is a link, a device or a sparse file")


def _members(data: memoryview) -> Iterator[_Member]:
    begin, num_members, long_name = 0, 0, None
    while block := _header(data, begin):
        kind, size = block[156:157], _octal(block[124:136])
        begin, end = begin + BLOCK, begin + BLOCK + size
        if end > len(data):
            raise InvalidArtifact("the tar is cut short")
        num_members += 1
        if num_members > MAX_MEMBERS:
            raise InvalidArtifact(f"the tar has more than {MAX_MEMBERS} members")
        if kind in (_GNU_NAME, _PAX, _PAX_GLOBAL):
            if size > MAX_EXTENDED_BYTES:
                raise InvalidArtifact("a member's name or attributes are too long")
            long_name = _extended(bytes(data[begin:end]), kind, long_name)
        else:
            folder, name = _split(long_name if long_name is not None else _name(block))
            yield _Member(folder, name, kind, begin, end)
            long_name = None
        begin = end + -end % BLOCK


def _header(data: memoryview, begin: int) -> bytes:
    """Return the header block at `begin`; empty at the end of the archive, which must be valid."""
    block = bytes(data[begin : begin + BLOCK])
    if len(block) < BLOCK:
        raise InvalidArtifact("the tar is cut short")
    if not any(block):
        if not _is_zero(data[begin:]):
            raise InvalidArtifact("bytes follow the end of the tar")
        return b""
    checksum = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if block[257:262] != b"ustar" or _octal(block[148:156]) != checksum:
        raise InvalidArtifact("the tar is damaged")
    return block


def _is_zero(data: memoryview) -> bool:
    pieces = (bytes(data[i : i + _PIECE]) for i in range(0, len(data), _PIECE))
    return all(piece.count(0) == len(piece) for piece in pieces)


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    if not _OCTAL.fullmatch(digits):
        raise InvalidArtifact("a number in the tar is not octal")
    return int(digits, 8)


def _name(block: bytes) -> bytes:
    name = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _extended(body: bytes, kind: bytes, long_name: bytes | None) -> bytes | None:
    """Return the next member's name, if this extended header sets one."""
    if kind == _GNU_NAME:
        return body.rstrip(b"\0")
    path, begin = None, 0
    while begin < len(body):
        record = _RECORD.match(body, begin)
        end = begin + int(record[1]) if record else 0
        if not record or not record.end() < end <= len(body) or body[end - 1 : end] != b"\n":
            raise InvalidArtifact("a member's attributes cannot be read")
        if record[2].startswith(_REFUSED_RECORDS) or (record[2] == b"path" and kind != _PAX):
            raise InvalidArtifact("a member overrides its size, link or name")
        if record[2] == b"path":
            path = body[record.end() : end - 1]
        begin = end
    return path if path is not None else long_name


def _split(path: bytes) -> tuple[str, str]:
    """Split a path into folder and name. Raises `InvalidArtifact` if it leaves the archive."""
    try:
        text = path.decode()
    except UnicodeDecodeError:
        raise InvalidArtifact("a member's name is not UTF-8") from None
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if text.startswith("/") or ".." in parts or "\0" in text or len(path) > MAX_NAME_BYTES:
        raise InvalidArtifact("a member's name leads out of the archive, or is too long")
    return "/".join(parts[:-1]), parts[-1] if parts else ""
